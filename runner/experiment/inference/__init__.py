"""Inference: the trained model of a run, its predictions, and its export for elsewhere."""
