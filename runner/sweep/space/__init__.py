"""The space of a sweep: overrides and point files as axes and points.

Read `request.py`, then `axes.py`.
"""
