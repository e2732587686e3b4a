"""Evaluation of a split: losses, metrics, views and the objective."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.core.errors import RunError
from runner.log.artifacts import FirstArtifacts, write_artifacts
from runner.train.bn_statistics import update_statistics
from runner.train.loss_weights import compute_divisor
from runner.train.metric_inputs import find_due
from runner.train.state import Losses, Run
from runner.train.steps import needs_input_and_target
from runner.train.views import AverageOverViews


def add(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add further values by name to a log line.

    Raises:
        RunError: a name has a value already.
    """
    if twice := values.keys() & more.keys():
        names = ", ".join(f"`{name}`" for name in sorted(twice))
        raise RunError(
            f"{names} has two values: a metric and a field of the step, or two metrics, must not share a name"
        )
    values.update(more)


def add_derived(run: Run, split: str, values: dict[str, Any]) -> None:
    """Add the numbers that are derived from the values of a split."""
    for number in run.derived:
        add(values, number.compute(split, values))


def list_numbers(values: Mapping[str, Any]) -> str:
    """List the names of the numeric values."""
    return ", ".join(name for name, value in values.items() if not isinstance(value, str))


def read_objective(run: Run) -> float:
    """Return the last value of the objective; NaN if training has not logged it yet.

    Raises:
        RunError: an evaluation does not say it, or it is a word.
    """
    objective = run.objective
    value = run.progress.last.get(objective.name, math.nan)
    missing = objective.name not in run.progress.last and objective.name.partition("/")[0] in objective.evaluated
    missing = missing and not has_own_rhythm(run, objective.name)
    if missing or isinstance(value, str):
        numbers = list_numbers(run.progress.last)
        why = " (the evaluations of this step give no loss)" if run.objective.name.endswith("/loss") else ""
        raise RunError(f"train.objective: {run.objective.name} is none of the numbers there are{why}: {numbers}")
    return float(value)


def has_own_rhythm(run: Run, name: str) -> bool:
    """Return whether a value is of a metric with `every`, which not each evaluation or log line has."""
    own = {metric.name for inputs in run.inputs.values() for metric in inputs if metric.every is not None}
    for number in run.derived:
        own |= {number.name} if any(source.partition("/")[0] in own for source in number.sources.values()) else set()
    return name.partition("/")[2].partition("/")[0] in own


def list_due_metrics(run: Run) -> list[Any]:
    """List the metrics of this evaluation: those whose own rhythm is due, at the end all."""
    if run.progress.step >= run.rhythm.total_steps or run.stop.ended:
        return run.inputs["eval"]
    since, each = run.progress.evaluated_at or 0, run.rhythm.steps_per_epoch
    due = find_due(run.inputs["eval"], since, run.progress.step, each)
    return [metric for metric in run.inputs["eval"] if metric.every is None or metric in due]


def evaluate_and_show(run: Run, name: str, metrics: Sequence[Any] | None = None) -> dict[str, float] | None:
    """Evaluate a split and log its pictures and curves; `metrics` are those to compute, None for all."""
    looks = run.looks.at_evaluation(name, run.log) if run.team.rank == 0 else []
    pictures = FirstArtifacts(name)
    values = evaluate(run, name, [*looks, pictures], metrics)
    for look in looks:
        look.end()
    shown = [value for look in looks for value in look.values()] if values is not None else []
    if hidden := (values or {}).keys() & {value.tag for value in shown}:
        raise RunError(f"`{hidden.pop()}` is also the name of a picture or a curve (log): give the metric another name")
    if values is not None and run.team.rank == 0:
        write_artifacts(run.folder, run.log, run.progress.step, pictures.collected)
    if shown:
        run.log.show(run.progress.step, shown)
    return values


