"""Training of several jobs as one stack: records are opened, all train together, each ends by itself."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TextIO

import torch

from runner.core import device as devices
from runner.core import rng
from runner.core.errors import ConfigError, RunError
from runner.core.escape import make_printable
from runner.core.exit_status import EXIT_FAILED
from runner.core.files import write_gathered, write_json, write_together
from runner.core.lock import Lock
from runner.core.shared_answers import share_answers
from runner.experiment.finish import finish
from runner.experiment.record.result import make_empty_result
from runner.experiment.record.stacked import SWITCH
from runner.experiment.run import (
    RunRecord,
    RunTask,
    close_record,
    describe_out_of_memory,
    open_record,
    record_error,
    train_recorded,
)
from runner.experiment.signals import handle_stop_signals
from runner.log.logger import LogFile, suppress_console_errors
from runner.log.tracking import TrackerProcess, wait_for_trackers
from runner.train import oom
from runner.train.broadcasting import refuse_broadcasting
from runner.train.finite import NonFiniteError
from runner.train.single_process import SINGLE_PROCESS
from runner.train.state import Run, StopRequest
from runner.train.vectorized.alike import sort_alike
from runner.train.vectorized.joining import explain_apart, find_difference
from runner.train.vectorized.loop import StackMember, fit_stack
from runner.train.vectorized.memory import Room, TooLargeError, refuse_large
from runner.train.vectorized.trial import ApartError, refuse_short, try_copies

Tell = Callable[["StackJob | None", str], object]


@dataclass
class StackJob:
    """Job of a stack: its task, where its console output goes, and, while it trains, its record."""

    task: RunTask
    output: TextIO
    lock: Lock | None = None
    record: RunRecord | None = None
    streams: dict[str, Any] = field(default_factory=dict)
    fault: NonFiniteError | None = None  # to be answered by training on alone
    status: int | None = None  # of its end
    apart: str = ""  # why it is left to train alone
    trackers: list[TrackerProcess] = field(default_factory=list)  # that know its end
    fits: int = 0  # jobs that the memory holds together, where that is the reason

    @property
    def run(self) -> Run:
        """The run of an open record."""
        assert self.record is not None
        assert self.record.run is not None
        return self.record.run


class StopRequests(StopRequest):
    """Stop request of a process that passes each signal on to all of its jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.members: list[StopRequest] = []

    def on_signal(self, number: int) -> None:
        """Record a signal's number for every job."""
        super().on_signal(number)
        for member in self.members:
            member.on_signal(number)


def train_stack(
    jobs: Iterable[StackJob],
    *,
    count: int = 2,
    timed: float = 0.0,
    room: Room | None = None,
    tell: Tell = lambda _job, _why: None,
) -> None:
    """Train jobs as one stack; each gets its `status`, or in `apart` the reason why it is to train alone.

    A job that fails, is done, or is stopped ends as it would alone, and the others go on. What only concerns the stack
    (a model that cannot be mapped, memory) ends nothing: those jobs stand at their last checkpoints, without a result.

    Args:
        jobs: the first is tried before the second is asked for.
        count: how many they are, at most.
        timed: seconds that the steps of all may take, where jobs that would be slower as one are left alone; 0: nobody
            looks at the clock. A first job that is left so trains on here, alone, and the others are not asked for.
        room: measures the memory for them; those that would not fit are left alone.
        tell: called with None where the jobs train as one, and else with the job that goes on; and why.
    """
    stop = StopRequests()
    opened: list[StackJob] = []
    with (
        contextlib.ExitStack() as held,
        handle_stop_signals(stop),
        devices.keep_precision_flags(),
        suppress_console_errors(),
        refuse_broadcasting(),
    ):
        held.callback(wait_for_all_trackers, opened)
        held.callback(close_open_jobs, opened)
        timed, refused = open_jobs(iter(jobs), opened, stop, count, timed=timed, room=room, tell=tell)
        if refused is not None:
            answer_refusal(opened[0], refused, goes_on=bool(timed), tell=tell)
            return
        together, numbers = choose_members([job for job in opened if job.status is None and not job.apart])
        if together:
            train_together(together, numbers, timed=timed, room=room, tell=tell)
        for job in opened:
            if job.fault is not None:
                train_on_alone(job)


