"""Command line: one file per verb, which parses arguments, calls a function and prints its result.

Read `options.py`, then any verb. May import every other wing.
"""
