"""One attempt of a stack: the jobs that one process trains as one."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import ConfigError
from runner.core.exit_status import EXIT_APART, EXIT_DISK, EXIT_DONE, EXIT_FAILED
from runner.core.safe_io import open_regular
from runner.sweep.executors import memory_limit
from runner.sweep.executors.attempt import prepare_task, wait_for_the_last_attempt
from runner.sweep.interfaces import OUTPUT, JobSpec
from runner.sweep.outcome import RESULT
from runner.sweep.stacks import describe_fitting

if TYPE_CHECKING:
    from runner.experiment.stack import StackJob

MOST_REASONS = 5  # of different jobs, in one message
MOST_SAID = 1_000  # characters of what a trial has found
LEFT = 0.05  # of the memory is left to others: with less than 0.03 the largest job is killed


def run_stack_attempt(spec: JobSpec, tell: Callable[..., object] = lambda **_: None) -> tuple[int, str]:
    """Run or continue the jobs of a stack; return the exit status and what is said of those left apart.

    The directory of each job says how it ended. The status is EXIT_APART where jobs have no end and are to be tried
    apart, else that of the worst of them.

    Args:
        spec: of the stack.
        tell: called as `tell(as_one=…, why=…, member=…)` with what the trial of the stack has found, as soon as it has.
            Where jobs do not train as one, the named one trains on in this process, and no other was touched.
    """
    from runner.experiment.stack import train_stack
    from runner.train.vectorized.allocator import keep_freed_memory

    keep_freed_memory()
    jobs: list[StackJob] = []
    reasons: dict[str, None] = {}
    statuses = [EXIT_DONE]
    alone = ""

    def pass_on(job: "StackJob | None", why: str) -> None:
        nonlocal alone
        if job is not None:
            alone = job.task.folder.name
        member = next((one["id"] for one in spec.members if Path(one["folder"]).name == alone), "")
        tell(as_one=job is None, why=why[:MOST_SAID], member=member)

    with contextlib.ExitStack() as files:
        coming = prepare_jobs(spec, files, jobs, reasons)
        limit = (spec.timeout or math.inf) if spec.timed else 0.0
        room = partial(measure_room, spec)
        train_stack(coming, count=len(spec.members), timed=limit, room=room, tell=pass_on)
    if alone:
        ended = jobs[-1].status
        return EXIT_DISK if ended is None or not (jobs[-1].task.folder / RESULT).exists() else ended, ""
    for job in jobs:
        if job.status is None:
            reason = job.apart or "it was not reached"
            reasons[describe_fitting(reason, job.fits) if job.fits else reason] = None
        else:
            statuses.append(job.status)
    if reasons:
        return EXIT_APART, "; ".join([*reasons][:MOST_REASONS])
    worst = max(statuses, key=lambda status: (status == EXIT_FAILED, status))
    return worst, ""


def prepare_jobs(
    spec: JobSpec, files: contextlib.ExitStack, jobs: "list[StackJob]", reasons: dict[str, None]
) -> "Iterator[StackJob]":
    """Prepare the jobs of a stack one by one; those that cannot go on leave their reason."""
    from runner.experiment.stack import StackJob

    for member in spec.members:
        own = JobSpec(**member)
        folder = Path(own.folder)
        wait_for_the_last_attempt(folder)
        try:
            task = prepare_task(own, folder)
        except ConfigError as error:
            reasons[str(error.mistakes[0])] = None
            continue
        if task is not None:
            handle = open_regular(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            jobs.append(StackJob(task, files.enter_context(os.fdopen(handle, "a"))))
            yield jobs[-1]


def measure_room(spec: JobSpec, device: Any) -> int | None:
    """Measure the bytes that the tensors of a stack may take; None where nobody knows.

    Of what is free each stack that runs at a time has a share; `sweep.memory` is of all that a process holds.
    """
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
        return int((free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / spec.share)
    known = memory_limit.measure_available()
    if known is None:
        return None
    available, total = known
    room = int((available - LEFT * total) / spec.share)
    if spec.memory is not None:
        room = min(room, int(spec.memory * 2**30) - memory_limit.measure_resident(os.getpid(), []))
    return room
