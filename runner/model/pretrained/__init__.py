"""Pretrained weights: files, renames, matching, loading.

Read `plan.py`, `load.py`, `locate.py`, `files.py`, `contents.py`.
"""
