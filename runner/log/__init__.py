"""Log of a run: metrics.jsonl, TensorBoard and console; hooks, profiler and evaluation views.

Read `logger.py`, then any instrument. May import `core`.
"""
