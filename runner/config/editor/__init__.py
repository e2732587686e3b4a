"""Editors: JSON Schemas of config files, an editor's settings, and corrections of a file's text.

Read `json_schema.py`, `targets.py`, `settings.py`; then `corrections.py`.
"""