def evaluate(
    run: Run, name: str, looks: Sequence[Any] = (), metrics: Sequence[Any] | None = None
) -> dict[str, float] | None:
    """Return loss and metrics of a split in eval mode as `<split>/<name>`; None if a signal stops it.

    With the averaged weights, where there are any. The same every time for the same weights, and without effect on
    training: it draws from streams of its own. Every value is a mean over samples (or what the step counts by `size`),
    whatever the batch size. `metrics` are those to compute; None for all. Values that were computed with those of other
    runs are taken as they are.
    """
    if (ready := run.session.evaluated.pop(name, None)) is not None:
        return None if run.stop.reason else ready
    losses, fields = Losses(run.losses.reserved, sums=run.losses.sums), run.losses.reserved
    metrics = run.inputs["eval"] if metrics is None else metrics
    for metric in metrics:
        metric.reset()
    update_statistics(run)
    run.model.eval()
    near, far = ([look for look in looks if look.near is near] for near in (True, False))
    for look in looks:
        look.begin(run.model)
    averaged = nullcontext() if run.average is None else run.average.in_model()
    with torch.no_grad(), averaged, rng.fork_rng():
        run.team.level(run.model)
        for outcome in run.team.outcomes(evaluate_batches(run, name, near), run.splits[name], fields):
            add_outcome(run, losses, outcome)
            for take in metrics:
                take(outcome)
            for look in far:
                look.add(None, outcome)
            if run.stop.reason:
                break
    run.model.train()
    if run.stop.reason:
        return None
    values = collect_values(run, name, losses, metrics)
    said: dict[str, float] = run.team.same(values)
    return said


def collect_values(run: Run, name: str, losses: Losses, metrics: Sequence[Any]) -> dict[str, Any]:
    """Collect the values of an evaluated split: fields, loss, and metrics that saw an output."""
    values: dict[str, Any] = {f"{name}/{field}": value for field, value in losses.fields.means().items()}
    if losses.sizes:
        add(values, {f"{name}/loss": losses.mean()})
    for metric in metrics:
        if metric.updated:
            add(values, flatten_metric(f"{name}/{metric.name}", metric.compute()))
    add_derived(run, name, values)
    return values


def add_outcome(run: Run, losses: Losses, outcome: Mapping[str, Any]) -> None:
    """Add the loss of a batch, if it has one, and its fields, with their weights in the mean.

    A mean over classes with weights, or without an ignored index, counts by what it has divided by.
    """
    if outcome.get("loss") is None:
        losses.fields.add(outcome, outcome.get("size", 1))
        return
    divides = needs_input_and_target(run.step) and not losses.sums
    divisor = compute_divisor(run.loss, outcome.get("target")) if divides else None
    losses.add(outcome)
    if divisor is not None:
        losses.sizes[-1] = divisor


def evaluate_batches(run: Run, name: str, looks: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
    """Yield the step output of each batch, drawn from the batch's own stream; pass both to `looks`."""
    split = run.splits[name]
    model: Any = run.model if run.views is None else AverageOverViews(run.model, run.views)
    for number, batch in enumerate(split.batches(0)):
        rng.seed_all(rng.derive_key(run.seed, "evaluate", name, run.team.number(number)))
        outcome = run.update.evaluate(batch, model)
        for look in looks:
            look.add(batch, outcome)
        yield outcome


def flatten_metric(name: str, value: Any) -> dict[str, float]:
    """Flatten a metric's value by name: a mapping or a vector gets one name per member.

    Raises:
        RunError: it is no number, or two members have one name.
    """
    if isinstance(value, Mapping):
        members: dict[str, float] = {}
        for member, part in value.items():
            add(members, flatten_metric(f"{name}/{member}", part))
        return members
    if (isinstance(value, Tensor) and value.numel() != 1) or isinstance(value, list | tuple):
        numbers: Iterable[Any] = value.flatten().tolist() if isinstance(value, Tensor) else value
        return {f"{name}/{i}": float(number) for i, number in enumerate(numbers)}
    try:
        return {name: float(value)}
    except (TypeError, ValueError) as error:
        message = f"metric {name} gave {type(value).__name__}, which is no number"
        raise RunError(message) from error
