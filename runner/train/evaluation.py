"""Evaluation of a split: losses, metrics, views and the objective."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.core.errors import RunError
from runner.train.bn_statistics import refresh_statistics
from runner.train.state import Losses, Run


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
    if missing or isinstance(value, str):
        numbers = list_numbers(run.progress.last)
        raise RunError(f"train.objective: {run.objective.name} is none of the numbers there are: {numbers}")
    return float(value)


def evaluate_and_show(run: Run, name: str) -> dict[str, float] | None:
    """Evaluate a split and log its pictures and curves."""
    looks = run.looks.at_evaluation(name, run.log) if run.team.rank == 0 else []
    values = evaluate(run, name, looks)
    for look in looks:
        look.end()
    shown = [value for look in looks for value in look.values()] if values is not None else []
    if hidden := (values or {}).keys() & {value.tag for value in shown}:
        raise RunError(f"`{hidden.pop()}` is also the name of a picture or a curve (log): give the metric another name")
    if shown:
        run.log.show(run.progress.step, shown)
    return values


def evaluate(run: Run, name: str, looks: Sequence[Any] = ()) -> dict[str, float] | None:
    """Return loss and metrics of a split in eval mode as `<split>/<name>`; None if a signal stops it.

    With the averaged weights, where there are any. The same every time for the same weights, and without effect on
    training: it draws from streams of its own.
    """
    losses, metrics = Losses(), run.metrics["eval"]
    for metric in metrics.values():
        metric.reset()
    refresh_statistics(run)
    run.model.eval()
    near, far = ([look for look in looks if look.near is near] for near in (True, False))
    for look in looks:
        look.begin(run.model)
    averaged = nullcontext() if run.average is None else run.average.in_model()
    with torch.no_grad(), averaged, rng.fork_rng():
        run.team.level(run.model)
        for outcome in run.team.outcomes(evaluate_batches(run, name, near), run.splits[name]):
            losses.add(outcome)
            for metric in metrics.values():
                metric.update(outcome["output"], outcome["target"])
            for look in far:
                look.add(None, outcome)
            if run.stop.reason:
                break
    run.model.train()
    if run.stop.reason:
        return None
    values = {f"{name}/{field}": value for field, value in losses.fields.means().items()}
    add(values, {f"{name}/loss": losses.mean()})
    for metric_name, metric in metrics.items():
        add(values, flatten_metric(f"{name}/{metric_name}", metric.compute()))
    said: dict[str, float] = run.team.same(values)
    return said


def evaluate_batches(run: Run, name: str, looks: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
    """Yield the step output of each batch, drawn from the batch's own stream; pass both to `looks`."""
    split = run.splits[name]
    for number, batch in enumerate(split.batches(0)):
        rng.seed_all(rng.derive_key(run.seed, "evaluate", name, run.team.number(number)))
        outcome = run.update.evaluate(batch, run.model)
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
