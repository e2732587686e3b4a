"""Pretrained weights: files, renames, matching, loading.

Read `plan.py`, `load.py`, `files.py`.
"""
