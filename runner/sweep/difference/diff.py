"""Difference of two sides: the settings, the code and the rest of the state, the results."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.config.identity import WITHOUT_EFFECT
from runner.core.errors import ABSENT
from runner.core.files import to_json
from runner.experiment.record.recorded import find_differences
from runner.experiment.record.state_differences import StateDifference, find_state_differences, find_unknown_parts
from runner.log.trace_file import match_bits
from runner.sweep.difference.code import CodeDifference, compare_code
from runner.sweep.difference.sides import ComparedSide, open_side

OF_RESULT = ("status", "cause", "objective", "steps", "seconds", "steps_per_second")


@dataclass(frozen=True)
class SettingDifference:
    """Key of the config whose values differ.

    Attributes:
        key: dotted.
        a: its value in A, `ABSENT` where it has none; `b` likewise.
        place_a: file and line, or argument, that set it; empty where that is not known.
        place_b: likewise.
        has_effect: whether it can change a result.
    """

    key: str
    a: Any
    b: Any
    place_a: str
    place_b: str
    has_effect: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain data; a value that is absent is left out."""
        values = {name: value for name, value in (("a", self.a), ("b", self.b)) if value is not ABSENT}
        places = {"place_a": self.place_a or None, "place_b": self.place_b or None}
        return {"key": self.key, **values, **places, "has_effect": self.has_effect}


@dataclass(frozen=True)
class ResultDifference:
    """Value of both results, the same or not; None where one has none."""

    name: str
    a: Any
    b: Any

    @property
    def change(self) -> float | None:
        """B minus A, of two finite numbers."""
        numbers = [value for value in (self.a, self.b) if isinstance(value, int | float) and math.isfinite(value)]
        return float(numbers[1] - numbers[0]) if len(numbers) == 2 else None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"name": self.name, "a": self.a, "b": self.b, "change": self.change}


@dataclass(frozen=True)
class LossDifference:
    """Comparison of the losses of the same steps, bit by bit.

    Attributes:
        steps: how many both traces have.
        first: the first step whose losses differ; None where all are the same.
        largest: the largest difference relative to the loss in A, of finite ones; 0 where all are the same.
        largest_at: the step of it; None without one.
    """

    steps: int
    first: int | None
    largest: float = 0.0
    largest_at: int | None = None


@dataclass
class SideDifference:
    """Difference of two sides.

    Attributes:
        a: the first side, and `b` the second.
        settings: keys of the config that differ.
        code: difference of the recorded trees.
        state: differences of modules, packages, hardware, threads, data and plan.
        results: every value of the two results.
        unknown: by side, the parts that its provenance lacks.
        losses: steps whose losses both traces have, and the first one in which they differ; None without traces.
        same_weights: whether both ended with bitwise the same weights; None where that is not known.
    """

    a: ComparedSide
    b: ComparedSide
    settings: list[SettingDifference]
    code: CodeDifference
    state: list[StateDifference]
    results: list[ResultDifference]
    unknown: dict[str, list[str]]
    same_weights: bool | None
    losses: LossDifference | None = None
    files: list[Path] = field(default_factory=list)

    def list_state(self, *kinds: str) -> list[StateDifference]:
        """List the differences of some kinds."""
        return [one for one in self.state if one.kind in kinds]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        sides = {
            name: {"word": side.word, "kind": side.kind, "said": side.said, "missing": side.missing}
            for name, side in (("a", self.a), ("b", self.b))
        }
        modules = [one.as_json() for one in self.list_state("code") if one.name != "git commit"]
        return {
            **sides,
            "config": [one.as_json() for one in self.settings],
            "code": {**self.code.as_json(), "modules": modules},
            "packages": [one.as_json() for one in self.list_state("package")],
            "hardware": [one.as_json() for one in self.list_state("hardware", "threads")],
            "data": [one.as_json() for one in self.list_state("data", "plan")],
            "results": [one.as_json() for one in self.results],
            "same_weights": self.same_weights,
            "losses": None if self.losses is None else asdict(self.losses),
            "not_known": self.unknown,
            "files": [str(file) for file in self.files],
        }


