"""A declarative, YAML-configured experiment runner for PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from runner.core.shipped import install_finder

if TYPE_CHECKING:
    from runner.cli.python_api import check, compose, load, multirun, report, resume, run
    from runner.core.errors import ConfigError, RunError

__version__ = "0.1.0"
__all__ = ["ConfigError", "RunError", "check", "compose", "load", "multirun", "report", "resume", "run"]

install_finder()


def __getattr__(name: str) -> Any:
    """Import a function of the Python API when it is first asked for; this package alone is cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "runner.core.errors" if name.endswith("Error") else "runner.cli.python_api"
    return getattr(importlib.import_module(place), name)


def __dir__() -> list[str]:
    """List the Python API."""
    return sorted([*globals(), *__all__])
