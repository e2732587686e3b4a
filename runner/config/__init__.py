"""The config that was asked for: YAML and arguments become a typed config, or every mistake in it.

Read `schema/config.py`, `compose.py`, `parsing.py`, `origins.py`; then `check/`. Knows no torch. May import `core`.
"""
