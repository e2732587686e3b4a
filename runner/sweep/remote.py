"""One job on another machine: what a cluster's queue runs there. It gets texts alone, and gives one back.

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

STOP, RUNNING = "stop", "running.json"
POLL_SECONDS = 0.5
INTERRUPTED = 75  # the exit status of a job that was asked to save and end
AFTERWARDS_SECONDS = 120.0  # SLURM's KillWait is 30 s, and where jobs pre-empt others a GraceTime comes before that


class Work:
    """Runs a job when it is called; gives the JSON of how it ended: `exit`, `cause`, `error`.

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
        self._slots: Any = None  # while the job runs in it
        self._job = ""

    def __call__(self) -> str:
        parent = os.getppid()
        text, frozen, path, here, place, owner = self.arguments
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.chdir(here)
        from runner.files import write_json
        from runner.sweep.frozen import Frozen
        from runner.sweep.protocols import Job
        from runner.sweep.slots import Slots

        folder, asked, job = Path(place), False, Job(**json.loads(text))
        if (folder / RUNNING).exists():  # the queue took it back, and begins it again: it goes on
            job = dataclasses.replace(job, anew="if_changed" if job.anew == "always" else job.anew, retry=False)
        slots, answer, until = Slots(1, Frozen(**json.loads(Path(frozen).read_text()))), None, float("inf")
        if "SUBMITIT_EXECUTOR" in os.environ:  # what SLURM sends before it ends a job, or takes it back
            signal.signal(signal.SIGTERM, lambda *_: slots.stop(job.id))
        try:
            ready = slots.has_room(job)
            while answer is None or time.monotonic() < until:
                if os.getppid() != parent or (owner and not _lives(owner)):
                    return _answer(None, "lost", "whoever had started it was gone")
                if not asked and (folder / STOP).exists():
                    asked, until = True, 0.0
                    if ready:
                        return _answer(None)
                    slots.stop(job.id)
                if ready:
                    ready = False
                    slots.start(job)
                    self._slots, self._job = slots, job.id
                for event in slots.wait(POLL_SECONDS):
                    if event.kind == "started":
                        write_json(folder / RUNNING, {"host": socket.gethostname(), "pid": event.pid})
                        continue
                    answer = _answer(event.exit, event.cause, event.error)
                    self._slots = None
                    # Stopped, but not from here: the queue is about to end this process too, and knows what comes next.
                    by_the_queue = event.exit in (INTERRUPTED, -signal.SIGTERM) and not (asked or owner)
                    until = time.monotonic() + AFTERWARDS_SECONDS * by_the_queue
            return answer
        finally:
            slots.kill()

    def checkpoint(self) -> Any:
        """What submitit calls, in the middle of the above, when time is nearly up: save and end, to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._slots is not None:
            self._slots.stop(self._job)
            while not any(event.kind == "ended" for event in self._slots.wait(POLL_SECONDS)):
                pass
        return DelayedSubmission(Work(*self.arguments))


def _answer(status: int | None, cause: str = "", error: str = "") -> str:
    return json.dumps({"exit": status, "cause": cause, "error": error})


def _lives(process: int) -> bool:
    """Whether a process of this machine runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # Linux
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