def open_job(job: StackJob, stop: StopRequests) -> None:
    """Open the record of a job as `run.launch` does; one that cannot continue is left alone."""
    job.lock = Lock(job.task.folder)
    job.record = RunRecord(job.task, StopRequest(), SINGLE_PROCESS, make_empty_result())
    if stop.asked:
        job.record.stop.on_signal(stop.came)
    stop.members.append(job.record.stop)
    with redirect(job):
        try:
            open_record(job.record)
            job.streams = rng.get_state()
            keep_trackers(job)
        except Exception as error:  # noqa: BLE001  of this job alone
            if isinstance(error, ConfigError) or not job.record.stands:
                job.apart = "it cannot go on as it was recorded"
                return
            record_error(job.record, error)
            end_job(job, EXIT_FAILED)
            write_gathered()


def open_jobs(
    coming: Iterator[StackJob],
    opened: list[StackJob],
    stop: StopRequests,
    count: int,
    *,
    timed: float,
    room: Room | None,
    tell: Tell,
) -> tuple[float, Exception | None]:
    """Open the records of jobs, after a trial of the first.

    Returns:
        `timed`, 0 where times were compared; and what speaks against all jobs, of which only the first is open then.
    """
    with share_answers():
        opened += islice(coming, 1)
        if opened and (timed or room is not None):
            why, refused = try_first(opened[0], stop, count, timed=timed, room=room)
            if refused is not None:
                return timed, refused
            if why:
                timed = 0.0
                tell(None, why)
        opened += coming
        with write_together():
            for job in opened:
                if job.record is None and not job.apart:
                    open_job(job, stop)
    return timed, None


def try_first(
    first: StackJob, stop: StopRequests, count: int, *, timed: float, room: Room | None
) -> tuple[str, Exception | None]:
    """Try the first job before the others are opened; return the times if they were compared.

    Second comes what speaks against all jobs: the memory does not hold them, or copies of the first are slower as one.
    """
    open_job(first, stop)
    if first.status is not None or first.apart:
        return "", None
    reason = explain_apart(first.run)
    if reason is not None:
        return "", ApartError(str(reason)) if timed else None
    try:
        if timed:
            refuse_short([first.run])
        if room is not None:
            refuse_large(first.run, count, room)
        return try_copies(first.run, first.streams, count, timed) if timed else "", None
    except Exception as error:  # noqa: BLE001  as in a trial of all
        return "", error


def answer_refusal(first: StackJob, refused: Exception, *, goes_on: bool, tell: Tell) -> None:
    """Leave the jobs of a refused stack apart; with `goes_on` the first trains on here, alone."""
    if not goes_on or may_fit_in_parts(refused):
        leave_all([first], refused)
        return
    tell(first, describe_failure_of_all(refused))
    if first.run.device.type == "cuda":  # what the trial has held
        torch.cuda.empty_cache()
    train_on_alone(first)


def may_fit_in_parts(error: Exception) -> bool:
    """Return whether fewer jobs may train as one although these could not: for want of memory."""
    return isinstance(error, TooLargeError) or oom.is_out_of_memory(error)


def choose_members(jobs: Sequence[StackJob]) -> tuple[list[StackJob], Any]:
    """Choose the jobs that can be in one stack with the first that can; leave the others alone."""
    fit: list[StackJob] = []
    for job in jobs:
        reason = explain_apart(job.run)
        if reason is None:
            fit.append(job)
        else:
            job.apart = str(reason)
    if not fit:
        return [], {}
    fit = [fit[place] for place in sort_alike([job.run for job in fit])]
    numbers, reasons = find_difference([job.run for job in fit])
    for job, reason in zip(fit, reasons, strict=True):
        job.apart = "" if reason is None else str(reason)
    return [job for job in fit if not job.apart], numbers


def train_together(jobs: Sequence[StackJob], numbers: Any, *, timed: float, room: Room | None, tell: Tell) -> None:
    """Train jobs as one; what fails for all of them leaves all alone."""
    by_run = {id(job.run): job for job in jobs}

    def leave(run: Run, error: Exception | None) -> None:
        end_training(by_run[id(run)], error)

    def begin(runs: Sequence[Run], why: str) -> None:
        record_stack([by_run[id(run)] for run in runs])
        tell(None, why)

    try:
        fit_stack([StackMember(job.run, job.streams) for job in jobs], numbers, leave, begin, timed=timed, room=room)
    except Exception as error:  # noqa: BLE001  of the user's code under vmap, or memory
        leave_all([job for job in jobs if job.status is None and job.fault is None], error)


