"""Patterns over names: compilation, and mistakes for patterns that match nothing."""

import difflib
import re
from collections.abc import Iterable, Sequence

from runner.core.errors import Mistake


def compile_pattern(key: str, pattern: str, mistakes: list[Mistake]) -> re.Pattern[str] | None:
    """Compile a pattern; record a mistake and return None where it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        mistakes.append(Mistake(key, f"must be a regular expression ({error})", pattern, kind="syntax"))
        return None


def find_nearest(text: str, names: Iterable[str]) -> str:
    """Return the name closest to a text or pattern; empty where none is close."""
    plain = re.sub(r"\\(.)", r"\1", text)
    return next(iter(difflib.get_close_matches(plain, list(names), n=1)), "")


def diagnose_no_match(key: str, pattern: str, names: Sequence[str], what: str) -> Mistake:
    """Return the mistake of a pattern that matches no name: misspelt, or a module's name alone.

    Args:
        key: of the pattern.
        pattern: a regular expression.
        names: what it was matched against.
        what: what they are names of: `a parameter`.
    """
    stem = re.sub(r"\\(.)", r"\1", pattern).rstrip(".*")
    near = rf"{stem}\..*".replace(".", r"\.", stem.count(".")) if any(n.startswith(f"{stem}.") for n in names) else ""
    near = near or find_nearest(pattern, names) or _find_below_nearest(stem, names)
    remedy = f"did you mean `{near}`?" if near else f"names are {', '.join(names[:8])}{', …' if names[8:] else ''}"
    return Mistake(key, f"must match {what}", pattern, remedy=remedy, suggestion=near, kind="no-match")


def _find_below_nearest(stem: str, names: Sequence[str]) -> str:
    owners = {name[:end] for name in names for end in [i for i, letter in enumerate(name) if letter == "."]}
    near = find_nearest(stem, owners)
    return rf"{near}\..*".replace(".", r"\.", near.count(".")) if near else ""
