"""Remote job: runs one job on a cluster's machine, with strings as input and JSON as output.

The job runs as on the machine of a sweep: in a process of its own that is watched for memory and time, with the code as
it was when the sweep was submitted. A file in its directory tells it to save and end.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from runner.core.exit_status import EXIT_STOPPED

STOP, RUNNING = "stop", "running.json"


POLL_SECONDS = 0.5


AFTERWARDS_SECONDS = 120.0  # SLURM's KillWait is 30 s, and where jobs pre-empt others a GraceTime comes before that


class RemoteJob:
    """Callable job for a queue: returns its outcome as JSON with `exit`, `cause` and `error`.

    Args:
        job: a `protocols.Job` as JSON.
        frozen: the file with the project's modules, a `frozen.Frozen` as JSON.
        path: where modules are imported from.
        here: the working directory.
        place: the folder for what is said to it and by it.
        owner: the process of this machine without which the job is to end; 0 for a queue that outlives its users.
    """

    def __init__(self, job: str, frozen: str, path: list[str], here: str, place: str, owner: int = 0) -> None:
        self.arguments = (job, frozen, path, here, place, owner)
        self._place, self._owner, self._parent = Path(place), owner, 0
        self._signalled = False
        self._slots: Any = None  # while the job runs in it
        self._job: Any = None

    def __call__(self) -> str:
        self._parent = os.getppid()
        text, frozen, path, here, *_ = self.arguments
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.chdir(here)
        from runner.sweep.code_snapshot import CodeSnapshot
        from runner.sweep.executors.local import LocalExecutor
        from runner.sweep.interfaces import JobSpec

        self._job = JobSpec(**json.loads(text))
        if (self._place / RUNNING).exists():  # the queue took it back, and begins it again: it goes on
            anew = "if_changed" if self._job.anew == "always" else self._job.anew
            self._job = dataclasses.replace(self._job, anew=anew, retry=False)
        if "SUBMITIT_EXECUTOR" in os.environ:  # what SLURM sends before it ends a job, or takes it back
            signal.signal(signal.SIGTERM, self._note)
        slots = LocalExecutor(1, CodeSnapshot(**json.loads(Path(frozen).read_text())))
        try:
            return self._watch(slots)
        finally:
            self._slots = None
            slots.kill()

    def _watch(self, slots: Any) -> str:
        """Start the job, unless it is to stop already; return its outcome as JSON."""
        from runner.core.files import write_json

        asked = False
        if slots.has_room(self._job) and not self._is_to_stop() and self._is_wanted():
            slots.start(self._job)
            self._slots = slots
        while self._is_wanted():
            if self._is_to_stop() and not asked:
                asked = True
                slots.stop(self._job.id)
            for event in slots.wait(POLL_SECONDS) if self._slots else ():
                if event.kind == "started":
                    write_json(self._place / RUNNING, {"host": socket.gethostname(), "pid": event.pid})
                    continue
                self._slots = None
                if event.exit in (EXIT_STOPPED, -signal.SIGTERM):
                    self._wait_to_be_ended()
                return _format_outcome(event.exit, event.cause, event.error)
            if not self._slots:  # it did not begin
                self._wait_to_be_ended()
                return _format_outcome(None)
        return _format_outcome(None, "lost", "whoever had started it was gone")

    def _is_to_stop(self) -> bool:
        return self._signalled or (self._place / STOP).exists()

    def _is_wanted(self) -> bool:
        return os.getppid() == self._parent and (not self._owner or _is_alive(self._owner))

    def _wait_to_be_ended(self) -> None:
        """Wait up to 120 s for the queue to end or requeue a job that the sweep did not stop."""
        deadline = time.monotonic() + AFTERWARDS_SECONDS * (not self._owner)
        while time.monotonic() < deadline and not (self._place / STOP).exists() and self._is_wanted():
            time.sleep(POLL_SECONDS)

    def _note(self, *_: object) -> None:
        self._signalled = True

    def checkpoint(self) -> Any:
        """Save and end the job when submitit announces a timeout; return the submission to requeue."""
        from submitit.helpers import DelayedSubmission

        if self._slots is not None:
            self._slots.stop(self._job.id)
            while not any(event.kind == "ended" for event in self._slots.wait(POLL_SECONDS)):
                pass
        return DelayedSubmission(RemoteJob(*self.arguments))


def _format_outcome(status: int | None, cause: str = "", error: str = "") -> str:
    return json.dumps({"exit": status, "cause": cause, "error": error})


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # Linux
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
