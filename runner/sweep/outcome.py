"""The outcome of a job: completed, failed, interrupted or lost, and the cause."""

import contextlib
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any, Literal

from runner.sweep.interfaces import OUTPUT
from runner.sweep.ledger import Cause, Status

RESULT, LOG, REFUSED = "result.json", "log.txt", ".refused.tmp"


EXIT_DISK = getattr(os, "EX_IOERR", 74)  # of a job that could not write how it ended


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory", "CUDA out of memory")


_WORDS = {
    "lost": "the process that ran it, or its machine, is gone",
    "disk": "how it ended could not be written: the disk is full, or may not be written",
}


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


# ---- how it ended


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(file.read_text())
        return value if isinstance(value, dict) else None
    return None


def ending(
    folder: Path, status: int | None, known: Cause | Literal[""] = "", error: str = "", *, stopped: bool = False
) -> dict[str, Any]:
    """The columns of the ledger that say how an attempt ended: its directory says it where it can.

    Args:
        folder: the run directory.
        status: the exit status, minus the signal's number where a signal ended it; None where that is not known.
        known: what the executor knows of the cause.
        error: what it has to say.
        stopped: whether the job was asked to stop.
    """
    result = read_json(folder / RESULT) or {}
    said = result.get("status")
    columns: dict[str, Any] = {"exit": status, "cause": "", "error": "", "objective": None, "metrics": {}}
    columns |= _code_and_data(folder)
    if said in ("completed", "pruned"):
        done = {"status": said, "objective": _number(result.get("objective")), "metrics": result.get("metrics") or {}}
        return columns | done
    if status is not None and status < 0:
        result, said = {}, None  # it is of an earlier attempt, or was written before it was all over
    known = known or _of_the_disk(said, status, error)
    if known:
        return _failed(columns, known, error or _WORDS.get(known, f"whoever ran it says: {known}"))
    if said == "interrupted" or (said is None and stopped):
        return columns | {"status": "interrupted"}
    if said == "failed":
        return _failed(columns, _cause_of(result), str(result.get("error")))
    if status is None:  # whoever watched it is gone too: it is continued
        return columns | {"status": "interrupted"}
    if status < 0:
        name = signal_name(-status)
        if -status in _CRASHES:
            return _failed(columns, "crash", f"{name} ended the process; {OUTPUT} has the Python stack")
        return _failed(columns, "killed", f"{name} ended the process")
    if error:  # it could not be continued exactly; nothing was touched
        return columns | {"status": "interrupted", "error": error}
    return _failed(columns, "exit", f"the process ended itself, with status {status}, before the run was over")


def _of_the_disk(said: str | None, status: int | None, error: str) -> Cause | Literal[""]:
    return "disk" if said is None and (status == EXIT_DISK or is_of_the_disk(error)) else ""


def signal_name(number: int) -> str:
    """`SIGKILL`; the real-time signals have no names."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _failed(columns: dict[str, Any], cause: Cause, error: str) -> dict[str, Any]:
    status: Status = "failed"
    return columns | {"status": status, "cause": cause, "error": error}


def _cause_of(result: dict[str, Any]) -> Cause:
    if cause := result.get("cause"):
        known: Cause = cause
        return known
    error = str(result.get("error"))  # a record of an earlier release has no cause
    if "fault" in result or error.startswith("Fault:"):
        return "non-finite"
    if any(words in error for words in _OUT_OF_MEMORY):
        return "memory"
    if is_of_the_disk(error):
        return "disk"
    return "killed" if "is killed by signal: Killed" in error else "exception"


def is_of_the_disk(error: str) -> bool:
    """Whether an error says that a disk is full, or broken, or has come to be read-only."""
    return any(os.strerror(number) in error for number in _OF_THE_DISK)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # NaN stands there as a string


def _code_and_data(folder: Path) -> dict[str, str]:
    record = read_json(folder / "provenance.json") or {}
    code = (record.get("modules") or {}).get("total", "")
    data = {name: split["sha256"] for name, split in (record.get("data") or {}).items()}
    return {"code": code, "data": "  ".join(f"{name}:{digest[:16]}" for name, digest in data.items() if digest)}
