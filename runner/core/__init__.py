"""Tools of every wing: errors, randomness, files, devices, durations.

Read `errors.py` and `rng.py`. Knows no experiment. Imports no other wing.
"""
