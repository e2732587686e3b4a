"""The package's folder: `__file__` of a module names another folder once the module moves."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
