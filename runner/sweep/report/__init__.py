"""The report of a sweep: results, table, curves.

Read `results.py`, then `write.py`.
"""
