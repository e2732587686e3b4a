"""Changes to a model's weights before training: init, pretrained, freeze, parameter groups; and its summary.

Read `init.py`, `freeze.py`, `param_groups.py`, `pretrained/`, `summary.py`. May import `core`.
"""
