"""The log of a run: metrics.jsonl, TensorBoard, console; and the instruments that look inside.

Read `logger.py`, then any instrument. May import `core`.
"""
