"""Inputs of metrics: parts of a step's outcome, and when; numbers derived from metrics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from runner.core.durations import Duration, compute_next_due
from runner.core.errors import RunError
from runner.core.expression import Expression
from runner.core.trees import map_in_kind
from runner.train.step_outputs import NO_NUMBERS, RESERVED, is_weighted

ABSENT: Any = object()
Place = str | int


@dataclass
class MetricInput:
    """Input of a metric: parts of an outcome, by default its `output` and its `target`.

    A part is named by a dotted path (`depth`, `boxes.0`). It begins in the outcome's `output` (or `target`), or with
    the name of one of the outcome's own fields.

    Attributes:
        name: of the metric.
        metric: has `update`, `compute` and `reset`.
        output: path of the first argument of `update`; None for the whole output.
        target: path of the second one; None for the whole target.
        alone: whether `update` gets no target.
        every: rhythm of its value; None for that of the log lines or evaluations.
        updated: whether it has seen an output since its last reset; without one it has no value.
    """

    name: str
    metric: Any
    output: Place | None = None
    target: Place | None = None
    alone: bool = False
    every: Duration | None = None
    updated: bool = False

    def __post_init__(self) -> None:
        self.whole = self.output is None and self.target is None and not self.alone

    def __call__(self, outcome: Mapping[str, Any]) -> None:
        """Update the metric, unless the step gave no output."""
        if self.whole and "output" in outcome and "target" in outcome:  # 1.7 µs less than what follows
            output = outcome["output"]
            given: tuple[Any, ...] = (output.detach() if type(output) is Tensor else detach(output), outcome["target"])
            self.metric.update(*given)
            self.updated = True
            return
        for given in self.select(outcome):
            self.metric.update(*given)
            self.updated = True

    def compute(self) -> Any:
        """Return the metric's value."""
        return self.metric.compute()

    def reset(self) -> None:
        """Reset the metric."""
        self.metric.reset()
        self.updated = False

    def select(self, outcome: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Yield the arguments of `update`, or nothing where the step gave no output.

        Raises:
            RunError: the outcome has no such part, or two.
        """
        if self.output is None and "output" not in outcome:
            return
        output = outcome["output"] if self.output is None else self._find("output", self.output, outcome)
        if output is ABSENT:
            return
        if self.alone:
            yield (detach(output),)
            return
        if self.target is None and "target" not in outcome:
            names = ", ".join(f"`{name}`" for name in outcome)
            rule = "the step gives an output and no `target`"
            raise RunError(f"metrics.{self.name}: {rule} ({names}); `target: null` updates it with the output alone")
        target = outcome["target"] if self.target is None else self._find("target", self.target, outcome)
        if target is ABSENT:
            raise RunError(describe_unknown(f"metrics.{self.name}.target", "target", self.target, outcome))
        yield detach(output), target

    def _find(self, field: str, place: Place, outcome: Mapping[str, Any]) -> Any:
        """Find a part of an outcome; ABSENT where the outcome has nothing that a metric could get."""
        found = find_part(f"metrics.{self.name}.{field}", field, place, outcome)
        if found is ABSENT and has_parts(outcome):
            raise RunError(describe_unknown(f"metrics.{self.name}.{field}", field, place, outcome))
        return found


def find_part(key: str, field: str, place: Place, outcome: Mapping[str, Any]) -> Any:
    """Find the part of an outcome at a path, below `field` or from the top; ABSENT where there is none.

    Raises:
        RunError: both have it.
    """
    path = str(place).split(".")
    inner = _follow(outcome.get(field, ABSENT), path)
    outer = ABSENT if isinstance(place, int) else _follow(outcome, path)
    if inner is not ABSENT and outer is not ABSENT and inner is not outer:
        rule = f"means two things: the step's `{field}` has `{place}`, and the step itself has"
        raise RunError(f"{key}={place} {rule}; write `{field}.{place}` for the former, or name them differently")
    return outer if inner is ABSENT else inner


def _follow(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(value, Mapping):
            value = value[part] if part in value else value.get(int(part), ABSENT) if part.isdigit() else ABSENT
        elif isinstance(value, tuple) and part in getattr(value, "_fields", ()):
            value = getattr(value, part)
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return value


def has_parts(outcome: Mapping[str, Any]) -> bool:
    """Return whether an outcome has an output, or a field that is no plain number or text."""
    known = RESERVED | NO_NUMBERS
    return "output" in outcome or any(not _is_plain(outcome[name]) for name in outcome.keys() - known)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, str | Real) or is_weighted(value)


def list_parts(field: str, outcome: Mapping[str, Any]) -> list[str]:
    """List the paths that a metric's `output` or `target` may have."""
    inner = outcome.get(field)
    names = [*_list_paths(inner)] if isinstance(inner, Mapping | list | tuple) else []
    return [*names, *(name for name in outcome if name not in (*NO_NUMBERS, "size"))]


def _list_paths(value: Any, depth: int = 2) -> Iterator[str]:
    fields = getattr(value, "_fields", None)
    members = value.items() if isinstance(value, Mapping) else zip(fields or range(len(value)), value, strict=True)
    for _, (name, member) in zip(range(20), members, strict=False):
        yield str(name)
        if depth > 1 and isinstance(member, Mapping):
            yield from (f"{name}.{inner}" for inner in _list_paths(member, depth - 1))


def describe_unknown(key: str, field: str, place: Place | None, outcome: Mapping[str, Any]) -> str:
    """Describe a path that an outcome does not have, with those that it has."""
    known = ", ".join(f"`{name}`" for name in list_parts(field, outcome))
    return f"{key}: the step gives no `{field if place is None else place}`; there are {known}"


def detach(value: Any) -> Any:
    """Detach all tensors of an output."""
    return value.detach() if isinstance(value, Tensor) else map_in_kind(Tensor.detach, value)


def list_fields(inputs: Sequence[MetricInput]) -> frozenset[str]:
    """List the first names of all paths: an outcome's fields of these names are not logged."""
    places = [place for one in inputs for place in (one.output, one.target) if isinstance(place, str)]
    return frozenset(place.partition(".")[0] for place in places)


def find_due(inputs: Sequence[MetricInput], since: int, step: int, steps_per_epoch: int) -> list[MetricInput]:
    """Find the metrics with a rhythm of their own that is due after `since`, up to `step`."""
    due = []
    for one in inputs:
        then = compute_next_due(one.every, since, steps_per_epoch)
        if then is not None and then <= step:
            due.append(one)
    return due


@dataclass(frozen=True)
class DerivedNumber:
    """Number computed from others of the same split: perplexity, the exponential of the mean loss."""

    name: str
    sources: Mapping[str, str]  # name in the expression → name of a value, without its split
    expression: Expression

    def compute(self, split: str, values: Mapping[str, Any]) -> dict[str, float]:
        """Return its value as `<split>/<name>`; nothing where a source has no number."""
        found = {name: values.get(f"{split}/{source}") for name, source in self.sources.items()}
        numbers = {name: float(value) for name, value in found.items() if isinstance(value, Real)}
        return {f"{split}/{self.name}": self.expression.compute(numbers)} if len(numbers) == len(found) else {}
