"""Executors: where jobs run. Local slots, submitit, SLURM, Ray.

Read `choose.py`, `local.py`, `attempt.py`.
"""
