"""Mistakes about a file of weights."""

from runner.core.errors import ABSENT, ConfigError, Kind, Mistake


def make_error(
    rule: str, value: object, remedy: str = "", suggestion: str = "", key: str = "path", kind: Kind = "value"
) -> ConfigError:
    """Make the error of one mistake about the file, or another `key` of `pretrained`."""
    shown = ABSENT if value is None else value
    return ConfigError([Mistake(f"pretrained.{key}", rule, shown, remedy=remedy, suggestion=suggestion, kind=kind)])


def escape_text(text: str) -> str:
    """Escape the unprintable characters of a foreign text for a message; cut it to 200 characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:200])