def find_difference(
    words: tuple[str, str], trust: tuple[str, ...] = (), announce: Callable[[], object] = lambda: None
) -> SideDifference:
    """Find in what two runs, jobs, experiments or records differ; nothing is written.

    `announce` is called before torch is loaded, which only an experiment needs.

    Raises:
        ConfigError: a word names nothing that can be compared.
    """
    a, b = (open_side(word, name, trust, announce) for word, name in zip(words, ("A", "B"), strict=True))
    state = find_state_differences(a.provenance, b.provenance)
    if a.is_now or b.is_now:  # it has imported what a check needs, and no more
        state = [one for one in state if one.kind != "code" or (one.was is not None and one.now is not None)]
    weights = [side.result.get("weights_sha256") for side in (a, b)]
    return SideDifference(
        a,
        b,
        _compare_settings(a, b),
        compare_code(a.provenance, b.provenance, Path.cwd()),
        state,
        _compare_results(a, b),
        {name: find_unknown_parts(side.provenance) for name, side in (("a", a), ("b", b))},
        weights[0] == weights[1] if all(weights) else None,
        _compare_losses(a, b),
    )


def _compare_settings(a: ComparedSide, b: ComparedSide) -> list[SettingDifference]:
    if not a.config or not b.config:
        return []
    found = []
    for keys, was, now in find_differences(a.config, b.config):
        key = ".".join(keys)
        has_effect = not any(".".join(keys[:length]) in WITHOUT_EFFECT for length in range(1, len(keys) + 1))
        place_a = "" if was is ABSENT else a.find_place(keys, was)
        place_b = "" if now is ABSENT else b.find_place(keys, now)
        found.append(SettingDifference(key, was, now, place_a, place_b, has_effect))
    return found


def _compare_results(a: ComparedSide, b: ComparedSide) -> list[ResultDifference]:
    if not a.result and not b.result:
        return []
    sides = [_list_results(side.result) for side in (a, b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    return [ResultDifference(name, sides[0].get(name), sides[1].get(name)) for name in names]


def _compare_losses(a: ComparedSide, b: ComparedSide) -> LossDifference | None:
    steps = sorted(a.losses.keys() & b.losses.keys())
    if not steps:
        return None
    first = next((n for n in steps if not match_bits(a.losses[n], b.losses[n])), None)
    sizes = {n: _compute_relative(a.losses[n], b.losses[n]) for n in steps if first is not None and n >= first}
    finite = {n: size for n, size in sizes.items() if math.isfinite(size)}
    at = max(finite, key=finite.__getitem__, default=None)
    return LossDifference(len(steps), first, 0.0 if at is None else finite[at], at)


def _compute_relative(was: float, now: float) -> float:
    """Compute how much a number differs from what it was, relative to it."""
    if match_bits(was, now):
        return 0.0
    return abs(now - was) / abs(was) if was else math.inf


def _list_results(result: dict[str, Any]) -> dict[str, Any]:
    """List the values of a result that are shown: status, objective, metrics, those of the best, speed."""
    found = {name: result[name] for name in OF_RESULT if _is_plain(result.get(name))}
    for part in ("train", "metrics"):
        values = result.get(part)
        found |= {str(k): v for k, v in values.items() if _is_plain(v)} if isinstance(values, dict) else {}
    best = result.get("best")
    if isinstance(best, dict):
        values = best.get("metrics")
        found |= {"best.step": best["step"]} if _is_plain(best.get("step")) else {}
        found |= {f"best.{k}": v for k, v in values.items() if _is_plain(v)} if isinstance(values, dict) else {}
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def write_value(value: Any) -> str:
    """Write a value of a config in one line; `absent` where there is none."""
    return "absent" if value is ABSENT else to_json(value) if not isinstance(value, str) else value
