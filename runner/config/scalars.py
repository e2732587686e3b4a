"""Parse single values: numbers, texts, choices, durations and patterns; suggest the nearest value."""

import re
from collections.abc import Callable
from typing import Any

from runner.config import schema
from runner.config.reading import Path, Reading
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import durations

_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def read_literal(reading: Reading, choices: tuple[Any, ...], value: Any, path: Path) -> Any:
    """Parse one of several choices."""
    if value in choices and not isinstance(value, bool):
        return value
    if isinstance(value, bool) and _restore_on_off(value, choices):
        return _restore_on_off(value, choices)
    listed = ", ".join(f"`{choice}`" for choice in choices)
    right = find_nearest(str(value), map(str, choices)) or _HABITS.get(str(value).lower(), "")
    return reading.wrong(path, f"must be one of {listed}", value, right if right in choices else "")


_HABITS = {
    "float32": "fp32", "32": "fp32", "32-true": "fp32", "full": "fp32", "float": "fp32",
    "float16": "fp16", "16": "fp16", "16-mixed": "fp16", "half": "fp16", "amp": "fp16", "mixed": "fp16",
    "bfloat16": "bf16", "bf16-mixed": "bf16", "bfloat": "bf16",
    "maximum": "max", "minimum": "min", "gpu": "cuda",
}  # fmt: skip


def _restore_on_off(value: bool, choices: tuple[Any, ...]) -> str:
    """Return the choice `on` or `off` that YAML 1.1 read as a boolean; empty if it is no choice."""
    word = "on" if value else "off"
    return word if word in choices else ""


def read_boolean(reading: Reading, value: Any, path: Path, _rules: Any) -> Any:
    """Parse true or false."""
    if isinstance(value, bool):
        return value
    meant = _BOOLEANS.get(str(value).lower(), bool(value) if value in (0, 1) else None)
    return reading.wrong(path, "must be true or false", value, "" if meant is None else str(meant).lower(), kind="type")


def read_integer(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse an integer and check its range."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _check_range(reading, value, path, rules)
    return reading.wrong(path, "must be an integer", value, as_number(value, whole=True), kind="type")


def read_number(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse a number and check its range."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _check_range(reading, float(value), path, rules)
    return reading.wrong(path, "must be a number", value, as_number(value, whole=False), kind="type")


def as_number(value: Any, *, whole: bool) -> str:
    """Return the text of the number that a value nearly is; empty where it is none."""
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return ""
    if isinstance(value, bool) or number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124  NaN
        return ""
    return str(int(number)) if whole else str(number)


_RANGES: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "above": ("above", lambda value, bound: value > bound),
    "below": ("below", lambda value, bound: value < bound),
}


def _check_range(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    for rule, (words, holds) in _RANGES.items():
        if rule in rules and not holds(value, rules[rule]):
            suggestion = rules[rule] if rule in ("at_least", "at_most") else ""
            return reading.wrong(path, f"must be {words} {rules[rule]}", value, suggestion)
    return value


def read_text(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse a text and check its pattern."""
    if "like" in rules and not (isinstance(value, str) and re.fullmatch(rules["regex"], value)):
        return reading.wrong(path, f"must be like `{rules['like']}`", value)
    if not isinstance(value, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        ways = (f"{value}", f"cuda:{value}") if number else ()
        fits = next((way for way in ways if "regex" not in rules or re.fullmatch(rules["regex"], way)), "")
        suggestion = f"'{fits}'" if fits == str(value) and fits else fits
        return reading.wrong(path, "must be a text", value, suggestion, kind="type")
    if "regex" in rules and not re.fullmatch(rules["regex"], value):
        words = re.findall("[a-z]{3,}", rules["regex"]) if "|" in rules["regex"] else []
        right = _HABITS.get(value.lower(), "")
        return reading.wrong(
            path, f"must match `{rules['regex']}`", value, right if right in words else find_nearest(value, words)
        )
    return value


def read_duration(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse a duration: epochs or optimizer steps."""
    rule = "must be epochs (`5ep`, `0.5ep`) or optimizer steps (`500st`)"
    if not durations.is_duration(value):
        return reading.wrong(path, rule, value, _as_duration(value), kind="type")
    if durations.Duration.parse(value).amount == 0 and not rules.get("may_be_zero"):
        return reading.wrong(path, "must be longer than 0", value, "1" + value[-2:])
    return schema.Duration(value)


def _as_duration(value: Any) -> str:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
    if match is None or isinstance(value, bool):
        return ""
    amount, unit = match.groups()
    return f"{max(1, int(float(amount)))}st" if unit.startswith(("s", "i")) else f"{amount}ep"


def read_pattern(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse a regular expression."""
    if not isinstance(value, str):
        return read_text(reading, value, path, rules)
    try:
        re.compile(value)
    except re.error as error:
        remedy = "to match the characters themselves, escape them with a backslash"
        suggestion = "." + value if value.startswith("*") else ""
        return reading.wrong(
            path,
            f"must be a regular expression ({error})",
            value,
            suggestion,
            format_suggestion(suggestion) or remedy,
            kind="syntax",
        )
    return schema.Pattern(value)
