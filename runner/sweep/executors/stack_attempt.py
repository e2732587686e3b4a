"""One attempt of a stack: the jobs that one process trains as one."""

import contextlib
import os
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError
from runner.core.exit_status import EXIT_APART, EXIT_DONE, EXIT_FAILED
from runner.core.safe_io import open_regular
from runner.core.shared_answers import share_answers
from runner.sweep.executors import memory_limit
from runner.sweep.executors.attempt import prepare_task, wait_for_the_last_attempt
from runner.sweep.interfaces import OUTPUT, JobSpec
from runner.sweep.stacks import describe_fitting

MOST_REASONS = 5  # of different jobs, in one message
LEFT = 0.05  # of the memory is left to others: with less than 0.03 the largest job is killed


def run_stack_attempt(spec: JobSpec) -> tuple[int, str]:
    """Run or continue the jobs of a stack; return the exit status and what is said of those left apart.

    The directory of each job says how it ended. The status is EXIT_APART where jobs have no end and are to be tried
    apart, else that of the worst of them.
    """
    from runner.experiment.stack import StackJob, train_stack
    from runner.train.vectorized.allocator import keep_freed_memory

    keep_freed_memory()
    jobs: list[StackJob] = []
    reasons: dict[str, None] = {}
    statuses = [EXIT_DONE]
    with contextlib.ExitStack() as files:
        with share_answers():
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
        train_stack(jobs, timed=spec.timed, room=lambda device: measure_room(spec, device))
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
