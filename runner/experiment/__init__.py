"""Experiment: one run from its config to its record, with preflight, previews, tuning and resume.

Read `examine.py`, `run.py`, `restore.py`; then `builders/`, `preflight/`, `preview/`, `tuning/`, `record/`.
The only wing where the config meets torch. May import `train` and everything below it.
"""
