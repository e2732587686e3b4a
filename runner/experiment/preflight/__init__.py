"""Preflight: the config tried on the meta device before data or a run directory is touched, one file a wing.

Read `preflight.py`.
"""
