"""Builders: turn the config into live objects, one file per wing.

Read `run.py`, then the wing that you look for.
"""
