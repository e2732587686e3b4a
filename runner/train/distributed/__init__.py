"""Training on several processes: process group, data parallelism, FSDP.

Read `environment.py`, `process_group.py`, `data_parallel.py`.
"""
