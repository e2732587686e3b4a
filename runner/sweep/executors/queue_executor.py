"""Base of the executors with a queue: submit jobs, poll their results, stop them."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core.files import write_text
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors.remote import RUNNING, STOP, RemoteJob
from runner.sweep.interfaces import Event, JobSpec
from runner.sweep.ledger import Cause

POLL_SECONDS = 0.1  # between two looks at what has ended


QUEUE = "queue"


class QueueExecutor:
    """Base executor of queued jobs (see `interfaces.Executor`).

    A subclass implements `_submit`, `_is_done`, `_outcome` and `_cancel`; `_queued` and `_withdraw` where it can.

    Args:
        frozen: the project's modules as they were at submission.
        most: how many jobs may run or wait there at a time: a search chooses a point when there is room for it.
    """

    def __init__(self, frozen: CodeSnapshot, most: int, owner: int = 0) -> None:
        self._frozen, self._most, self._owner = frozen, most, owner
        self._handles: dict[str, Any] = {}
        self._places: dict[str, Path] = {}
        self._waiting: set[str] = set()  # of which it is not known yet that they run
        self._stopped: set[str] = set()

    def prepare(self) -> None:
        """Do nothing: the other machine imports for itself."""

    def has_room(self, job: JobSpec) -> bool:
        return len(self._handles) < self._most

    def start(self, job: JobSpec) -> None:
        folder = Path(job.folder)
        place = folder.parent / QUEUE / folder.name  # not in the job's own, which an attempt may put aside
        place.mkdir(parents=True, exist_ok=True)
        (place / STOP).unlink(missing_ok=True)
        self._places[job.id] = place
        self._waiting.add(job.id)
        handle = self._queued(place)
        if handle is None:
            (place / RUNNING).unlink(missing_ok=True)
            path = [entry or str(Path.cwd()) for entry in sys.path]
            modules = self._written_down(place.parent)
            work = RemoteJob(
                json.dumps(dataclasses.asdict(job)), modules, path, str(Path.cwd()), str(place), self._owner
            )
            handle = self._submit(work, job, place)
        self._handles[job.id] = handle

    def _written_down(self, folder: Path) -> str:
        """Write the snapshot to a file named by its hash, which queued jobs keep; return the path."""
        text = json.dumps(dataclasses.asdict(self._frozen))
        file = folder / f"frozen.{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            write_text(file, text)
        return str(file)

    def wait(self, seconds: float) -> Sequence[Event]:
        deadline = time.monotonic() + seconds
        while True:
            events = [event for job in list(self._handles) for event in self._look(job)]
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            time.sleep(min(left, POLL_SECONDS))

    def stop(self, job: str) -> None:
        (self._places[job] / STOP).touch()
        self._stopped.add(job)
        with contextlib.suppress(Exception):  # the queue does not answer: it reads the file once it begins
            self._withdraw(self._handles[job], begun=job not in self._waiting)

    def kill(self) -> None:
        for job, handle in self._handles.items():
            (self._places[job] / STOP).touch()
            with contextlib.suppress(Exception):  # it has ended, or the queue does not answer: nothing more can be done
                self._cancel(handle)
        self._handles.clear()

    def close(self) -> None:
        """Do nothing: no job of this sweep is left in the queue."""

    def _look(self, job: str) -> list[Event]:
        events = []
        with contextlib.suppress(OSError, ValueError):
            if job in self._waiting:
                place = json.loads((self._places[job] / RUNNING).read_text())
                self._waiting.discard(job)
                events.append(Event("started", job, place["host"], pid=place["pid"]))
        if self._is_done(self._handles[job]):
            outcome = self._outcome(self._handles.pop(job))
            self._waiting.discard(job)
            if job in self._stopped and outcome["exit"] is None:  # as it was asked to: it may not even have begun
                outcome = make_outcome(None)
            events.append(Event("ended", job, exit=outcome["exit"], cause=outcome["cause"], error=outcome["error"]))
        return events

    def _queued(self, _place: Path) -> Any:
        """Return the handle of a job that an earlier controller queued; None without one."""
        return None

    def _submit(self, work: RemoteJob, job: JobSpec, place: Path) -> Any:
        """Queue a job; return a handle of it."""
        raise NotImplementedError

    def _is_done(self, handle: Any) -> bool:
        """Return whether the job has ended, in whatever way."""
        raise NotImplementedError

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        """Return exit status, cause and error of a job that is done (`make_outcome`)."""
        raise NotImplementedError

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        """Take a waiting job back from the queue; a running one saves and ends by itself."""

    def _cancel(self, handle: Any) -> None:
        """End a running job at once."""
        raise NotImplementedError


def make_outcome(status: int | None, cause: Cause | str = "", error: str = "") -> dict[str, Any]:
    """Make the outcome of a job: exit status, cause and error."""
    return {"exit": status, "cause": cause, "error": error}
