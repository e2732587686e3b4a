"""Rules between several keys, one file a wing.

Read `collect.py`.
"""
