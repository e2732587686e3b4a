"""Builders: the config as live objects, one file a wing.

Read `run.py`, then the wing that you look for.
"""
