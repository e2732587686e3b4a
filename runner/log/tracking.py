"""Tracking of a run by others (`log.to`): each tracker is a process, fed through a pipe.

Nothing here waits for a tracker but `wait_for_trackers`, and that for a limited time. So a tracker that fails, hangs,
prints, seeds generators or sets signal handlers does it where no weight is.
"""

import base64
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from runner.core import safe_io
from runner.core.paths import BOOTSTRAP, encode_child_path

MOST_WAITING = 64_000_000  # bytes for a tracker that takes none; then it is given up
POLL_SECONDS = 0.01
PROCESS_SECONDS = 0.5  # between a tracker's last answer and the end of its process
LAST_SECONDS = 300.0  # after the end of its run a tracker has so long, then the kernel ends it

BOOT = f"{BOOTSTRAP}from runner.experiment.tracker_process import main; main()"

_PIPES: set[int] = set()


def _close_in_child() -> None:
    # A forked loader worker shares the pipes, and its tracker would not see the end of a run that was killed.
    for pipe in _PIPES:
        with suppress(OSError):
            os.close(pipe)
    _PIPES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class TrackerProcess:
    """One tracker of a run, as the run sees it.

    Args:
        name: its key in `log.to`.
        folder: `trackers/` of the run directory; what the tracker prints goes to `<name>.log` there.
        setup: what `experiment/tracker_process.py` begins with, as plain data.
        timeout: seconds that the end of the run waits for it.
        alert: says what is amiss.
    """

    def __init__(
        self, name: str, folder: Path, setup: Mapping[str, Any], timeout: float, alert: Callable[[str], None]
    ) -> None:
        self.name, self.timeout, self.alert = name, timeout, alert
        self._log = folder / f"{name}.log"
        self._waiting, self._bytes, self._answers = deque[memoryview](), 0, b""
        self._is_over = self._is_done = False
        with suppress(FileNotFoundError):
            if self._log.lstat().st_nlink > 1:  # it has another name elsewhere
                self._log.unlink()
        output = safe_io.open_regular(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._process = subprocess.Popen(  # noqa: S603  ours
                [sys.executable, "-c", BOOT, encode_child_path()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the run, which then tells it
            )
        finally:
            os.close(output)
        self._stdin, self._stdout = (cast("Any", pipe).fileno() for pipe in (self._process.stdin, self._process.stdout))
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        _PIPES.update((self._stdin, self._stdout))
        self.send(dict(setup))

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message, pass on what the pipe takes at once, and say what the tracker has answered."""
        if self._is_over:
            return
        line = json.dumps(message, default=str).encode() + b"\n"
        self._waiting.append(memoryview(line))
        self._bytes += len(line)
        self._exchange()
        if self._bytes > MOST_WAITING:
            self._give_up(f"takes nothing: {self._bytes / 1e6:.0f} MB wait for it")

    def _exchange(self) -> None:
        self._read_answers()
        try:
            while self._waiting and not self._is_over:
                done = os.write(self._stdin, self._waiting[0])
                self._bytes -= done
                rest = self._waiting.popleft()[done:]
                if rest:
                    self._waiting.appendleft(rest)
        except BlockingIOError:
            pass
        except OSError:
            self._read_answers()
            self._give_up(f"has ended (status {self._process.poll()})")

    def _read_answers(self) -> None:
        with suppress(OSError):  # nothing is there
            while part := os.read(self._stdout, 65536):
                self._answers += part
        *lines, self._answers = self._answers.split(b"\n")
        for line in lines:
            answer = safe_io.parse_json(line)
            self._is_done = self._is_done or "done" in answer
            if "failed" in answer:
                self.alert(f"log.to.{self.name}: {answer['failed']}. The run goes on; more is in {self._log}")
            self._is_over = self._is_over or bool(answer.get("over"))

    def _give_up(self, why: str) -> None:
        if not self._is_over and not self._is_done:
            self.alert(f"log.to.{self.name} {why}. The run goes on without it; more may be in {self._log}")
        self._is_over = True
        self._waiting.clear()

    @property
    def is_ended(self) -> bool:
        """Whether nothing more can come from it."""
        return self._is_over or self._is_done

    def exchange(self) -> None:
        """Pass on what the pipe takes, and read what has come."""
        if self.is_ended:
            return
        self._exchange()
        if self._process.poll() is not None:
            self._read_answers()
            self._give_up(f"has ended (status {self._process.returncode})")

    def register(self, poll: "select.poll") -> None:
        """Have a poll return when something can be exchanged."""
        poll.register(self._stdout, select.POLLIN)
        if self._waiting:
            poll.register(self._stdin, select.POLLOUT)

    def close(self, until: float) -> None:
        """Close the pipes; a tracker that is not done goes on by itself for LAST_SECONDS.

        The process of one that is done may take until a `time.monotonic()` value to end.
        """
        if not self.is_ended:
            self.alert(
                f"log.to.{self.name} is not done {self.timeout:g} s after the end of the run (`timeout`). "
                f"It goes on by itself for at most {LAST_SECONDS / 60:.0f} minutes"
            )
        for pipe, stream in ((self._stdin, self._process.stdin), (self._stdout, self._process.stdout)):
            _PIPES.discard(pipe)
            with suppress(OSError):
                cast("Any", stream).close()
        try:
            self._process.wait(max(0.0, until - time.monotonic()) if self.is_ended else 0)
        except subprocess.TimeoutExpired:
            threading.Thread(target=self._process.wait, name=f"end of {self.name}", daemon=True).start()


def send_scalars(trackers: Sequence[TrackerProcess], step: int, values: Mapping[str, Any]) -> None:
    """Send the values of a step; some 20 µs a tracker."""
    for tracker in trackers:
        tracker.send({"step": step, "values": dict(values)})


def send_pictures(trackers: Sequence[TrackerProcess], step: int, shown: Sequence[Any]) -> None:
    """Send the pictures among TensorBoard's messages."""
    pictures = {
        one.tag: base64.b64encode(one.image.encoded_image_string).decode() for one in shown if one.HasField("image")
    }
    for tracker in trackers if pictures else ():
        tracker.send({"step": step, "pictures": pictures})


def tell_end(trackers: Sequence[TrackerProcess], status: str, *, complete: bool) -> None:
    """Tell all trackers the end of their run.

    `complete` says whether the last step has all of its values; else a resume sends it.
    """
    for tracker in trackers:
        tracker.send({"end": status, "complete": complete})


def wait_for_trackers(trackers: Sequence[TrackerProcess]) -> None:
    """Wait for trackers that know the end of their runs, for all at once, each up to its timeout."""
    began = time.monotonic()
    waiting = [tracker for tracker in trackers if not tracker.is_ended]
    while waiting:
        poll = select.poll()
        for tracker in waiting:
            tracker.register(poll)
        poll.poll(POLL_SECONDS * 1000)
        for tracker in waiting:
            tracker.exchange()
        passed = time.monotonic() - began
        waiting = [tracker for tracker in waiting if not tracker.is_ended and passed < tracker.timeout]
    until = time.monotonic() + PROCESS_SECONDS
    for tracker in trackers:
        tracker.close(until)
