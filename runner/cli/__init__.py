"""One file a verb of the command line: it reads the arguments, calls one function and prints the answer.

Read `options.py`, then any verb. May import every other wing.
"""
