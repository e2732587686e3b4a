"""Preflight: a trial of the config on the meta device, before data or a run directory is touched.

Read `preflight.py`.
"""
