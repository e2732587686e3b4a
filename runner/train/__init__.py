"""The training loop and the optimizer step, on one process or several.

Read `loop.py`, `state.py`, `evaluation.py`, `checkpoint.py`; then `optimizer_step/`, `distributed/`.
Knows no config. May import `data`, `model`, `log` and `core`.
"""
