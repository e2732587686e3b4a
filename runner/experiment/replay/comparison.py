"""Comparison of two traces, step by step: what differs first, and what else differs soon after."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.log.trace_file import RecordedTrace, StepFacts, match_bits

AFTER = ("drawn", "weights", "optimizer", "ema", "generators")  # what there is after the step


OF_GENERATORS = ("drawn", "generators")


MOST_TOLD = 5  # names in one text


WITHIN = 1e-4  # of a loss, by which a step of a stack may differ from that of the job alone


NEAR_ZERO = 1e-7  # by which a number may differ that is zero but for rounding


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
    """Compare the facts of steps `first` to `last` that both traces know, in the order of a step.

    Where the first trace is of a stack, losses are compared within rounding, and weights are not compared.
    """
    for step in range(first, last + 1):
        yield from _compare_step(before, now, step, rounded=is_rounded(before, step))


def is_rounded(recorded: RecordedTrace, step: int) -> bool:
    """Return whether the numbers of a step are known within rounding alone, as in a stack and after it."""
    return recorded.stacked_after is not None and step > recorded.stacked_after


def match_numbers(one: float, other: float, *, rounded: bool) -> bool:
    """Return whether two numbers have the same bits, or those of a stack are as near as rounding."""
    return match_bits(one, other) or (rounded and math.isclose(one, other, rel_tol=WITHIN, abs_tol=NEAR_ZERO))


def _compare_step(before: RecordedTrace, now: RecordedTrace, step: int, *, rounded: bool) -> Iterator[TraceDifference]:
    old, new = before.marks.get(step, {}), now.marks.get(step, {})
    facts = before.steps.get(step), now.steps.get(step)
    if facts[0] is not None and facts[1] is not None:
        batches = old.get("batch"), new.get("batch")
        yield from _compare_facts(step, facts[0], facts[1], *batches, rounded=rounded)
    for name in AFTER if not rounded else OF_GENERATORS:
        if (names := find_other_names(old.get(name), new.get(name))) is not None:
            yield TraceDifference(step, name, names)


def _compare_facts(
    step: int, was: StepFacts, now: StepFacts, batch: Any, new_batch: Any, *, rounded: bool
) -> Iterator[TraceDifference]:
    for name in was.settings.keys() & now.settings.keys():
        if not match_bits(was.settings[name], now.settings[name]):
            yield TraceDifference(step, "settings", (name,), was.settings[name], now.settings[name])
    yield from _compare_hashes(step, was, now, "order")
    if (names := find_other_names(batch, new_batch)) is not None:
        yield TraceDifference(step, "batch", names)
    yield from _compare_hashes(step, was, now, "data_probe", *([] if rounded else ["weights_probe"]))
    if was.loss is not None and now.loss is not None and not match_numbers(was.loss, now.loss, rounded=rounded):
        yield TraceDifference(step, "loss", (), was.loss, now.loss)
    yield from _compare_hashes(step, was, now, *([] if rounded else ["gradient_probe"]))


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
