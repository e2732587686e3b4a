"""A declarative, YAML-configured experiment runner for PyTorch."""

from runner.core.shipped import install_finder

__version__ = "0.1.0"

install_finder()
