"""Record of a run in its directory: writers and readers of provenance, config and result.

Read `directory.py`, `provenance.py`, `result.py`, `recorded.py`, `continuation.py`.
"""
