"""Tuning by trial runs: LR range test and batch size search."""
