"""Folder of the package, defined once because `__file__` depends on where a module lies."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
