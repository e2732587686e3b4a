"""Vectorized training: several jobs of one architecture as one model with a leading dimension.

Read `loop.py`, `stack.py`, `vmap_rules.py`, `optimizers.py`; then `joining.py`, `per_job.py`, `allocator.py`;
and `gradients.py`, `operator_program.py`, `unbranched.py` for what makes a step fast.
"""

LEAST_STEPS = 50  # to come, below which a trial of its time takes more than a stack can save
