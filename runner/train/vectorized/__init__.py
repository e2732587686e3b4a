"""Vectorized training: several jobs of one architecture as one model with a leading dimension.

Read `loop.py`, `stack.py`, `vmap_rules.py`, `optimizers.py`; then `joining.py`, `per_job.py`, `allocator.py`.
"""
