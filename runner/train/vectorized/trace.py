"""Trace of a job in a stack: losses, order and settings of each step, no hashes of weights.

It takes 1.7% of the time of 16 MLPs at batches of 32.
Weights and gradients of a stack have other bits than those of the job alone, so they are neither probed nor hashed;
a replay trains the job alone and compares its losses within a tolerance.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.core.digests import hash_tensor
from runner.core.trees import iterate_tensors
from runner.train import pauses
from runner.train.state import Run
from runner.train.trace import NoTrace, Trace, WeightProbe, take_data_probe
from runner.train.vectorized.alike import AlikeJobs
from runner.train.vectorized.held_saves import HeldCheckpoints


class NoProbe(WeightProbe):
    """Null probe: the weights of a stack are no longer where they were once a job has left it."""

    def hang(self, run: Run) -> None:
        """Take no probe."""

    def read(self) -> dict[str, list[int]]:
        """Return no hashes."""
        return {}


class StackTrace(Trace):
    """Trace of one job while it trains in a stack."""

    kind: Mapping[str, Any] = {"stacked": True}

    def __init__(self) -> None:
        super().__init__()
        self.probe = NoProbe()

    def hash_drawn(self, run: Run) -> dict[str, str]:
        """Hash the states of the job's own generators, which this process need not stand at."""
        streams = run.session.streams
        if streams is None:
            return super().hash_drawn(run)
        states = {"torch": streams["torch"]} | ({"cuda": torch.stack(streams["cuda"])} if streams["cuda"] else {})
        return {name: f"{hash_tensor(state):08x}" for name, state in states.items()}

    def save(self, run: Run, state: Mapping[str, Any]) -> None:
        """Write the facts of the steps since the last line, where the checkpoint is written, not held."""
        holds = isinstance(run.checkpoints, HeldCheckpoints) and run.checkpoints.clock.holds
        if run.stop.asked or not holds:  # at every save it would take 0.4% of the time
            self.flush(run)


def make_stack_trace(trace: NoTrace) -> NoTrace:
    """Make the trace of a run that joins a stack: none where it has none."""
    return StackTrace() if isinstance(trace, Trace) else trace


class StackTraces:
    """Traces of all jobs, which see a step once for those that are alike.

    Args:
        runs: of the stack.
        alike: which of them have the same settings.
    """

    def __init__(self, runs: Sequence[Run], alike: AlikeJobs) -> None:
        self.runs, self.alike = list(runs), alike
        self.rows: list[list[list[Any]]] = [[] for _ in alike.spans]  # settings of each step, by group of jobs
        self.traces = [(row, run.trace) for row, run in enumerate(runs) if isinstance(run.trace, StackTrace)]
        self.named_by = [  # a trace of each group knows the names of its settings once it has begun
            next((trace for row, trace in self.traces if start <= row < stop), None) for start, stop in alike.spans
        ]

    def iterate_batches(self, run: Run) -> Iterator[Any]:
        """Iterate over the rest of an epoch of a run; micro-batches are seen by its trace here."""
        coming = pauses.iterate_batches(run)
        return run.trace.watch(coming, run) if run.rhythm.accumulate > 1 else coming

    def watch(self, batch: Any, dims: Any) -> None:
        """See a stacked batch before its step."""
        if not self.traces:
            return
        for rows, run, trace in zip(self.rows, self.alike.leaders, self.named_by, strict=True):
            groups = run.optimizer.param_groups
            rows.append([groups[group][name] for group, name in trace.names] if trace is not None else [])
        for row, trace in self.traces:
            run = self.runs[row]
            if trace.data is None and run.progress.step + 1 != trace.due:
                continue
            own = take_row(batch, dims, row)
            if trace.data is not None:
                trace.data.append([take_data_probe(tensor) for tensor in iterate_tensors(own)])
            if run.progress.step + 1 == trace.due:
                trace.take(run, own)

    def hand_out(self) -> None:
        """Give each trace the settings of the steps since the last call."""
        each = self.alike.spread(self.rows)
        for row, trace in self.traces:
            trace.settings += each[row]
        for rows in self.rows:
            rows.clear()


def take_row(batch: Any, dims: Any, row: int) -> Any:
    """Take the batch of one job; what all jobs share is everybody's."""
    if isinstance(batch, Tensor):
        return batch if dims is None else batch[row]
    if isinstance(batch, Mapping):
        return {name: take_row(member, dims[name], row) for name, member in batch.items()}
    if isinstance(batch, tuple | list):
        return [take_row(member, dim, row) for member, dim in zip(batch, dims, strict=True)]
    return batch
