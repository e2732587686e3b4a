"""Examination of a command line: checks without torch, checks with torch, a preflight on meta."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.check.check import Check
from runner.config.composed import Composed
from runner.config.schema import Config
from runner.core import event_stream
from runner.core.collection import pause_collection
from runner.core.errors import ConfigError, Mistake, format_count, format_mistakes

if TYPE_CHECKING:
    from runner.experiment.preflight.report import Preflight


Say = Callable[[list[Mistake]], None]


def make_reporter() -> Say:
    """Make a function that prints mistakes to stderr, numbered on from call to call."""
    said = 0

    def say(mistakes: list[Mistake]) -> None:
        nonlocal said
        if mistakes:
            sys.stderr.write(format_mistakes(mistakes, start=said + 1) + "\n")
            sys.stderr.flush()
        said += len(mistakes)

    return say


def report_count(mistakes: list[Mistake]) -> None:
    """Print how many mistakes were reported, and give all of them to the last event."""
    sys.stderr.write(f"{format_count(len(mistakes))}\n")
    event_stream.record_outcome({"mistakes": [mistake.as_json() for mistake in mistakes], "count": len(mistakes)})


@dataclass(frozen=True)
class Examination:
    """Result of an examination: the config (valid without mistakes), the preflight, the mistakes."""

    config: Config
    found: "Preflight"
    mistakes: list[Mistake]


def examine(composed: Composed, trust: tuple[str, ...], say: Say = lambda _: None) -> Examination:
    """Check and preflight one composition; pass each stage's mistakes to `say` at once."""
    checked = Check(composed, trust)
    mistakes = list(checked.at_once)
    say(mistakes)
    if more := checked.by_import():
        say(more)
        mistakes += more
    with pause_collection():
        from runner.experiment.preflight.preflight import (
            run_preflight,  # imports torch, which a mistake above need not wait for
        )

    wrong = {mistake.key.split(".")[0] for mistake in mistakes} | {group.split("/")[0] for group in composed.unknown}
    found = run_preflight(checked.config, trust, wrong | checked.wrong_components)
    found.notes[:0] = [*composed.notes, *checked.notes]
    said = {(mistake.key, mistake.where) for mistake in mistakes}
    if refused := [mistake for mistake in checked.placed(found.mistakes) if (mistake.key, mistake.where) not in said]:
        say(refused)
    return Examination(checked.config, found, [*mistakes, *refused])


def require_valid(composed: Composed, trust: tuple[str, ...]) -> Examination:
    """Examine one composition.

    Raises:
        ConfigError: every mistake of it.
    """
    examined = examine(composed, trust)
    if examined.mistakes:
        raise ConfigError(examined.mistakes)
    return examined
