"""Tuning by trial: a learning rate and a batch size."""
