"""Examination of a sweep's jobs in a process forked from one with torch, for a controller without it."""

import atexit
import base64
import contextlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from runner.config.check.check import Check
from runner.core.errors import ABSENT, Mistake
from runner.core.exit_status import EXIT_DONE
from runner.core.shared_answers import share_answers
from runner.experiment.examine import examine
from runner.experiment.record import provenance
from runner.sweep.executors.worker import MOST_SAID, list_preloadable


def encode_jobs(jobs: Sequence[Check]) -> str:
    """Encode jobs for a process that this one has started; empty where they cannot be copied."""
    try:
        return base64.b64encode(pickle.dumps([(job.composed, job.trust) for job in jobs])).decode()
    except Exception:  # noqa: BLE001  whatever an object of a config says about being copied
        return ""


def decode_mistakes(found: Sequence[Mapping[str, Any]]) -> list[Mistake]:
    """Decode mistakes as `examine_encoded` tells them."""
    return [Mistake(**{"value": ABSENT, **mistake}) for mistake in found]


def examine_encoded(jobs: str, tell: Callable[[Mapping[str, Any]], object]) -> None:
    """Examine jobs; tell mistakes as they are found.

    Raises:
        ValueError: the value of a mistake cannot be told as it is.
    """

    def say(mistakes: Sequence[Mistake]) -> None:
        tell({"mistakes": [_encode_mistake(mistake) for mistake in mistakes]})

    with share_answers():
        for composed, trust in pickle.loads(base64.b64decode(jobs)):  # noqa: S301  of the controller, through its own pipe
            examine(composed, trust, say)


def run_examination(jobs: str, replies: int, write: int, console: int) -> NoReturn:
    """Examine jobs in this forked process, then end it; what comes to its end is told so."""
    words = b""
    try:
        os.dup2(console, 1)
        sys.stdin = _Keyboard()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=os.isatty(1))
        atexit._clear()  # noqa: SLF001  what the server has registered is the server's
        last = provenance.get_last_import()
        examine_encoded(jobs, lambda message: _write_line(replies, message))
        atexit._run_exitfuncs()  # noqa: SLF001
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        words = json.dumps({"modules": list_preloadable(last)}).encode()
        words = words if len(words) <= MOST_SAID else b""  # nobody reads the pipe before this process has ended
        _write_line(replies, {"examined": True})
    finally:  # whatever went wrong does so again in the controller, and is told there
        with contextlib.suppress(OSError):
            os.write(write, words)
        os._exit(EXIT_DONE)


class _Keyboard(io.TextIOBase):
    """Standard input of the examination: who wants to read from it, a debugger, does so in the controller."""

    encoding = "utf-8"
    errors = "strict"

    def readline(self, _size: int = -1, /) -> NoReturn:  # type: ignore[override]
        """End this process."""
        os._exit(EXIT_DONE)

    read = readline  # type: ignore[assignment]

    @property
    def buffer(self) -> NoReturn:
        """End this process, as reading does."""
        os._exit(EXIT_DONE)

    def readable(self) -> bool:
        """Return that it can be read from."""
        return True

    def fileno(self) -> int:
        """Return the handle of the standard input."""
        return 0


def _encode_mistake(mistake: Mistake) -> dict[str, Any]:
    plain = {field.name: getattr(mistake, field.name) for field in fields(mistake)}
    if mistake.value is ABSENT:
        del plain["value"]
    elif repr(json.loads(json.dumps(mistake.value))) != repr(mistake.value):
        raise ValueError(mistake.value)
    return plain


def _write_line(handle: int, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(handle, data) :]
