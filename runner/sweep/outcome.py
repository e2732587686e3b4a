"""Outcome of a job, read from its directory: completed, pruned, failed or interrupted, and the cause.

The executor knows some causes better (`Event.cause`): `lost`, `timeout`, `memory`, `killed`. Each executor decides
these by itself; see docs/explanation/architecture.md, "The way of a job".
"""

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Any, Literal, get_args

from runner.core import safe_io
from runner.core.exit_status import EXIT_DISK
from runner.sweep.interfaces import OUTPUT
from runner.sweep.ledger import Cause, Status, is_metrics

RESULT, LOG, REFUSED = "result.json", "log.txt", ".refused.tmp"


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory", "CUDA out of memory")


_WORDS = {
    "lost": "the process that ran it, or its machine, is gone",
    "disk": "how it ended could not be written: the disk is full, or may not be written",
}


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


# ---- how it ended


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; return None if it is missing or unreadable."""
    with contextlib.suppress(OSError, ValueError):
        value = safe_io.read_json(file)
        return value if isinstance(value, dict) else None
    return None


def read_place(folder: Path) -> tuple[int, str]:
    """Read where a job stands: the step of its newest checkpoint, and the jobs of its last stack."""
    step, stack = 0, ""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        entries = safe_io.read_json(folder / "checkpoints" / "manifest.json")["entries"]
        step = max((int(entry["step"]) for entry in entries), default=0)
    with contextlib.suppress(LookupError, TypeError):
        stack = " ".join(map(str, (read_json(folder / "provenance.json") or {})["stacks"][-1]["jobs"]))
    return step, stack


def describe_exit(status: int | None, cause: str) -> str:
    """Describe the end of a process whose jobs have no end of their own."""
    if cause:
        return cause
    if status is not None and status < 0:
        return f"{get_signal_name(-status)} ended the process"
    return f"the process ended itself, with status {status}"


def read_outcome(
    folder: Path, status: int | None, known: Cause | Literal[""] = "", error: str = "", *, stopped: bool = False
) -> dict[str, Any]:
    """Return the ledger columns for the end of an attempt, read from its directory where possible.

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
    columns |= _read_hashes(folder)
    if said in ("completed", "pruned"):
        done = {
            "status": said,
            "objective": _parse_number(result.get("objective")),
            "metrics": _read_metrics(result),
        }
        return columns | done
    if status is not None and status < 0:
        result, said = {}, None  # it is of an earlier attempt, or was written before it was all over
    known = known or _infer_disk_failure(said, status, error)
    if known:
        return _mark_failed(columns, known, error or _WORDS.get(known, f"whoever ran it says: {known}"))
    if said == "interrupted" or (said is None and stopped):
        return columns | {"status": "interrupted"}
    if said == "failed":
        return _mark_failed(columns, _infer_cause(result), str(result.get("error")))
    if status is None:  # whoever watched it is gone too: it is continued
        return columns | {"status": "interrupted"}
    if status < 0:
        name = get_signal_name(-status)
        if -status in _CRASHES:
            return _mark_failed(columns, "crash", f"{name} ended the process; {OUTPUT} has the Python stack")
        return _mark_failed(columns, "killed", f"{name} ended the process")
    if error:  # it could not be continued exactly; nothing was touched
        return columns | {"status": "interrupted", "error": error}
    return _mark_failed(columns, "exit", f"the process ended itself, with status {status}, before the run was over")


def _infer_disk_failure(said: str | None, status: int | None, error: str) -> Cause | Literal[""]:
    return "disk" if said is None and (status == EXIT_DISK or is_disk_error(error)) else ""


def get_signal_name(number: int) -> str:
    """Return the name of a signal such as `SIGKILL`; a real-time signal has only a number."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _mark_failed(columns: dict[str, Any], cause: Cause, error: str) -> dict[str, Any]:
    status: Status = "failed"
    return columns | {"status": status, "cause": cause, "error": error}


def _infer_cause(result: dict[str, Any]) -> Cause:
    cause: Any = result.get("cause")
    if cause in get_args(Cause):
        known: Cause = cause
        return known
    error = str(result.get("error"))  # a record of an earlier release has no cause
    if "fault" in result or error.startswith("Fault:"):
        return "non-finite"
    if any(words in error for words in _OUT_OF_MEMORY):
        return "memory"
    if is_disk_error(error):
        return "disk"
    return "killed" if "is killed by signal: Killed" in error else "exception"


def is_disk_error(error: str) -> bool:
    """Return whether an error says that a disk is full, broken or read-only."""
    return any(os.strerror(number) in error for number in _OF_THE_DISK)


def _parse_number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)  # NaN stands there as a string
    except (ValueError, TypeError, OverflowError):
        return None


def _read_metrics(result: dict[str, Any]) -> dict[str, Any]:
    metrics = result.get("metrics")
    return metrics if metrics and is_metrics(metrics) else {}


def _read_hashes(folder: Path) -> dict[str, str]:
    record = read_json(folder / "provenance.json") or {}
    try:
        code = str((record.get("modules") or {}).get("total", ""))
        data = {name: str(split["sha256"] or "") for name, split in (record.get("data") or {}).items()}
    except (AttributeError, LookupError, TypeError):  # a damaged record
        return {"code": "", "data": ""}
    return {"code": code, "data": "  ".join(f"{name}:{digest[:16]}" for name, digest in data.items() if digest)}
