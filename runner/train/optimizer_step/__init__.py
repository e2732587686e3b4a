"""One optimizer step: backward, scaling, clipping, update; and its kinds.

Read `base.py`, then `accumulated.py`.
"""
