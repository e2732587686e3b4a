"""Pretrained weights: files, renames, matching, loading.

Read `plan.py`, `strategies.py`, `load.py`, `locate.py`, `files.py`, `contents.py`.
"""
