"""The difference of two runs, experiments or records: config, code, machine, data, results.

Read `sides.py`, then `diff.py`.
"""
