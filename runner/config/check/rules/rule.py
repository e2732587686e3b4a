"""The finding that a rule returns, and the names of the steps that rules know."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from runner.config.parsing import yaml_text
from runner.core.errors import Mistake

SUPERVISED, MINIMISE = "runner.train.steps.supervised", "runner.train.steps.minimise"


@dataclass(frozen=True)
class Finding:
    """A mistake, and the keys that it follows from: where one of them is wrong itself, it is not reported."""

    mistake: Mistake
    follows_from: tuple[str, ...] = ()


def _idle(owner: str, values: Any, names: tuple[str, ...], reason: str, *follows_from: str) -> Iterator[Finding]:
    """One finding for each of these settings that is not at its default."""
    usual = type(values)()
    for name in names:
        value, default = getattr(values, name), getattr(usual, name)
        if is_dataclass(default):
            inner = tuple(item.name for item in fields(default))
            yield from _idle(f"{owner}.{name}", value, inner, reason, *follows_from)
        elif value != default:
            text = yaml_text(default)
            remedy = f"leave it at `{text}`"
            mistake = Mistake(f"{owner}.{name}", f"has no effect {reason}", value, remedy=remedy, suggestion=text)
            yield Finding(mistake, follows_from)
