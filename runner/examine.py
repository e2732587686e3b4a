"""All that can be known to be wrong with a command line: first without torch, then with it, then on a meta model."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner import torchrun
from runner.config import sweep
from runner.config.check import Check
from runner.config.compose import Composed
from runner.config.identity import replicate_id
from runner.config.schema import Config
from runner.errors import Mistake, numbered

if TYPE_CHECKING:
    from runner.preflight import Preflight

Say = Callable[[list[Mistake]], None]
MOST_ALIKE = 3  # values that break one rule in one place, of the many that `range(-1000, 0)` has


def reporter() -> Say:
    """Prints mistakes as they become known, numbered through."""
    said = 0

    def say(mistakes: list[Mistake]) -> None:
        nonlocal said
        if mistakes:
            sys.stderr.write(numbered(mistakes, start=said + 1) + "\n")
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
    from runner.preflight import preflight  # imports torch, which a mistake above need not wait for

    wrong = {mistake.key.split(".")[0] for mistake in mistakes} | {group.split("/")[0] for group in composed.unknown}
    found = preflight(checked.config, trust, wrong)
    found.notes[:0] = composed.notes
    said = {(mistake.key, mistake.where) for mistake in mistakes}
    if refused := [mistake for mistake in checked.placed(found.mistakes) if (mistake.key, mistake.where) not in said]:
        say(refused)
    return Examined(checked.config, found, [*mistakes, *refused])


def examine_sweep(
    overrides: Sequence[str],
    trust: tuple[str, ...],
    say: Say = lambda _: None,
    note: Callable[[list[str]], None] = lambda _: None,
) -> list[Mistake]:
    """Examine every job of a sweep; each mistake once. `note` gets the notes of all jobs.

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """
    plan = sweep.plan(overrides, Path.cwd(), trust)
    checks = [Check(job.composed, trust) for job in plan.to_be_checked()]
    note(sweep.notes(check.composed for check in checks))
    return examine_jobs(checks, plan.settings.processes, say)


def examine_jobs(jobs: Sequence[Check], processes: int, say: Say = lambda _: None) -> list[Mistake]:
    """Examine jobs of so many processes together; each mistake once, and no more than a few of one range or interval.

    Two that differ in nothing that is looked at are looked at once.
    """
    seen: dict[str, Mistake] = {}
    alike: Counter[tuple[str, str, str]] = Counter()

    def say_new(mistakes: list[Mistake]) -> None:
        new: dict[str, Mistake] = {}
        for mistake in mistakes:
            if str(mistake) not in seen | new:
                alike[kind := (mistake.key, mistake.rule, mistake.where)] += 1
                new |= {str(mistake): mistake} if alike[kind] <= MOST_ALIKE else {}
        seen.update(new)
        if new:
            say(list(new.values()))

    for job in jobs:  # what needs no torch is said of every job before torch is imported for the first
        say_new([*job.at_once, *job.placed(torchrun.in_a_sweep(job.config.device.parallel, processes))])
    distinct = {replicate_id(job.composed.config): job for job in reversed(jobs)}
    for job in reversed(distinct.values()):
        examine(job.composed, job.trust, say_new)
    return list(seen.values())
