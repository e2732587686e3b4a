"""Checks of a composed config: names, arguments, slots and rules.

Read `check.py`, `components.py`, `imports.py`.
"""
