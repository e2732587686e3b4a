"""Comparison of two traces, step by step: what differs first, and what else differs soon after."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.log.trace_file import RecordedTrace, StepFacts, match_bits

AFTER = ("drawn", "weights", "optimizer", "ema", "generators")  # what there is after the step


MOST_TOLD = 5  # names in one text


@dataclass(frozen=True)
class TraceDifference:
    """Difference of two traces in one fact of one step.

    Attributes:
        step: the optimizer step, from 1; 0 is before the first one.
        what: `begin`, `settings`, `order`, `batch`, `data_probe`, `weights_probe`, `loss`, `gradient_probe`, or one of
            `AFTER`.
        names: tensors, members of a batch, settings or generators that differ.
        was: the value in the first trace.
        now: the value in the second one.
    """

    step: int
    what: str
    names: tuple[str, ...] = ()
    was: Any = None
    now: Any = None


def compare_steps(before: RecordedTrace, now: RecordedTrace, first: int, last: int) -> Iterator[TraceDifference]:
    """Compare the facts of steps `first` to `last` that both traces know, in the order of a step."""
    for step in range(first, last + 1):
        yield from _compare_step(before, now, step)


def _compare_step(before: RecordedTrace, now: RecordedTrace, step: int) -> Iterator[TraceDifference]:
    old, new = before.marks.get(step, {}), now.marks.get(step, {})
    facts = before.steps.get(step), now.steps.get(step)
    if facts[0] is not None and facts[1] is not None:
        yield from _compare_facts(step, facts[0], facts[1], old.get("batch"), new.get("batch"))
    for name in AFTER:
        if (names := find_other_names(old.get(name), new.get(name))) is not None:
            yield TraceDifference(step, name, names)


def _compare_facts(step: int, was: StepFacts, now: StepFacts, batch: Any, new_batch: Any) -> Iterator[TraceDifference]:
    for name in was.settings.keys() & now.settings.keys():
        if not match_bits(was.settings[name], now.settings[name]):
            yield TraceDifference(step, "settings", (name,), was.settings[name], now.settings[name])
    yield from _compare_hashes(step, was, now, "order")
    if (names := find_other_names(batch, new_batch)) is not None:
        yield TraceDifference(step, "batch", names)
    yield from _compare_hashes(step, was, now, "data_probe", "weights_probe")
    if was.loss is not None and now.loss is not None and not match_bits(was.loss, now.loss):
        yield TraceDifference(step, "loss", (), was.loss, now.loss)
    yield from _compare_hashes(step, was, now, "gradient_probe")


def _compare_hashes(step: int, was: StepFacts, now: StepFacts, *names: str) -> Iterator[TraceDifference]:
    for name in names:
        old, new = was.hashes.get(name), now.hashes.get(name)
        if old is not None and new is not None and old != new:
            yield TraceDifference(step, name)


def compare_begins(before: RecordedTrace, now: RecordedTrace, step: int) -> Iterator[TraceDifference]:
    """Compare what training begins with at a step: weights, optimizer and generators.

    A begin after the first step is compared with the checkpoint of that step, whose state it continues.
    """
    marks, new = before.marks.get(step, {}), now.marks.get(step, {}).get("begin", {})
    begin = marks.get("begin")
    old: Mapping[str, Any] = begin if isinstance(begin, Mapping) else marks
    for name in ("weights", "optimizer", "generators"):
        if (names := find_other_names(old.get(name), new.get(name))) is not None:
            if name == "weights" and isinstance(old.get("tensors"), Mapping):
                names = find_other_names(old["tensors"], new.get("tensors"), whole=True) or ()
            yield TraceDifference(step, "begin", (name, *names))


def find_other_names(was: Any, now: Any, *, whole: bool = False) -> tuple[str, ...] | None:
    """Find the names whose hashes differ; None where nothing does, or one of the two is not known.

    With `whole`, names that only one of them has count, too.
    """
    if not was or not now:
        return None
    if not isinstance(was, Mapping) or not isinstance(now, Mapping):
        return None if was == now else ()
    names = [*was, *(name for name in now if name not in was)] if whole else [name for name in was if name in now]
    return tuple(str(name) for name in names if was.get(name) != now.get(name)) or None


def list_names(names: tuple[str, ...]) -> str:
    """List some names, with the number of the rest."""
    more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
    return ", ".join(names[:MOST_TOLD]) + more
