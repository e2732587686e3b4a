"""Result of parsing: the mistakes, and every component with its slot."""

from dataclasses import dataclass, field
from typing import Any

from runner.config.suggestions import format_suggestion
from runner.core.errors import ABSENT, Kind, Mistake

Path = tuple[str | int, ...]


INVALID: Any = object()


UNKNOWN_KEY = "is not a key that the runner knows"


@dataclass
class Reading:
    """Result of parsing: mistakes with their paths, and every component with its slot."""

    mistakes: list[tuple[Path, Mistake]] = field(default_factory=list)
    components: list[tuple[Path, str, dict[str, Any]]] = field(default_factory=list)

    def wrong(
        self,
        path: Path,
        rule: str,
        value: object = ABSENT,
        suggestion: object = "",
        remedy: str = "",
        kind: Kind = "value",
    ) -> Any:
        """Record a mistake; return the marker of an invalid value."""
        text = str(suggestion)
        remedy = remedy or format_suggestion(text)
        mistake = Mistake(format_key(path), rule, value, remedy=remedy, suggestion=text, kind=kind)
        self.mistakes.append((path, mistake))
        return INVALID


def format_key(path: Path) -> str:
    """Join a path to a dotted key."""
    return ".".join(map(str, path))


def format_yaml(value: object) -> str:
    """Format a plain value as YAML writes it."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )
