"""Folders of the package, defined once because `__file__` depends on where a module lies."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


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
