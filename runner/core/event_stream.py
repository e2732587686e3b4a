"""Events for programs (`--json`): a JSON object a line on standard output, and nothing else there."""

import contextlib
import json
import os
import select
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TextIO, cast

from runner.core.files import to_json

PIPE_BUF = 512 if sys.platform == "darwin" else 4096  # so many bytes go through a pipe whole, or not at all


POLL_SECONDS = 0.002


class LineOutput(Protocol):
    """Output of whole lines."""

    def write_line(self, line: str) -> None: ...


class StreamOutput:
    """Whole lines on a text stream without a descriptor of its own: a notebook's, a test's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write_line(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(f"{line}\n")
            self._stream.flush()


class DescriptorOutput:
    """Whole lines on a file descriptor: a line is there entirely or not at all, also after SIGKILL.

    A pipe takes PIPE_BUF bytes at once; for a longer line this waits until the pipe is empty and wide enough, for then
    the kernel copies all of it without a pause. A regular file on a full disk is cut back to its last whole line. Once
    nobody reads, or the descriptor has become another file's, lines are dropped, and the process goes on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._process = descriptor, os.getpid()
        self._file = self._identify()
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._lock = threading.RLock()  # a signal's handler may write while its thread does
        self._gone = False

    def _identify(self) -> tuple[int, int]:
        facts = os.fstat(self._descriptor)
        return facts.st_dev, facts.st_ino

    def write_line(self, line: str) -> None:
        if os.getpid() != self._process:  # a data worker, forked from the process that speaks
            return
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        with self._lock:
            try:
                if not self._gone and self._identify() == self._file:
                    self._write(data)
            except OSError:
                self._gone = True

    def _write(self, data: memoryview) -> None:
        if self._is_pipe and len(data) > PIPE_BUF:
            self._wait_until_empty(len(data))
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._descriptor, data[done:])
                except BlockingIOError:  # whoever started this process made its output non-blocking
                    select.select([], [self._descriptor], [])
        except OSError:
            if done and not self._is_pipe:  # a full disk
                end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
                os.ftruncate(self._descriptor, end - done)
            raise

    def _wait_until_empty(self, size: int) -> None:
        """Wait until the pipe has room for `size` bytes at once, or nobody reads it any more; Linux only."""
        if sys.platform != "linux":
            return
        import array
        import fcntl
        import termios

        if fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ) < size:
            with contextlib.suppress(OSError):  # more than an unprivileged process may have
                fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, size)
        poll = select.poll()
        poll.register(self._descriptor, 0)
        held = array.array("i", [1])
        while held[0] and not poll.poll(0):
            fcntl.ioctl(self._descriptor, termios.FIONREAD, held)
            if held[0]:
                time.sleep(POLL_SECONDS)


class _Stream:
    """Stream of this process: where its lines go, whether events are wanted, and how it ended."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all of the last request."""
        self.output: LineOutput | None = None  # None: no program asked
        self.tells_events = False
        self.has_ended = False
        self.outcome: dict[str, Any] = {}


_stream = _Stream()


def format_line(value: Any) -> str:
    """Format plain data as one line of strict JSON; what is not plain becomes its text."""
    try:
        return to_json(value)
    except TypeError:
        return to_json(json.loads(json.dumps(value, default=str)))


def print_json(value: Any) -> None:
    """Print a verb's answer as one line of JSON."""
    if _stream.output is None:
        sys.stdout.write(f"{format_line(value)}\n")
        sys.stdout.flush()
    else:
        _stream.output.write_line(format_line(value))


def print_problem(problem: Mapping[str, Any]) -> None:
    """Print why there is no answer, if a program waits for one: the mistakes of a request, or the error."""
    record_outcome(problem)
    if _stream.output is not None and not _stream.tells_events:
        print_json(problem)


def emit(event: str, **fields: Any) -> None:
    """Tell an event, if a program listens: `event`, `time` (seconds since 1970) and the fields."""
    if _stream.tells_events and not _stream.has_ended and _stream.output is not None:
        _stream.output.write_line(format_line({"event": event, "time": round(time.time(), 3), **fields}))


def record_outcome(outcome: Mapping[str, Any], *, anew: bool = False) -> None:
    """Record what the last event says of a run, a sweep or a refused request; `anew`: nothing else."""
    if _stream.tells_events:
        _stream.outcome = dict(outcome) if anew else _stream.outcome | dict(outcome)


def end(status: int, /, **fields: Any) -> None:
    """Tell the last event, `ended`, once: exit status, and the recorded outcome."""
    outcome = {"exit": status, **_stream.outcome, **fields}
    if not outcome.get("status"):
        words = {0: "completed", 1: "failed", 2: "wrong"}
        outcome["status"] = words.get(status, "interrupted" if status in (75, 130) else "failed")
    emit("ended", **outcome)
    _stream.has_ended = True


@contextlib.contextmanager
def claim_stdout(*, events: bool) -> Iterator[None]:
    """Keep standard output for JSON lines: whatever else is printed there goes to standard error.

    Where standard output is descriptor 1 that holds for prints of any code of this process and its children, also below
    Python; it holds until the process ends, so that nothing follows the last line. Elsewhere (a notebook, a test)
    `sys.stdout` is replaced while the block lasts.

    Args:
        events: whether events are told, and not only an answer.
    """
    stdout, showwarning = sys.stdout, warnings.showwarning
    _stream.reset()  # a process may serve more than one request
    _stream.output, _stream.tells_events = _claim(stdout), events
    if events:

        def show(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any, **named: Any) -> None:
            emit("warning", text=str(message), category=category.__name__, where=f"{filename}:{lineno}")
            showwarning(message, category, filename, lineno, *rest, **named)

        warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning, sys.stdout = showwarning, stdout
        if isinstance(_stream.output, StreamOutput):
            _stream.reset()


def _claim(stdout: TextIO | None) -> LineOutput:
    try:
        descriptor = stdout.fileno() if stdout is not None else 1
    except (OSError, ValueError):
        descriptor = -1
    if descriptor != 1:
        sys.stdout = sys.stderr
        return StreamOutput(cast("TextIO", stdout))
    try:
        own = os.dup(1)
    except OSError:  # it was closed from the start
        return StreamOutput(cast("TextIO", open(os.devnull, "w")))  # noqa: PTH123
    redirect_stdout()
    return DescriptorOutput(own)


def redirect_stdout() -> None:
    """Send all that is printed on descriptor 1 from here on to standard error."""
    if sys.stdout is not None:
        sys.stdout.flush()
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
