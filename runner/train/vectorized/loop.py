"""Vectorized loop: one step for all jobs of a stack; each logs, evaluates and saves by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.train import pauses
from runner.train.loss_weights import compute_divisor, is_summed
from runner.train.optimizer_step.accumulated import combine_outcomes
from runner.train.state import Run
from runner.train.trace import NoTrace
from runner.train.vectorized.optimizers import StackedClipping, make_stacked_optimizer
from runner.train.vectorized.stack import Stack, UnequalJobsError, ignore_slow_rules
from runner.train.vectorized.trial import refuse_draws, try_stack

Leave = Callable[[Run, Exception | None], object]


@dataclass
class StackMember:
    """Job of a stack under way.

    Attributes:
        run: with an open log.
        streams: the states of the generators of torch, NumPy and Python that the job alone would have now.
        due: the step of its next pause.
        coming: the rest of its epoch's batches; None before an epoch.
    """

    run: Run
    streams: dict[str, Any]
    due: int = 0
    coming: Iterator[Any] | None = field(default=None, repr=False)


def fit_stack(members: Sequence[StackMember], numbers: Any, leave: Leave, *, timed: bool = False) -> None:
    """Train runs that stand at one step, each to its end or until it stops.

    Args:
        members: runs that `joining` has found nothing against.
        numbers: what differs among their modules, see `Stack`.
        leave: called as `leave(run, error)` when a job has left the stack: done, stopped, or with what it failed of.
            Its tensors are its own by then.
        timed: whether jobs that are slower as one are refused.

    Raises:
        ApartError: a trial on the first batch speaks against the stack; nothing was learnt.
        Exception: the step of all jobs failed. Those that have not left stand at their last checkpoints.
    """
    with ignore_slow_rules():
        training = StackTraining(members, numbers, leave)
        training.begin()
        training.rehearse(timed=timed)
        while training.members:
            training.take_step()
            training.pause_where_due()


class StackTraining:
    """Training of a stack: its members, its optimizer, and the losses since the last pause."""

    def __init__(self, members: Sequence[StackMember], numbers: Any, leave: Leave) -> None:
        self.members, self.leave = list(members), leave
        runs = [member.run for member in members]
        first = runs[0]
        for run in runs:  # what a step computes has other bits than alone, so that a replay has nothing to compare
            run.trace = NoTrace()
            run.checkpoints.background_bytes = 0  # the disks' waits of all jobs together, while the stack trains on
        self.stack = Stack(runs, numbers)
        self.optimizer = make_stacked_optimizer(self.stack)
        self.clip = StackedClipping(self.stack)
        self.count, self.sums = first.rhythm.accumulate, is_summed(first.loss)
        self.losses: list[Tensor] = []  # [jobs], since the last pause
        self.sizes: list[int] = []
        self.drawn: dict[str, Any] = {}  # the generators of this process after the last pause

    def begin(self) -> None:
        """Prepare each job, and take the states of its generators."""
        failed: dict[int, Exception] = {}
        for row, member in enumerate(self.members):
            rng.set_state(member.streams)
            try:
                member.due = pauses.begin(member.run)
            except Exception as error:  # noqa: BLE001  of this job alone
                failed[row] = error
            member.streams = rng.get_state()
            self._load_generator(row, member)
        self._freeze_if_due()
        self.drawn = rng.get_state()
        over = [row for row, member in enumerate(self.members) if row not in failed and is_over(member.run)]
        self._part({**failed, **dict.fromkeys(over)})

    def rehearse(self, *, timed: bool) -> None:
        """Try the stack on the first batch of each job; see `trial.try_stack`."""
        if not self.members:
            return
        batches = self._next_batches()
        if not self.members:
            return
        for row, member in enumerate(self.members):
            self._set_streams(row, member)
            assert member.coming is not None
            member.coming = chain([batches[row]], member.coming)
        if self.count > 1:
            batches = [batch[0] for batch in batches]
            classes = torch.zeros(1, dtype=torch.int64, device=self.stack.device)
            if compute_divisor(self.members[0].run.loss, classes) is not None:
                message = "micro-batches have other weights than their sizes (class weights, an ignored index)"
                raise UnequalJobsError(message)
        try_stack(self.stack, batches, [member.streams for member in self.members], timed=timed)
        self.drawn = rng.get_state()

    def _load_generator(self, row: int, member: StackMember) -> None:
        saved = member.streams
        on_gpu = self.stack.device.type == "cuda" and saved["cuda"]
        self.stack.generators[row].set_state(saved["cuda"][self.stack.device.index] if on_gpu else saved["torch"])

    def _set_streams(self, row: int, member: StackMember) -> None:
        """Put this process's generators where those of a job are."""
        state = self.stack.generators[row].get_state()
        if self.stack.device.type == "cuda":
            member.streams["cuda"][self.stack.device.index] = state
        else:
            member.streams["torch"] = state
        rng.set_state(member.streams)

    # ---- a step

    def take_step(self) -> None:
        """Take one optimizer step of all jobs."""
        batches = self._next_batches()
        if not self.members:
            return
        outcome, rest = self._backward(batches)
        self.clip()
        self.optimizer.step()
        for parameter in self.stack.parameters.values():
            parameter.grad = None
        self.losses.append(outcome["loss"].detach())
        self.sizes.append(rest.get("size", 1))
        fields = [name for name in (*outcome, *rest) if name not in self.members[0].run.losses.reserved]
        for row, member in enumerate(self.members):
            run, progress = member.run, member.run.progress
            if run.average is not None:
                run.average.update()
            run.schedule.step()
            if fields:
                values = {name: outcome[name][row] if name in outcome else rest[name] for name in fields}
                run.losses.fields.add(values, self.sizes[-1])
            if self.count == 1:
                self._note(row, run, outcome, rest)
            progress.step += 1
            progress.batch += 1
            if progress.batch == run.rhythm.steps_per_epoch:
                pauses.end_epoch(run)
                member.coming = None

    def _next_batches(self) -> list[Any]:
        """Return the next batch of each job; one whose data fails leaves."""
        batches: list[Any] = []
        failed: dict[int, Exception] = {}
        for row, member in enumerate(self.members):
            try:
                if member.coming is None:
                    member.coming = pauses.iterate_batches(member.run)
                batches.append(next(member.coming))
            except StopIteration:
                message = "an epoch has fewer batches than it said"
                failed[row] = UnequalJobsError(message)
            except Exception as error:  # noqa: BLE001  of this job alone
                failed[row] = error
        self._part(failed)
        return batches

    def _backward(self, batches: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute the gradients of all jobs; return the step outputs."""
        if self.count == 1:
            outcome, rest = self.stack(batches)
            self._check(outcome)
            outcome["loss"].sum().backward()
            return outcome, rest
        outcomes: list[dict[str, Any]] = []
        first = 0
        for micro_batch in zip(*batches, strict=True):  # each loss is weighted as `AccumulatedStep` does
            outcome, rest = self.stack(micro_batch)
            self._check(outcome)
            size = rest.get("size", 1)
            first = first or size
            loss = outcome["loss"] if self.sums else outcome["loss"] / self.count
            (loss if self.sums or size == first else loss * (size / first)).sum().backward()
            for row, member in enumerate(self.members):
                self._note(row, member.run, outcome, rest)
            outcomes.append({**rest, **{name: value.detach() for name, value in outcome.items()}})
        whole = sum(outcome.get("size", 1) for outcome in outcomes)
        if whole != first * self.count and not self.sums:
            for parameter in self.stack.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(first * self.count / whole)
        return self._combine(outcomes)

    def _combine(self, outcomes: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = []
        for row in range(len(self.members)):
            own = [
                {
                    name: value[row] if isinstance(value, Tensor) else value
                    for name, value in outcome.items()
                    if name not in ("output", "target")
                }
                for outcome in outcomes
            ]
            rows.append(combine_outcomes(own, sums=self.sums))
        tensors = {
            name: torch.stack([one[name] for one in rows])
            for name, value in rows[0].items()
            if isinstance(value, Tensor)
        }
        return tensors, {name: value for name, value in rows[0].items() if name not in tensors}

    def _check(self, outcome: dict[str, Any]) -> None:
        if outcome["loss"].shape != (len(self.members),):
            message = "the loss of a job is no scalar"
            raise UnequalJobsError(message)

    def _note(self, row: int, run: Run, outcome: dict[str, Any], rest: dict[str, Any]) -> None:
        """Update a job's training metrics."""
        own = {**rest, **take_row(outcome, row)} if run.inputs["train"] else {}
        for take in run.inputs["train"]:
            take(own)

    # ---- pauses

    def pause_where_due(self) -> None:
        """Let each job log, evaluate and save if that is due; those that are done or asked to stop leave."""
        due = [
            row
            for row, member in enumerate(self.members)
            if member.run.progress.step >= member.due or member.run.stop.asked
        ]
        if not due:
            return
        refuse_draws(self.drawn)
        self._give_losses()
        failed: dict[int, Exception] = {}
        for member in self.members:
            member.run.clock.pause()
        for row in due:
            member = self.members[row]
            run = member.run
            self._set_streams(row, member)
            self.optimizer.write_steps(row)
            run.clock.start()
            try:
                member.due = pauses.run_due_actions(run)
            except Exception as error:  # noqa: BLE001  of this job alone
                failed[row] = error
            run.clock.pause()
        self._freeze_if_due()
        self.drawn = rng.get_state()
        done = [row for row in due if row not in failed and is_over(self.members[row].run)]
        self._part({**failed, **dict.fromkeys(done)})
        for member in self.members:
            member.run.clock.start()

    def _give_losses(self) -> None:
        """Give each run its losses since the last pause, with one wait for the device."""
        if self.losses:
            for row, member in enumerate(zip(*torch.stack(self.losses).double().tolist(), strict=True)):
                run = self.members[row].run
                run.losses.values += member
                run.losses.sizes += self.sizes
        self.losses, self.sizes = [], []

    def _freeze_if_due(self) -> None:
        if self.members and self.members[0].run.frozen.changes:
            self.stack.freeze_as_due()

    def _part(self, leaving: Mapping[int, Exception | None]) -> None:
        """Let these rows leave: the stack shrinks, and each is told with its error, or finished without one."""
        if not leaving:
            return
        self._give_losses()
        gone = []
        for row in leaving:
            self._set_streams(row, self.members[row])
            self.optimizer.write_steps(row)
            gone.append(self.members[row])
        stay = [row for row in range(len(self.members)) if row not in leaving]
        self.members = [self.members[row] for row in stay]
        self.stack.keep(stay)
        if stay:
            self.optimizer.keep(stay)
        for member, error in zip(gone, leaving.values(), strict=True):
            rng.set_state(member.streams)
            raised = error
            if raised is None:
                try:
                    pauses.finish(member.run)
                except Exception as failure:  # noqa: BLE001  of this job alone
                    raised = failure
            self.leave(member.run, raised)
        self.drawn = rng.get_state()


def is_over(run: Run) -> bool:
    """Return whether a run is done, or is to stop."""
    return run.progress.step >= run.rhythm.total_steps or run.stop.asked


def take_row(value: Any, row: int) -> Any:
    """Return a job's row of what a step gave: tensors, nested."""
    if isinstance(value, Tensor):
        return value[row].detach()
    if isinstance(value, dict):
        return {name: take_row(member, row) for name, member in value.items()}
    return [take_row(member, row) for member in value] if isinstance(value, list | tuple) else value
