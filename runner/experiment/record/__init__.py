"""The run directory: provenance, result, and the reading of both.

Read `directory.py`, `provenance.py`, `result.py`, `recorded.py`.
"""
