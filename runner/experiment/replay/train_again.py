"""Training again from a record, in a temporary folder: every batch is hashed, nothing is saved."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.config.check.check import to_resolved_data
from runner.config.schema import Config, Log
from runner.core import device as devices
from runner.core import rng
from runner.core.digests import hash_batch
from runner.core.errors import RunError
from runner.experiment.builders import run as run_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.replay.comparison import TraceDifference, compare_begins, compare_steps
from runner.log.logger import NoLogger
from runner.log.trace_file import RecordedTrace
from runner.train import loop
from runner.train.broadcasting import refuse_broadcasting
from runner.train.checkpoint import ReadOnlyCheckpoints
from runner.train.finite import NonFiniteError
from runner.train.plain_state import to_plain
from runner.train.state import Run, StopReason, StopRequest
from runner.train.state_dict import change_settings, restore
from runner.train.trace import Trace, join_micro_batches

MORE_LINES = 3  # of a trace that are waited for after a difference, until one tells of the data


class FineTrace(Trace):
    """Trace of a replay, which also digests the batch of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[int, dict[str, str]] = {}

    def watch(self, coming: Iterator[Any], run: Run) -> Iterator[Any]:
        """Pass batches on, each digested before its step."""
        grouped = run.rhythm.accumulate > 1
        for batch in super().watch(coming, run):
            self.batches[run.progress.step + 1] = hash_batch(join_micro_batches(batch, grouped=grouped))
            yield batch


@dataclass
class ReplayLog(NoLogger):
    """Log of a replay, which compares each line of the trace with the record and stops after a difference.

    Attributes:
        recorded: what to compare with.
        trace: what the replay has computed.
        found: the differences so far, in their order.
        evaluated: values of evaluations, by step.
        logged: values of training, by step.
        begun: the step at which training begins.
    """

    recorded: RecordedTrace
    stop: StopRequest
    traced: RecordedTrace = field(default_factory=RecordedTrace)
    found: list[TraceDifference] = field(default_factory=list)
    evaluated_values: dict[int, dict[str, Any]] = field(default_factory=dict)
    logged_values: dict[int, dict[str, Any]] = field(default_factory=dict)
    begun: int = -1
    compared: int = 0
    lines_since: int = 0

    def trace(self, facts: Mapping[str, Any]) -> None:
        """Compare a line with the record."""
        self.traced.add(facts)
        step = facts["step"]
        if self.begun < 0:
            self.begun = self.compared = step
            self.found += compare_begins(self.recorded, self.traced, step)
            if self.found:
                self.stop.leave(StopReason.SIGNAL)
            return
        self.lines_since += bool(self.found)
        # A checkpoint adds to the line of its step, so the last step is looked at again.
        again = {(one.step, one.what) for one in self.found}
        differences = compare_steps(self.recorded, self.traced, max(self.compared, self.begun + 1), step)
        self.found += [one for one in differences if (one.step, one.what) not in again]
        self.compared = step
        is_told = "batch" in facts or self.lines_since >= MORE_LINES
        if self.found and is_told:
            self.stop.leave(StopReason.SIGNAL)

    def scalars(self, step: int, epoch: float, values: Mapping[str, Any], **_: Any) -> None:
        """Keep the values of a log line."""
        self.logged_values[step] = dict(values)

    def evaluated(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Keep the values of an evaluation."""
        self.evaluated_values[step] = self.evaluated_values.get(step, {}) | dict(values)


@dataclass
class Replayed:
    """Outcome of training again: the log, every batch's digests, and the error that ended it."""

    run: Run
    log: ReplayLog
    batches: dict[int, dict[str, str]]
    error: str = ""

    @property
    def reached(self) -> int:
        """The last step that was trained."""
        return self.run.progress.step


@contextmanager
def prepare_again(
    config: Config,
    trust: Trust,
    saved: dict[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, tuple[Any, Any]]] = {},
) -> Iterator[Run]:
    """Build a run from its config in a temporary folder, at its beginning or at a checkpoint's state.

    Torch's global settings and generators are as before afterwards. `settings` are arguments of `optimizer` and
    `scheduler` that a resume gave anew, as (old, new).

    Raises:
        RunError: data, download or device refuse.
    """
    quiet = replace(config, log=Log(every=config.log.every, mean=config.log.mean, tensorboard=False, progress=False))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replay_")))
        stack.enter_context(rng.fork_rng())
        stack.enter_context(devices.keep_precision_flags())
        stack.enter_context(refuse_broadcasting())
        run = run_builder.build(quiet, folder, to_resolved_data(config), trust)
        run.checkpoints = ReadOnlyCheckpoints(folder / "checkpoints", keep=1)
        if saved is not None:
            restore(run, to_plain(saved, copy=True), settings.get("scheduler", ()))  # training changes it in place
            change_settings(run, settings.get("optimizer", {}))
        yield run


def train_on(run: Run, recorded: RecordedTrace, until: int) -> Replayed:
    """Train a prepared run up to step `until`, and compare it with a record on the way."""
    fine, stop = FineTrace(), StopRequest()
    run.trace = fine
    run.rhythm = replace(run.rhythm, total_steps=min(run.rhythm.total_steps, until), max_seconds=None)
    log = ReplayLog(recorded, stop)
    run.start(stop, log)
    error = ""
    try:
        loop.fit(run)
    except NonFiniteError as fault:
        fine.flush(run)
        error = str(fault)
    except RunError as fault:
        error = str(fault)
    return Replayed(run, log, fine.batches, error)
