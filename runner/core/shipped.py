"""Shipped components: `models` and `datasets`, found where nobody else has a module of the name.

A clone has them at its top level. The wheel has them below `runner`: packages of these names are other people's
(Hugging Face's `datasets`, a project's own `models`), which must neither be overwritten nor hidden. They have no
`__init__.py`, so that in a clone, too, a package of that name that is installed comes first.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from runner.core.paths import PACKAGE

NAMES = ("models", "datasets")
FOLDER = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent


class ShippedFinder:
    """Finder of shipped modules; asked last, so that every other module of the same name comes first."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a shipped module; None for any other name."""
        return find_shipped(name)


def install_finder() -> None:
    """Let `import models.x` and `import datasets.x` find the shipped modules."""
    if not any(isinstance(finder, ShippedFinder) for finder in sys.meta_path):
        sys.meta_path.append(ShippedFinder())


def find_shipped(name: str) -> ModuleSpec | None:
    """Return the spec of a shipped module or package by its full name; None where there is none."""
    if name.partition(".")[0] not in NAMES:
        return None
    place = FOLDER.joinpath(*name.split("."))
    if place.with_suffix(".py").is_file():
        return importlib.util.spec_from_file_location(name, place.with_suffix(".py"))
    if (place / "__init__.py").is_file():
        return importlib.util.spec_from_file_location(
            name, place / "__init__.py", submodule_search_locations=[str(place)]
        )
    if not place.is_dir():
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    return spec


def is_shipped_file(file: str | Path | None) -> bool:
    """Return whether a module's file is one of the shipped components."""
    return file is not None and any(Path(file).resolve().is_relative_to((FOLDER / name).resolve()) for name in NAMES)


def import_shipped(name: str) -> ModuleType:
    """Import a shipped module by its full name, without importing another package that has its first name."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    first = name.partition(".")[0]
    other = sys.modules.get(first) or PathFinder.find_spec(first)
    folders = list(getattr(other, "__path__", None) or getattr(other, "submodule_search_locations", None) or ())
    if other is None or folders == [str(FOLDER / first)]:
        return importlib.import_module(name)
    spec = find_shipped(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
