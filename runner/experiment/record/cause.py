"""Cause of a failed run: its class in `result.json`, its message, and the line of user code behind it."""

import errno
import signal
import traceback
from pathlib import Path
from typing import Any

from runner.core.errors import explain_os_error
from runner.core.paths import PACKAGE
from runner.data.workers import WorkerEnded
from runner.experiment.record.result import format_error
from runner.train.finite import NonFiniteError
from runner.train.oom import is_out_of_memory

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def classify_error(error: BaseException) -> str:
    """Return `non-finite`, `memory`, `disk`, `killed` (a data worker, by SIGKILL) or `exception`."""
    if isinstance(error, NonFiniteError):
        return "non-finite"
    if is_out_of_memory(error):
        return "memory"
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, OSError) and origin.errno in DISK_ERRORS:
            return "disk"
        if isinstance(origin, WorkerEnded) and origin.exit_code == -signal.SIGKILL:
            return "killed"
        origin = origin.__cause__
    return "exception"


def describe_failure(error: Exception, message: str) -> dict[str, Any]:
    """Return the entries of a failed run in `result.json`: message, cause, and the origin of a NaN."""
    said: dict[str, Any] = {"error": message, "cause": classify_error(error)}
    return said | {"fault": error.record()} if isinstance(error, NonFiniteError) else said


def describe_cause(error: Exception) -> str:
    """Describe an error in one paragraph, with the line of user code that raised it, if any."""
    ours = type(error).__module__.partition(".")[0] == "runner"
    if isinstance(error, OSError) and not ours:
        text = explain_os_error(error)
    else:
        text = str(error).encode(errors="backslashreplace").decode() if ours else format_error(error)
    place = locate_cause(error)
    return text if not place or place in text else f"{text} ({place})"


def locate_cause(error: BaseException | None) -> str:
    """Return `file:line` of the user code that raised an error or its cause; empty without any."""
    here, found = Path.cwd(), ""
    while error is not None:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno))
        for name, line in frames:
            file = Path(name)
            own = file.is_relative_to(here) and not file.is_relative_to(PACKAGE) and "site-packages" not in file.parts
            found = f"{file.relative_to(here)}:{line}" if own else found
        error = error.__cause__ or error.__context__
    return found
