"""Folders of the package, defined once because `__file__` depends on where a module lies."""

import json
import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# Begins a child of this process. The package's folder stands first until it is imported: a project may have a
# `runner.py`.
BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import runner; del sys.path[0]; "


def encode_child_path() -> str:
    """Return the places that this process imports from, as BOOTSTRAP takes them."""
    return json.dumps([str(PACKAGE.parent), *(entry or os.getcwd() for entry in sys.path)])  # noqa: PTH109  text


def find_agents_page() -> Path:
    """Return the page that `help agents` prints: inside an installed package, in `docs/` of a checkout."""
    package = PACKAGE.resolve()
    inside = package / "for_agents.md"
    return inside if inside.is_file() else package.parent / "docs" / "for_agents.md"


def find_our_conf() -> Path:
    """Return the shipped config groups: inside an installed package, beside it in a checkout."""
    package = PACKAGE.resolve()
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
