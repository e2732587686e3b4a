"""Command of the user's at the end of a run or a sweep (`on_event`): run, limited in time, logged."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.config.schema import OnEvent
from runner.core.escape import make_printable
from runner.core.event_stream import format_line
from runner.core.stop_signals import handle_signals
from runner.log.logger import LogFile

MOST_OUTPUT = 4000  # characters of what it prints, in the log


def tell_end(settings: OnEvent, folder: Path, result: Mapping[str, Any], exit_status: int) -> None:
    """Run the command for the end of a run, as its result says; what became of it is in `log.txt`."""
    event = "failed" if result.get("status") == "failed" else "ended"
    tell_event(settings, event, {"run": str(folder.absolute()), "exit": exit_status, **result}, _LogNote(folder))


class _LogNote:
    """Note in the `log.txt` of a run that is over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, text: str) -> None:
        with contextlib.suppress(OSError):
            log = LogFile(self._folder)
            try:
                log.note(text)
            finally:
                log.close()


def tell_event(settings: OnEvent, event: str, facts: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Run the command with an event on its standard input; wait for it, at most `timeout` seconds.

    Nothing that it does raises here: a command that is missing, fails, hangs or is interrupted is said to `note` and,
    in one line, on standard error.
    """
    if settings.command is None or event not in settings.events:
        return
    line = format_line({"event": event, "time": round(time.time(), 3), "host": socket.gethostname(), **facts})
    command = settings.command
    name = command if isinstance(command, str) else shlex.join(command)
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        try:
            problem = _run(command, f"{line}\n".encode(), output, settings.timeout)
        except (OSError, ValueError) as error:  # it is not there, or has a NUL in its name
            problem = f"cannot be run: {getattr(error, 'strerror', None) or error}"
        output.seek(0)
        said = output.read(MOST_OUTPUT * 4).decode(errors="replace").strip()[:MOST_OUTPUT]
    seconds = time.perf_counter() - began
    note(f"on_event ({event}): `{name}` {problem or 'is done'} after {seconds:.1f} s{f': {said}' if said else ''}")
    if problem:
        text = f"on_event: `{name}` {problem}; the {'sweep' if event == 'sweep_done' else 'run'} is as it was"
        print(make_printable(text), file=sys.stderr)


def _run(command: str | list[str], data: bytes, output: Any, timeout: float) -> str:
    """Run a command in a process group of its own; return what is wrong with its end, else an empty text."""
    process = subprocess.Popen(  # noqa: S603  the user's own, see config/check/commands.py
        command,
        shell=isinstance(command, str),
        stdin=subprocess.PIPE,
        stdout=output,  # a file: a grandchild that goes on holds no pipe that is waited for
        stderr=output,
        start_new_session=True,
    )
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        _kill_group(process)

    with handle_signals(stop):
        try:
            process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.wait()
            return f"is killed: it took longer than on_event.timeout ({timeout:g} s)"
    if stopped:
        return f"is killed by {signal.Signals(stopped[0]).name}"
    return f"ended with status {process.returncode}" if process.returncode else ""


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
