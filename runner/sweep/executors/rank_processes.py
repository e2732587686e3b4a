"""Ranks of a job of several processes on one machine, launched as torchrun would."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from runner.core.exit_status import EXIT_FAILED
from runner.train.distributed.environment import RankPlace

GRACE_SECONDS = 30.0  # for the others to say what happened, after one has failed


POLL_SECONDS = 0.05


def run_ranks(count: int, lead: Callable[[], int], follow: Callable[[RankPlace], int]) -> int:
    """Fork `count` ranks (0 runs `lead`, others `follow`); return the first failure's exit status.

    Where a signal ended that one, it ends this process too. SIGTERM goes on to all of them.
    """
    # Kept in this process, as torchrun's agent does, so that what a rank has said outlives it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    ranks = [fork(rank, count, store.port, lead, follow) for rank in range(count)]

    def pass_on(number: int, _frame: object) -> None:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        status = wait_for_ranks(ranks)
    finally:
        signal.signal(signal.SIGTERM, before)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def wait_for_ranks(ranks: list[int]) -> int:
    """Wait for all ranks; return the exit status of the first failure, or 0.

    Of those that ended between two looks a signal comes first: the others fail because their peer is gone.
    """
    left, status, deadline = list(ranks), 0, None
    while left:
        ended = [found for pid in left if (found := os.waitpid(pid, os.WNOHANG))[0]]
        left = [pid for pid in left if pid not in dict(ended)]
        status = status or min((s for _, waited in ended if (s := os.waitstatus_to_exitcode(waited))), default=0)
        if status and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        for pid in left if deadline is not None and time.monotonic() > deadline else ():
            os.kill(pid, signal.SIGKILL)
        if left:
            time.sleep(POLL_SECONDS)
    return status


def fork(rank: int, count: int, port: int, lead: Callable[[], int], follow: Callable[[RankPlace], int]) -> int:
    """Fork the process of a rank with the environment that torchrun would set; return its pid."""
    pid = os.fork()
    if pid == 0:
        place = RankPlace(rank, count, rank, count, 0)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            LOCAL_WORLD_SIZE=str(count),
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="sweep",
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        run_rank(lead if rank == 0 else lambda: follow(place))
    return pid


def run_rank(work: Callable[[], int]) -> NoReturn:
    """Run the work of a rank and exit with its status."""
    status = EXIT_FAILED
    try:
        status = work()
    except SystemExit as ended:
        traceback.print_exc()
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  nothing of a rank may go on as its parent
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(status & 0xFF)
