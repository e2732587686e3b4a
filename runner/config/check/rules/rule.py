"""Findings of rules, and the targets of the built-in steps."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from runner.config.reading import format_yaml
from runner.core.errors import Mistake

SUPERVISED, MINIMISE = "runner.train.steps.supervised", "runner.train.steps.minimise"
TAKE_MODEL_LOSS = "runner.train.steps.take_model_loss"


@dataclass(frozen=True)
class Finding:
    """Mistake and the keys it follows from; a mistake in one of those keys suppresses it."""

    mistake: Mistake
    follows_from: tuple[str, ...] = ()


def find_unused_settings(
    owner: str, values: Any, names: tuple[str, ...], reason: str, *follows_from: str
) -> Iterator[Finding]:
    """Yield one finding for each of the named settings that is not at its default."""
    usual = type(values)()
    for name in names:
        value, default = getattr(values, name), getattr(usual, name)
        if is_dataclass(default):
            inner = tuple(item.name for item in fields(default))
            yield from find_unused_settings(f"{owner}.{name}", value, inner, reason, *follows_from)
        elif value != default:
            text = format_yaml(default)
            remedy = f"leave it at `{text}`"
            mistake = Mistake(
                f"{owner}.{name}", f"has no effect {reason}", value, remedy=remedy, suggestion=text, kind="no-effect"
            )
            yield Finding(mistake, follows_from)
