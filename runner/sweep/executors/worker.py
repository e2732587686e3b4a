"""Process of one job, forked by the fork server."""

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from runner.core.exit_status import EXIT_WRONG
from runner.core.safe_io import open_regular
from runner.experiment.record import provenance
from runner.sweep.interfaces import OUTPUT

# What may be imported before a fork, once a job has needed it: to import these starts no thread and touches no GPU.
FORK_SAFE = {"torch", "torchvision", "torchmetrics", "numpy", "scipy", "sklearn", "pandas", "PIL", "yaml", "sympy"}


MOST_SAID = 30_000  # bytes that a job leaves in its pipe, which holds 65,536 without anybody reading


# ---- in the job's own process


def run_job(job: dict[str, Any], environment: dict[str, str], write: int, lifeline: int) -> NoReturn:
    """Run the job and exit this process, whatever happens: the code after the call is the server's."""
    status, words = 1, b""
    try:
        status, words = _run_attempt(job, environment, lifeline, write)
    except BaseException as error:  # noqa: BLE001  a disk without room for what it prints, a limit on threads
        words = json.dumps({"error": f"{type(error).__name__}: {error}"[: MOST_SAID // 8]}).encode()
    finally:
        with contextlib.suppress(OSError):  # it may have closed every file
            os.write(write, words)
        os._exit(status & 0xFF)


def _run_attempt(job: dict[str, Any], environment: dict[str, str], lifeline: int, write: int) -> tuple[int, bytes]:
    """Run an attempt with its output in a file; return its exit status and its JSON message.

    A stack writes what its trial has found to `write` as soon as it is known.
    """
    exit_with_server(lifeline)
    console = open_regular(Path(job["folder"]) / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for handle in (1, 2):
        os.dup2(console, handle)
    os.close(console)
    with contextlib.suppress(OSError):  # where memory runs out all the same, the job is what the kernel is to take
        Path("/proc/self/oom_score_adj").write_text("500")
    os.environ.update(environment)
    faulthandler.enable()
    atexit._clear()  # noqa: SLF001  what the server has registered is the server's
    last = provenance.get_last_import()
    status, error = 1, ""
    try:
        from runner.core.errors import ConfigError
        from runner.sweep.executors.attempt import run_attempt
        from runner.sweep.executors.stack_attempt import run_stack_attempt
        from runner.sweep.interfaces import JobSpec
        from runner.sweep.outcome import is_disk_error

        try:
            if job["members"]:
                status, error = run_stack_attempt(
                    JobSpec(**job), lambda **said: os.write(write, json.dumps(said).encode() + b"\n")
                )
            else:
                status = run_attempt(JobSpec(**job))
        except ConfigError as refused:
            status, error = EXIT_WRONG, "\n".join(map(str, refused.mistakes))
            traceback.print_exc()
        except OSError as refused:
            if not is_disk_error(str(refused)):
                raise
            error = f"{type(refused).__name__}: {refused}"
            traceback.print_exc()
    except SystemExit as ended:  # what somebody's code calls in the middle of a run
        traceback.print_exc()
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  KeyboardInterrupt, and whatever a run lets through
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001  what the job has registered, as in a run of its own
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    words = json.dumps({"error": error[: MOST_SAID // 8], "modules": list_preloadable(last)}).encode()
    return status, words if len(words) <= MOST_SAID else b""


def list_preloadable(after: Any = None) -> list[str]:
    """List modules imported after the module `after` that a server may import before it forks."""
    may = FORK_SAFE | sys.stdlib_module_names
    return [name for name in provenance.list_imports_since(after) if name.partition(".")[0] in may]


def exit_with_server(lifeline: int) -> None:
    """End this process with the server or the controller: on Linux by the kernel, even with the GIL held."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; the server forks in its only thread
        if os.getppid() != parent:
            os._exit(1)
    threading.Thread(target=watch_controller, args=(lifeline,), daemon=True).start()


def watch_controller(lifeline: int, done: int | None = None) -> None:
    """Wait until the controller's end of the pipe is closed, then kill this process group.

    Closing the other end of the pipe `done` ends the watch.
    """
    poll = select.poll()
    for handle in (lifeline, *([] if done is None else [done])):
        poll.register(handle, 0)  # nothing is read: a hang-up is reported all the same
    states = dict(poll.poll())
    if states.get(lifeline, 0) & (select.POLLHUP | select.POLLERR):  # else a job has closed every file, this one too
        os.killpg(os.getpgrp(), signal.SIGKILL)
