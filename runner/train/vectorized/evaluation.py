"""Evaluation of a stack: losses and metrics of all jobs at once, before each job takes its own.

The evaluation after the last step is left to each job, so that `evaluate` of its last checkpoint gives the same bits.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.core.copies import copy_owned
from runner.core.trees import map_in_kind
from runner.train.evaluation import add_outcome, collect_values
from runner.train.metrics import Accuracy
from runner.train.pauses import will_evaluate
from runner.train.state import Losses, Run
from runner.train.vectorized.jobs_tensor import NoRuleError
from runner.train.vectorized.stack import Stack, UnequalJobsError, split_rows, stack_batches
from runner.train.vectorized.vmap_rules import LAYOUTS

MOST_BYTES = 64_000_000  # of the outputs of a split, for all jobs
TOLERANCE = 1e-4  # of the first loss, beside that of a job alone


class StackEvaluation:
    """Evaluations of all jobs of a stack, as long as each of them can be computed with the others.

    Attributes:
        off: why not; empty while they can.
        kept: batches of a split that is the same for all jobs, and never changes.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.off = "" if stack.direct else "torch.vmap costs more than it gains"
        self.kept: dict[str, list[Any]] = {}
        self.tried = False

    def prepare(self) -> None:
        """Give each run the values of the splits that it evaluates at this pause, if all of them do."""
        if self.off or not all(map(can_join, self.stack.runs)) or len(self.stack) < 2:
            return
        first = self.stack.runs[0]
        if any(run.objective.evaluated != first.objective.evaluated for run in self.stack.runs):
            return
        with torch.no_grad(), rng.fork_rng():
            before = torch.get_rng_state()
            buffers = {} if self.tried else {name: buffer.clone() for name, buffer in self.stack.buffers.items()}
            for name in first.objective.evaluated:
                try:
                    self._compute(name)
                except Exception as error:  # noqa: BLE001  whatever it is, each job says it for itself
                    self.off = f"{type(error).__name__}: {error}"
                if not torch.equal(before, torch.get_rng_state()):
                    self.off = "it draws from torch's generator"
            for name, buffer in buffers.items() if self.off else ():
                self.stack.buffers[name].copy_(buffer)
        if self.off:
            for run in self.stack.runs:
                run.session.evaluated.clear()

    def _compute(self, name: str) -> None:
        runs, size = self.stack.runs, 0
        losses = [Losses(run.losses.reserved, sums=run.losses.sums) for run in runs]
        for run in runs:
            for metric in run.inputs["eval"]:
                metric.reset()
        for batch, dims in self._iterate_batches(name):
            outcome, rest = self.stack.evaluate(batch, dims)
            if not self.tried:
                self._compare(name, outcome)
            size += sum(value.nbytes for value in outcome.values())
            if size > MOST_BYTES:
                message = "the outputs of all jobs are large"
                raise NoRuleError(message)
            for run, own, row in zip(runs, losses, split_rows(outcome, rest, len(runs)), strict=True):
                add_outcome(run, own, row)
                for take in run.inputs["eval"]:
                    take(row)
        Losses.read_together(losses)
        count_together([run.inputs["eval"] for run in runs])
        for run, own in zip(runs, losses, strict=True):
            run.session.evaluated[name] = collect_values(run, name, own, run.inputs["eval"])

    def _iterate_batches(self, name: str) -> Any:
        """Yield the batches of all jobs with their dimensions: one for all where they are the same."""
        if name not in self.kept and all(getattr(run.splits[name], "unchanging", None) for run in self.stack.runs):
            each = [getattr(run.splits[name], "unchanging", []) for run in self.stack.runs]
            if all(is_same(each[0], other) for other in each[1:]):
                self.kept[name] = [map_in_kind(adjust_strides, batch) for batch in each[0]]
        if name in self.kept:
            for batch in self.kept[name]:
                yield copy_owned(batch), share(batch)
            return
        for batches in zip(*(run.splits[name].batches(0) for run in self.stack.runs), strict=True):
            yield stack_batches(batches, self.stack.device)

    def _compare(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Compare the first loss of a job with that of the job alone."""
        self.tried = True
        run = self.stack.runs[-1]
        run.model.eval()
        alone = run.update.evaluate(next(iter(run.splits[name].batches(0))), run.model)
        run.model.train()
        loss, other = float(outcome["loss"][-1]), float(alone["loss"])
        if not abs(loss - other) <= TOLERANCE * (1 + abs(other)) and not math.isnan(other):
            message = f"the loss of {name} is {loss:.6g} in a stack and {other:.6g} alone"
            raise UnequalJobsError(message)


def can_join(run: Run) -> bool:
    """Return whether a run evaluates at this pause, before its last step, what its model alone computes."""
    return (
        will_evaluate(run)
        and run.average is None
        and run.views is None
        and run.looks.evaluation is None
        and run.config["device"]["precision"] == "fp32"
        and all(metric.every is None for metric in run.inputs["eval"])
    )


def count_together(inputs: Sequence[Sequence[Any]]) -> None:
    """Count what waits in the metrics of all jobs, where these can count together."""
    for column in zip(*inputs, strict=True):
        metrics = [each.metric for each in column]
        if all(type(metric) is Accuracy for metric in metrics):
            with suppress(Exception):  # what is wrong each job says for itself
                Accuracy.count_together(metrics)


def is_same(one: Any, other: Any) -> bool:
    """Return whether two batches have the same tensors, nested."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def adjust_strides(images: Tensor) -> Tensor:
    """Return images of one channel with the strides of channels_last, which their numbers have either way.

    A convolution takes them for contiguous ones else, and gives the images of all jobs in that format: the next layers
    then take 2.5 times as long (51 ms instead of 20 for 359 digits and 16 small CNNs).
    """
    layout = LAYOUTS.get(images.dim())
    if layout is None or images.shape[1] != 1 or not images.is_contiguous():
        return images
    return images.as_strided(images.shape, torch.empty(images.shape, device="meta", memory_format=layout).stride())


def share(batch: Any) -> Any:
    """Return the dimensions of a batch that has none for the jobs."""
    if isinstance(batch, Mapping):
        return {name: share(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        members = [share(value) for value in batch]
        return type(batch)(*members) if hasattr(batch, "_fields") else type(batch)(members)
    return None
