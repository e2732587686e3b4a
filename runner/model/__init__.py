"""Model wing: initialisation, pretrained weights, freezing, parameter groups and the summary table.

Read `init.py`, `freeze.py`, `param_groups.py`, `pretrained/`, `summary.py`. May import `core`.
"""
