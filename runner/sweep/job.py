"""One attempt of a job in this process, and how a job ended, as its directory says it."""

import contextlib
import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from runner.config.check import parse
from runner.config.recorded import continuation, recorded
from runner.errors import ConfigError, Mistake
from runner.files import Lock
from runner.sweep.judge import judge_at
from runner.sweep.ledger import Cause, Status
from runner.sweep.protocols import OUTPUT, Job

RESULT, LOG, REFUSED = "result.json", "log.txt", ".refused.tmp"
EXIT_WRONG = 2
EXIT_DISK = getattr(os, "EX_IOERR", 74)  # of a job that could not write how it ended
LOCK_SECONDS = 60.0  # for the end of an attempt that was killed a moment ago; a killed process needs milliseconds
OF_ALL_ATTEMPTS = {".lock", ".heartbeat", OUTPUT}  # what is printed is appended


def attempt(job: Job) -> int:
    """Run the job, or go on with it; the exit status of `python -m runner`.

    In this process, or, where it is one of several processes, in as many that this one forks.

    Nothing that an earlier attempt left is overwritten: `result.json` becomes `result.1.json`, and where the attempt
    failed `log.txt` becomes `log.1.txt`; where the job starts anew so does everything else.

    Raises:
        ConfigError: it cannot be continued exactly, and is not to be started anew; nothing was touched.
    """
    folder = Path(job.folder)
    _wait_for_the_last_attempt(folder)
    if job.processes == 1:
        return _alone(job, folder)
    from runner.follow import follow
    from runner.sweep.ranks import together

    refusal = folder / REFUSED
    status = together(
        job.processes, lambda: _leading(job, folder, refusal), lambda place: follow(place, tuple(job.trust))
    )
    if refusal.exists():
        text = refusal.read_text()
        refusal.unlink()
        raise ConfigError([Mistake(**mistake) for mistake in json.loads(text)])
    return status


def _leading(job: Job, folder: Path, refusal: Path) -> int:
    """Rank 0: what it refuses is handed to the process that has forked it, and the others are let go."""
    from runner import torchrun
    from runner.team import dismiss

    place = torchrun.place()
    assert place is not None
    try:
        status = _alone(job, folder)
    except ConfigError as error:
        refusal.write_text(json.dumps([mistake.as_json() for mistake in error.mistakes]))
        status = EXIT_WRONG
    dismiss(place, status)
    return status


def _alone(job: Job, folder: Path) -> int:
    from runner import run  # imports torch, which the parent has imported, or a first job of a machine does

    command, trust = ["python", "-m", "runner", *job.argv], tuple(job.trust)
    if job.anew != "always" and (folder / "config.yaml").is_file():
        if (read_json(folder / RESULT) or {}).get("status") in ("completed", "pruned"):
            return 0
        try:
            return _go_on(job, folder, command, trust)
        except ConfigError:
            if job.anew == "never":
                raise
    put_aside(folder, [path.name for path in folder.iterdir()])
    from runner.preflight import outline

    config = parse(job.config)
    found = outline(config, trust) if config.log.model_table else None
    judge = judge_at(job.judge, job.id, folder)
    outcome = run.launch(
        config, folder, unresolved=job.unresolved, command=command, trust=trust, found=found, judge=judge
    )
    return outcome.status if (folder / RESULT).exists() else EXIT_DISK


def _go_on(job: Job, folder: Path, command: list[str], trust: tuple[str, ...]) -> int:
    """Continue the run in the folder with the config that it was started with. Raises ConfigError."""
    from runner import run

    config, unresolved = recorded(folder, trust=trust)
    again = continuation(folder, config, unresolved, trust)
    if again.changes:
        raise ConfigError(again.changes)
    put_aside(folder, [RESULT, LOG] if job.retry else [RESULT])
    judge = judge_at(job.judge, job.id, folder)
    outcome = run.launch(
        again.config, folder, unresolved=again.unresolved, command=command, trust=trust, again=again, judge=judge
    )
    if outcome.status == run.EXIT_FAILED and not (folder / RESULT).exists():
        run.write_result(folder, outcome.result)  # it could not go on: what it had is in the file put aside
    return outcome.status if (folder / RESULT).exists() else EXIT_DISK


def put_aside(folder: Path, names: list[str]) -> None:
    """Rename what an earlier attempt left: `log.txt` becomes `log.1.txt`, or the first number that is free for all.

    `config.yaml` goes first: a folder without it is no run, whatever else is in it when this is cut short.
    """
    names = [name for name in names if (folder / name).exists() and not _is_numbered(name)]
    names = [name for name in names if name not in OF_ALL_ATTEMPTS and not name.endswith(".tmp")]
    names.sort(key=lambda name: name != "config.yaml")
    number = 1
    while any((folder / _numbered(name, number)).exists() for name in [*names, RESULT, LOG]):
        number += 1
    for name in names:
        (folder / name).rename(folder / _numbered(name, number))


def _numbered(name: str, number: int) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  `.hydra` has no suffix
    return f"{stem}.{number}{suffix}"


def _is_numbered(name: str) -> bool:
    parts = name.lstrip(".").split(".")
    return any(part.isdigit() for part in parts[1:])


def _wait_for_the_last_attempt(folder: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            Lock(folder).release()
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


# ---- how it ended


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(file.read_text())
        return value if isinstance(value, dict) else None
    return None


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory", "CUDA out of memory")


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


_WORDS = {
    "lost": "the process that ran it, or its machine, is gone",
    "disk": "how it ended could not be written: the disk is full, or may not be written",
}


def _failed(columns: dict[str, Any], cause: Cause, error: str) -> dict[str, Any]:
    status: Status = "failed"
    return columns | {"status": status, "cause": cause, "error": error}


def _cause_of(result: dict[str, Any]) -> Cause:
    error = str(result.get("error"))
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


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # NaN stands there as a string


def _code_and_data(folder: Path) -> dict[str, str]:
    record = read_json(folder / "provenance.json") or {}
    code = (record.get("modules") or {}).get("total", "")
    data = {name: split["sha256"] for name, split in (record.get("data") or {}).items()}
    return {"code": code, "data": "  ".join(f"{name}:{digest[:16]}" for name, digest in data.items() if digest)}
