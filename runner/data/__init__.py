"""Data wing: datasets, splits, transforms and batches.

Read `interfaces.py`, `batches.py`, `in_memory.py`, `per_sample.py`; then `batched/`. May import `core`.
"""