def leave_all(jobs: Sequence[StackJob], error: Exception) -> None:
    """Leave jobs apart because of what failed for all of them."""
    for job in jobs:
        job.apart = describe_failure_of_all(error)
        job.fits = error.fits if isinstance(error, TooLargeError) else 0


def describe_failure_of_all(error: Exception) -> str:
    """Describe why the step of all jobs failed, in one line."""
    if oom.is_out_of_memory(error):
        return "device: out of memory for all of them"
    if isinstance(error, ApartError):
        return str(error)
    text = " ".join(str(error).split())
    return f"model: {type(error).__name__}: {text[:300]}"


def end_training(job: StackJob, error: Exception | None) -> None:
    """End a job that has left the stack, as the serial loop's caller does."""
    record = job.record
    assert record is not None
    if isinstance(error, NonFiniteError):
        job.fault = error
        return
    with redirect(job):
        status = EXIT_FAILED
        try:
            if error is not None:
                if oom.is_out_of_memory(error):
                    raise RunError(describe_out_of_memory(job.run)) from error
                raise error
            status = finish(job.run, record.result)
        except Exception as failure:  # noqa: BLE001  of this job alone
            record_error(record, failure)
        end_job(job, status)


def train_on_alone(job: StackJob) -> None:
    """Train a job that is in no stack (any more): after a NaN, as `train.on_fault` says; or after a trial."""
    record, fault = job.record, job.fault
    assert record is not None
    rng.set_state(job.streams)
    with redirect(job):
        status = EXIT_FAILED
        try:
            status = train_recorded(record, fault)
        except Exception as failure:  # noqa: BLE001  as in `run.launch`
            record_error(record, failure)
        end_job(job, status)


def end_job(job: StackJob, status: int) -> None:
    """Close the record of a job and give up its lock and its tensors."""
    assert job.record is not None
    job.status = close_record(job.record, status).status
    release(job)


def close_open_jobs(jobs: Sequence[StackJob]) -> None:
    """Leave the jobs without an end to train apart."""
    for job in jobs:
        if job.status is None:
            leave_apart(job, job.apart)


def keep_trackers(job: StackJob) -> None:
    """Have the end of a job not wait for its trackers: `wait_for_all_trackers` does."""
    log, folder = job.record and job.record.log, job.task.folder

    def warn(text: str) -> None:  # when its log is closed
        print(make_printable(text), file=job.output, flush=True)
        with contextlib.suppress(OSError), contextlib.closing(LogFile(folder)) as file:
            file.note(text)

    def keep(trackers: Sequence[TrackerProcess]) -> None:
        for tracker in trackers:
            tracker.alert = warn
        job.trackers += trackers

    if log:
        log.await_trackers = keep


def wait_for_all_trackers(jobs: Sequence[StackJob]) -> None:
    """Wait for the trackers of all jobs at the same time."""
    wait_for_trackers([tracker for job in jobs for tracker in job.trackers])


def leave_apart(job: StackJob, reason: str) -> None:
    """Close the log of a job that trains on alone; its directory stays without a result."""
    if job.record is not None and job.record.run is not None:
        with contextlib.suppress(RunError):  # a save under way ends before somebody else is at work on the directory
            job.record.run.checkpoints.wait()
    if job.record is not None and job.record.log is not None:
        with contextlib.suppress(OSError):
            job.record.log.note(f"left its stack: {reason}")
            job.record.log.close()
    release(job)


def release(job: StackJob) -> None:
    """Give up the lock of a job, its timer and its record."""
    if job.record is not None:
        job.record.stop.__exit__()
    if job.lock is not None:
        job.lock.release()
        job.lock = None


def record_stack(jobs: Sequence[StackJob]) -> None:
    """Write into the provenance of each job in which stack it trains, and from which step on."""
    names = [job.task.folder.name for job in jobs]
    for row, job in enumerate(jobs):
        assert job.record is not None
        known = job.record.provenance or {}
        entry = {"step": job.run.progress.step, "row": row, "jobs": names, "off": SWITCH}
        job.record.provenance = known | {"stacks": [*known.get("stacks", []), entry]}
        write_json(job.task.folder / "provenance.json", job.record.provenance)


@contextlib.contextmanager
def redirect(job: StackJob) -> Iterator[None]:
    """Send what is printed to the output of a job."""
    with contextlib.redirect_stdout(job.output), contextlib.redirect_stderr(job.output):
        yield
    for stream in (job.output, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
