"""The order of the points: a grid, or a search by Optuna.

Read `grid.py`, then `optuna_search.py`.
"""
