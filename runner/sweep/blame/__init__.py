"""Blame: short runs of mixtures of two configs show which settings explain the gap between them."""
