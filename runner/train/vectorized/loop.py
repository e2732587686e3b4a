"""Vectorized loop: one step for all jobs of a stack; each logs, evaluates and saves by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from runner.core import rng
from runner.train import pauses
from runner.train.finite import find_non_finite
from runner.train.loss_weights import is_summed, read_kind
from runner.train.optimizer_step.accumulated import combine_outcomes, detach_small, find_weight, get_reference
from runner.train.state import Losses, Run
from runner.train.vectorized.alike import AlikeJobs
from runner.train.vectorized.batches_ahead import BatchesAhead, StackedBatch
from runner.train.vectorized.evaluation import StackEvaluation, count_together
from runner.train.vectorized.gradients import StackGradients
from runner.train.vectorized.held_saves import HeldCheckpoints, SaveClock
from runner.train.vectorized.memory import Room, refuse_large_step
from runner.train.vectorized.optimizers import StackedClipping, make_stacked_optimizer
from runner.train.vectorized.outcomes import StackOutcomes
from runner.train.vectorized.stack import Stack, UnequalJobsError, split_rows, stack_batches, suppress_rule_warnings
from runner.train.vectorized.trace import StackTraces, make_stack_trace
from runner.train.vectorized.trial import refuse_draws, try_stack

LARGE = frozenset({"output", "target"})  # outputs of a micro-batch that are not kept
Leave = Callable[[Run, Exception | None], object]
Begin = Callable[[Sequence[Run], str], object]


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


def fit_stack(
    members: Sequence[StackMember],
    numbers: Any,
    leave: Leave,
    begin: Begin = lambda _runs, _why: None,
    *,
    timed: float = 0.0,
    room: Room | None = None,
) -> None:
    """Train runs that stand at one step, each to its end or until it stops.

    Args:
        members: runs that `joining` has found nothing against.
        numbers: what differs among their modules, see `Stack`.
        leave: called as `leave(run, error)` when a job has left the stack: done, stopped, or with what it failed of.
            Its tensors are its own by then.
        begin: called as `begin(runs, why)` before the first step of all, with those that take it, and the times.
        timed: seconds that the steps of all may take, where jobs that are slower as one are refused; 0: they are not.
        room: measures the memory that their steps may take.

    Raises:
        ApartError: a trial on the first batch speaks against the stack; nothing was learnt.
        Exception: the step of all jobs failed. Those that have not left stand at their last checkpoints.
    """
    with suppress_rule_warnings():
        training = StackTraining(members, numbers, leave)
        training.begin()
        why = training.rehearse(timed=timed, room=room)
        if training.members:
            begin(training.stack.runs, why)
        while training.members:
            training.take_step()
            training.pause_where_due()


class StackTraining:
    """Training of a stack: its members and its optimizer."""

    def __init__(self, members: Sequence[StackMember], numbers: Any, leave: Leave) -> None:
        self.members, self.leave = list(members), leave
        self.watched = [(member, member.run.progress, member.run.stop) for member in self.members]
        runs = [member.run for member in members]
        first = runs[0]
        self.saves = SaveClock()
        for run in runs:
            run.trace = make_stack_trace(run.trace)
            run.checkpoints = HeldCheckpoints(run, self.saves)
        self.stack = Stack(runs, numbers)
        self.alike = AlikeJobs(runs)
        self.optimizer = make_stacked_optimizer(self.stack, self.alike)
        self.ahead, self.outcomes, self.traces = BatchesAhead(runs), StackOutcomes(), StackTraces(runs, self.alike)
        self.clip = StackedClipping(self.stack)
        self.gradients = StackGradients(self.stack)
        self.count, self.sums = first.rhythm.accumulate, is_summed(first.loss)
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
        self.drawn = rng.mark_state()
        over = [row for row, member in enumerate(self.members) if row not in failed and is_over(member.run)]
        self._part({**failed, **dict.fromkeys(over)})

    def rehearse(self, *, timed: float, room: Room | None = None) -> str:
        """Try the stack on the first batch of each job; return the times, if they are compared.

        See `memory.refuse_large_step`, `trial.try_stack`.
        """
        if not self.members:
            return ""
        batches = self._next_batches()
        if not self.members:
            return ""
        for row, member in enumerate(self.members):
            self._set_streams(row, member)
            assert member.coming is not None
            member.coming = chain([batches[row]], member.coming)
        if self.count > 1:
            batches = [batch[0] for batch in batches]
        if room is not None:
            refuse_large_step(self.stack.runs[0], batches[0], len(self.members), room)
        why = try_stack(self.stack, batches, [member.streams for member in self.members], timed=timed)
        self.evaluation = StackEvaluation(self.stack)
        self.gradients.forget()
        self.drawn = rng.mark_state()
        return why

    def _load_generator(self, row: int, member: StackMember) -> None:
        saved = member.streams
        on_gpu = self.stack.device.type == "cuda" and saved["cuda"]
        self.stack.generators[row].set_state(saved["cuda"][self.stack.device.index] if on_gpu else saved["torch"])

    def _read_streams(self, row: int, member: StackMember) -> dict[str, Any]:
        """Return the states of a job's generators."""
        state = self.stack.generators[row].get_state()
        if self.stack.device.type == "cuda":
            member.streams["cuda"][self.stack.device.index] = state
        else:
            member.streams["torch"] = state
        return member.streams

    def _set_streams(self, row: int, member: StackMember) -> None:
        """Put this process's generators where those of a job are."""
        rng.set_state(self._read_streams(row, member))

    # ---- a step

    def take_step(self) -> None:
        """Take one optimizer step of all jobs."""
        made = None
        if self.count > 1:
            self._backward_accumulated()
        else:
            made = self._backward()
        if not self.members:
            return
        self.clip()
        self.optimizer.step()
        for parameter in self.stack.parameters.values():
            parameter.grad = None
        self.alike.step()
        if made is not None:
            self.outcomes.add(*made, self.stack.runs)
        for member in self.members:
            run, progress = member.run, member.run.progress
            if run.average is not None:
                run.average.update()
            progress.step += 1
            progress.batch += 1
            if progress.batch == run.rhythm.steps_per_epoch:
                self.alike.follow()
                pauses.end_epoch(run)
                member.coming = None

    def _backward(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Compute the gradients of all jobs; return the outputs of their steps, if one is left."""
        batch, dims = self._next_stacked_batch()
        if not self.members:
            return None
        self.traces.watch(batch, dims)
        outcome, rest = self.gradients(batch, dims)
        self._check(outcome)
        return outcome, rest

    def _next_stacked_batch(self) -> StackedBatch:
        """Return the next batch of all jobs; without one where the last of them has left."""
        if not self.ahead.ready and self.ahead.can:
            first = self.members[0].run
            for member in self.members:
                if member.coming is None:
                    member.coming = self.traces.iterate_batches(member.run)
            coming = [member.coming for member in self.members if member.coming is not None]
            rest = self.ahead.take(coming, first.rhythm.steps_per_epoch - first.progress.batch)
            for member, iterator in zip(self.members, rest, strict=True):
                member.coming = iterator
        if self.ahead.ready:
            return self.ahead.ready.popleft()
        batches = self._next_batches()
        return stack_batches(batches, self.stack.device) if batches else (None, None)

    def _next_batches(self) -> list[Any]:
        """Return the next batch of each job; one whose data fails leaves."""
        batches: list[Any] = []
        failed: dict[int, Exception] = {}
        for row, member in enumerate(self.members):
            try:
                if member.coming is None:
                    member.coming = self.traces.iterate_batches(member.run)
                batches.append(next(member.coming))
            except StopIteration:
                message = "an epoch has fewer batches than it said"
                failed[row] = UnequalJobsError(message)
            except Exception as error:  # noqa: BLE001  of this job alone
                failed[row] = error
        self._part(failed)
        return batches

    def _backward_accumulated(self) -> None:
        """Compute the gradients of all jobs, of several micro-batches each."""
        batches = self._next_batches()
        if not self.members:
            return
        runs = [member.run for member in self.members]
        seen: list[list[Mapping[str, Any]]] = [[] for _ in runs]
        weights: list[list[Any]] = [[] for _ in runs]
        sums = self.sums
        for micro_batch in zip(*batches, strict=True):  # each loss is weighted as `AccumulatedStep` does
            outcome, rest = self.stack(*stack_batches(micro_batch, self.stack.device))
            self._check(outcome)
            sums = read_kind(rest, sums=self.sums)
            rows = split_rows(outcome, rest, len(runs))
            for run, own, before, given in zip(runs, rows, seen, weights, strict=True):
                given.append(1 if sums else find_weight(run.loss, own))
                for take in run.inputs["train"]:
                    take(own)
                before.append(detach_small(own, LARGE | run.losses.reserved - {"loss"}))
            shares = outcome["loss"].new_tensor([1.0 if sums else self._share(given) for given in weights])
            (outcome["loss"] * shares).sum().backward()
        if not sums:
            self._correct(weights)
        for run, outcomes, given in zip(runs, seen, weights, strict=True):
            run.losses.add(combine_outcomes(outcomes, given, sums=sums))

    def _share(self, weights: Sequence[Any]) -> float:
        """Return the factor of a micro-batch's loss, which is relative to the first."""
        return float(weights[-1]) / float(get_reference(weights)) / self.count if float(weights[-1]) > 0 else 0.0

    def _correct(self, weights: Sequence[Sequence[Any]]) -> None:
        factors = [float(get_reference(own)) * self.count / float(sum(own)) for own in weights]
        if all(factor == 1 for factor in factors):
            return
        for parameter in self.stack.parameters.values():
            if parameter.grad is not None:
                shape = (-1, *[1] * (parameter.dim() - 1))
                parameter.grad.mul_(parameter.new_tensor(factors).view(shape))

    def _check(self, outcome: dict[str, Any]) -> None:
        if outcome["loss"].shape != (len(self.members),):
            message = "the loss of a job is no scalar"
            raise UnequalJobsError(message)

    # ---- pauses

    def pause_where_due(self) -> None:
        """Let each job log, evaluate and save if that is due; those that are done or asked to stop leave."""
        due = [
            row
            for row, (member, progress, stop) in enumerate(self.watched)
            if progress.step >= member.due or stop.asked
        ]
        if not due:
            return
        self._hand_out()
        refuse_draws(self.drawn)
        failed = dict(self.outcomes.failed)
        for member in self.members:
            member.run.clock.pause()
        self.saves.decide()
        Losses.read_together([self.members[row].run.losses for row in due])
        count_together([self.members[row].run.inputs["train"] for row in due])
        if len(due) == len(self.members):
            self.evaluation.prepare()
        finite, asked = self._is_finite(), set[int]()
        for row in due:
            if self.members[row].run.stop.asked:
                asked.add(row)
            if row not in failed:
                self._act(row, failed, finite=finite)
        # Who is asked to stop while others act has not saved, or not this step.
        late = [
            row for row, member in enumerate(self.members) if member.run.stop.asked and row not in {*asked, *failed}
        ]
        for row in late:
            self._act(row, failed, finite=finite)
        self._freeze_if_due()
        self.drawn = rng.mark_state()
        acted = sorted({*due, *late} - failed.keys())
        self._part({**failed, **dict.fromkeys(row for row in acted if is_over(self.members[row].run))})
        for member in self.members:
            member.run.clock.start()

    def _act(self, row: int, failed: dict[int, Exception], *, finite: bool) -> None:
        """Let a job log, evaluate and save."""
        member, run = self.members[row], self.members[row].run
        if finite:
            run.session.finite_at = run.progress.step
        draws = may_draw(run)
        if draws:
            self._set_streams(row, member)
        run.session.streams = self._read_streams(row, member)
        self.optimizer.write_steps(row)
        run.clock.start()
        try:
            member.due = pauses.run_due_actions(run)
        except Exception as error:  # noqa: BLE001  of this job alone
            failed[row] = error
        run.clock.pause()
        run.session.evaluated.clear()
        run.session.streams = None
        if draws:  # what it has drawn the job alone would not draw again
            member.streams = rng.get_state()
            self._load_generator(row, member)

    def _is_finite(self) -> bool:
        """Return whether all weights, buffers and states of the optimizer are finite, of all jobs."""
        if any(member.run.actions for member in self.members):  # which may change them before a save
            return False
        states = {
            f"{name} {part}": state for name, parts in self.optimizer.state.items() for part, state in parts.items()
        }
        return not find_non_finite({**self.stack.parameters, **self.stack.buffers, **states})

    def _freeze_if_due(self) -> None:
        if self.members and self.members[0].run.frozen.changes:
            self.stack.freeze_as_due()
            self.gradients.forget()

    def _hand_out(self) -> None:
        """Give each job its losses, inputs of metrics, schedule and settings since the last pause."""
        self.outcomes.hand_out(self.stack.runs)
        self.traces.hand_out()
        self.alike.follow()

    def _part(self, leaving: Mapping[int, Exception | None]) -> None:
        """Let these rows leave: the stack shrinks, and each is told with its error, or finished without one."""
        if not leaving:
            return
        self._hand_out()
        leaving, self.outcomes.failed = {**self.outcomes.failed, **leaving}, {}
        gone = []
        for row in leaving:
            self._set_streams(row, self.members[row])
            self.optimizer.write_steps(row)
            gone.append(self.members[row])
        stay = [row for row in range(len(self.members)) if row not in leaving]
        self.members = [self.members[row] for row in stay]
        self.watched = [(member, member.run.progress, member.run.stop) for member in self.members]
        self.stack.keep(stay)
        self.gradients.forget()
        if stay:
            self.alike = AlikeJobs(self.stack.runs)
            self.traces = StackTraces(self.stack.runs, self.alike)
            self.optimizer.keep(stay, self.alike)
            self.ahead.keep(stay)
        for member in gone:  # all of them, while the first one ends
            if isinstance(saves := member.run.checkpoints, HeldCheckpoints):
                saves.begin_writing()
        for member, error in zip(gone, leaving.values(), strict=True):
            rng.set_state(member.streams)
            raised = error
            if raised is None:
                try:
                    pauses.finish(member.run)
                except Exception as failure:  # noqa: BLE001  of this job alone
                    raised = failure
            self.leave(member.run, raised)
        self.drawn = rng.mark_state()


def may_draw(run: Run) -> bool:
    """Return whether code of the user's runs at a pause which may draw from the generators of the process."""
    metrics = [one.metric for inputs in run.inputs.values() for one in inputs]
    return bool(run.actions) or any(type(metric).__module__ != "runner.train.metrics" for metric in metrics)


def is_over(run: Run) -> bool:
    """Return whether a run is done, or is to stop."""
    return run.progress.step >= run.rhythm.total_steps or run.stop.asked
