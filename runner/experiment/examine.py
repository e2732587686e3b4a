"""All that can be known to be wrong with a command line: first without torch, then with it, then on a meta model."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.check.check import Check
from runner.config.hydra_loader import Composed
from runner.config.schema import Config
from runner.core.errors import Mistake, format_mistakes

if TYPE_CHECKING:
    from runner.experiment.preflight.report import Preflight


Say = Callable[[list[Mistake]], None]


def reporter() -> Say:
    """Prints mistakes as they become known, numbered through."""
    said = 0

    def say(mistakes: list[Mistake]) -> None:
        nonlocal said
        if mistakes:
            sys.stderr.write(format_mistakes(mistakes, start=said + 1) + "\n")
            sys.stderr.flush()
        said += len(mistakes)

    return say


@dataclass(frozen=True)
class Examined:
    """A config, meaningful where there are no mistakes, and what the preflight found."""

    config: Config
    found: "Preflight"
    mistakes: list[Mistake]


def examine(composed: Composed, trust: tuple[str, ...], say: Say = lambda _: None) -> Examined:
    """Check and preflight one composition; `say` gets each stage's mistakes as soon as they are known."""
    checked = Check(composed, trust)
    mistakes = list(checked.at_once)
    say(mistakes)
    if more := checked.by_import():
        say(more)
        mistakes += more
    from runner.experiment.preflight.preflight import (
        preflight,  # imports torch, which a mistake above need not wait for
    )

    wrong = {mistake.key.split(".")[0] for mistake in mistakes} | {group.split("/")[0] for group in composed.unknown}
    found = preflight(checked.config, trust, wrong)
    found.notes[:0] = [*composed.notes, *checked.notes]
    said = {(mistake.key, mistake.where) for mistake in mistakes}
    if refused := [mistake for mistake in checked.placed(found.mistakes) if (mistake.key, mistake.where) not in said]:
        say(refused)
    return Examined(checked.config, found, [*mistakes, *refused])
