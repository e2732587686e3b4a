"""One run: checked, built, trained, recorded and resumed, and the questions about it before and after.

Read `examine.py`, `run.py`, `restore.py`; then `builders/`, `preflight/`, `preview/`, `tuning/`, `record/`.
The only wing where the config meets torch. May import `train` and everything below it.
"""
