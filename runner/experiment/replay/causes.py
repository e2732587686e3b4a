"""Cause of the first difference between a replay and its record: its phase, and the evidence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.check.check import to_resolved_data
from runner.experiment.record.state_differences import StateDifference
from runner.experiment.replay.comparison import AFTER, OF_GENERATORS, TraceDifference, list_names
from runner.experiment.replay.source import ConfigChange, ReplaySource
from runner.log.trace_file import RecordedTrace

INITIAL, ORDER, DATA, FORWARD = "initial weights", "order", "data or augmentation", "forward"


GRADIENT, OPTIMIZER, GENERATOR, EVALUATION = "gradient", "optimizer", "generator", "evaluation"


UNKNOWN = "something that the record has no trace of"


_OF_DATA, _OF_UPDATE = ("dataset", "transform", "loader"), ("optimizer", "scheduler", "param_groups")


# First words of the keys, or kinds of state, that can be behind a phase.
BEHIND: dict[str, tuple[str, ...]] = {
    INITIAL: ("seed", "model", "init", "pretrained", "freeze", "loss", "package", "dataset", "data"),
    ORDER: ("seed", *_OF_DATA, "data", "plan", "train"),
    DATA: (*_OF_DATA, "seed", "data", "plan", "package"),
    FORWARD: ("model", "loss", "step", "device", "train", "freeze", "threads", "package", "hardware", "seed"),
    GRADIENT: ("model", "loss", "step", "device", "train", "freeze", "threads", "package", "hardware"),
    OPTIMIZER: (*_OF_UPDATE, "train", "freeze", "device", "threads", "package", "hardware"),
    GENERATOR: ("seed", "model", "step", "loss", "package", *_OF_DATA),
    UNKNOWN: (
        "seed",
        "model",
        "init",
        "pretrained",
        "step",
        "loss",
        *_OF_DATA,
        *_OF_UPDATE,
        "train",
        "freeze",
        "device",
        "data",
        "plan",
        "package",
        "threads",
        "hardware",
    ),
    EVALUATION: ("metrics", *_OF_DATA, "data", "package"),
}


@dataclass
class Divergence:
    """First difference of a replay, and what is known about its cause.

    Attributes:
        step: the optimizer step; 0 is before the first one.
        phase: what of the step differs first.
        seen: what was seen to differ, in words.
        since: where the exact step is not known, the last step that is known to be the same.
        evidence: what differs between record and now that can be behind it, the most likely first.
        other: what else differs between record and now.
        differs_by_itself: whether two replays differ from each other in this step.
        operator: the operator in which they do, if it was found.
        remark: what else was noticed.
    """

    step: int
    phase: str
    seen: str
    since: int | None = None
    evidence: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    differs_by_itself: bool = False
    operator: dict[str, Any] = field(default_factory=dict)
    remark: str = ""

    def describe(self) -> str:
        """Describe the difference and its cause."""
        where = f"step {self.step:,}" if self.step else "the beginning, before step 1"
        if self.since is not None and self.since + 1 < self.step:
            where = f"steps {self.since + 1:,} to {self.step:,}"
        text = f"The first difference is at {where}: {self.phase} ({self.seen})."
        if self.operator:
            return f"{text} {describe_operator(self.operator)}"
        if self.differs_by_itself:
            return f"{text} Two replays differ from each other there, so it is not deterministic by itself."
        remark = f" {self.remark}" if self.remark else ""
        if self.evidence:
            return f"{text} Cause: {'; '.join(self.evidence)}.{remark}"
        rest = f" What differs from the record is {'; '.join(self.other)}." if self.other else ""
        return f"{text} Nothing that the record knows explains it.{rest}{remark}"


def describe_operator(operator: Mapping[str, Any]) -> str:
    """Describe the operator whose result differs in two runs of the same step."""
    module = f" in the module {operator['module']}" if operator.get("module") else ""
    line = f", {operator['line']}" if operator.get("line") else ""
    if operator.get("from_python"):
        return (
            f"Two runs of this very step differ: {operator['operator']}{module}{line} is given another number by "
            f"Python code, such as a clock, a hash or os.urandom."
        )
    backward = " (in the backward of what stands there)" if operator.get("backward") else ""
    return (
        f"Two runs of this very step differ by themselves, first in {operator['operator']}{module}{line}{backward}. "
        "device.deterministic=strict refuses operators of torch without a deterministic kernel."
    )


def find_phase(found: Sequence[TraceDifference], recorded: RecordedTrace, begun: int, data_differs: bool) -> Divergence:
    """Find the phase of the first difference, from all differences up to where the replay stopped.

    Args:
        found: in their order; not empty.
        recorded: the record.
        begun: the step that the replay began after.
        data_differs: whether the fingerprint of the training data does.
    """
    step = found[0].step
    first = {one.what: one for one in found if one.step == step}
    if "begin" in first:
        return _judge_begin([one for one in found if one.what == "begin"], step)
    if "weights_probe" in first and step - 1 > begun:
        settings = [one for one in found if one.step == step and one.what == "settings"]
        words = f"; {_list_settings(settings)} after it" if settings else ""
        seen = f"the gradient is the same, the weights after the update are not{words}"
        return Divergence(step - 1, OPTIMIZER, seen)
    if "settings" in first:
        return Divergence(step, OPTIMIZER, _list_settings([one for one in found if one.step == step]))
    if "order" in first:
        return Divergence(step, ORDER, "the step has other samples, or the same in another order")
    if "batch" in first or "data_probe" in first:
        names = first["batch"].names if "batch" in first else ()
        members = f", in its member {list_names(names)}" if names and names != ("all",) else ""
        return Divergence(step, DATA, f"the batch is another one, of the same sample indices{members}")
    if "loss" in first:
        return _judge_loss(first["loss"], found, data_differs=data_differs)
    if "weights_probe" in first:
        return Divergence(step, OPTIMIZER, "other parameters are trained")
    if "gradient_probe" in first:
        return Divergence(step, GRADIENT, "the loss is the same, the gradient is not")
    return _judge_marks(first, recorded, step, begun)


def _list_settings(found: Sequence[TraceDifference]) -> str:
    parts = [one for one in found if one.what == "settings"]
    return ", ".join(f"{one.names[0]} was {one.was:.9g}, is {one.now:.9g}" for one in parts)


def _judge_begin(parts: Sequence[TraceDifference], step: int) -> Divergence:
    names = {one.names[0]: one.names[1:] for one in parts}
    if "weights" in names:
        tensors = names["weights"]
        return Divergence(step, INITIAL, f"{list_names(tensors)} differ" if tensors else "the model's tensors differ")
    if "optimizer" in names:
        return Divergence(step, OPTIMIZER, "the state that the optimizer begins with")
    return Divergence(step, GENERATOR, f"the state of {list_names(names['generators'])} before the first step")


def _judge_loss(loss: TraceDifference, found: Sequence[TraceDifference], *, data_differs: bool) -> Divergence:
    seen = f"the loss was {loss.was:.9g}, is {loss.now:.9g}"
    members = [name for one in found if one.what == "batch" for name in one.names]
    if members:
        at = next(one.step for one in found if one.what == "batch")
        return Divergence(
            loss.step, DATA, f"{seen}; the batch of step {at:,} is another one, of the same sample indices"
        )
    if data_differs:
        return Divergence(loss.step, DATA, seen)
    if any(one.what in OF_GENERATORS for one in found):
        names = next(one.names for one in found if one.what in OF_GENERATORS)
        return Divergence(
            loss.step, GENERATOR, f"{seen}; the generator of {list_names(names)} has another state after it"
        )
    return Divergence(loss.step, FORWARD, seen)


def _judge_marks(first: Mapping[str, TraceDifference], recorded: RecordedTrace, step: int, begun: int) -> Divergence:
    what = next(name for name in (*AFTER, *first) if name in first)
    alike = OF_GENERATORS if what in OF_GENERATORS else (what,)
    known = [at for at, marks in recorded.marks.items() if begun < at < step and any(name in marks for name in alike)]
    since = max(known, default=begun)
    if what in OF_GENERATORS:
        return Divergence(step, GENERATOR, f"the state of {list_names(first[what].names)}", since)
    words = {"weights": "the weights", "optimizer": "the optimizer's state", "ema": "the average of the weights"}
    return Divergence(step, OPTIMIZER, f"{words.get(what, what)} after the update", since if what == "ema" else None)


# ---- evidence


def explain(
    finding: Divergence, source: ReplaySource, states: Sequence[StateDifference], config: Sequence[ConfigChange]
) -> None:
    """Add to a finding what differs between record and now, apart what can be behind its phase."""
    slots = map_modules(source)
    pieces = [*_weigh_config(config), *_weigh_states(states, slots)]
    _judge_again(finding, pieces)
    behind = BEHIND[finding.phase]
    ranked = [([behind.index(slot) for slot in where if slot in behind], text) for where, text in pieces]
    finding.evidence = [text for ranks, text in sorted(ranked, key=lambda one: min(one[0], default=0)) if ranks]
    finding.other = [text for ranks, text in ranked if not ranks]


def _weigh_config(changes: Sequence[ConfigChange]) -> Iterator[tuple[tuple[str, ...], str]]:
    for change in changes:
        yield (change.key.partition(".")[0],), str(change)


def _weigh_states(
    states: Sequence[StateDifference], slots: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for one in states:
        if one.kind != "code":
            yield (one.kind,), str(one)
        elif one.name != "git commit":
            own = slots.get(one.name, ())
            used = f", which {', '.join(own)} uses" if own else ""
            anywhere = ("model", "loss", "step", "dataset", "transform", "optimizer", "metrics")
            yield own or anywhere, f"{one}{used}"


def map_modules(source: ReplaySource) -> dict[str, tuple[str, ...]]:
    """Map each module that the config names to the keys that use it."""
    slots: dict[str, set[str]] = {}

    def walk(value: Any, top: str) -> None:
        if isinstance(value, Mapping):
            target = value.get("_target_", value.get("target"))
            if isinstance(target, str):
                parts = target.split(".")
                for length in range(1, len(parts)):
                    slots.setdefault(".".join(parts[:length]), set()).add(top)
            for name, member in value.items():
                walk(member, top or str(name))
        elif isinstance(value, list | tuple):
            for member in value:
                walk(member, top)

    walk(to_resolved_data(source.config), "")
    return {name: tuple(sorted(found)) for name, found in slots.items()}


def _judge_again(finding: Divergence, pieces: Sequence[tuple[tuple[str, ...], str]]) -> None:
    """Take another phase where the loss alone was seen, and all that differs points to one place."""
    where = {slot for slots, _ in pieces for slot in slots}
    if finding.phase == ORDER and "data" in where and not where & {"seed", "dataset", "loader", "train"}:
        finding.phase = DATA  # other data is split, and so drawn, in another way
    if finding.phase != FORWARD or not pieces:
        return
    if where & set(BEHIND[FORWARD]):
        return
    if where <= {*_OF_UPDATE} and finding.step > 1:
        finding.phase, finding.step = OPTIMIZER, finding.step - 1
    elif where <= {*_OF_DATA, "data", "plan"}:
        finding.phase = DATA
