"""One job on another machine: what a cluster's queue runs there. It gets texts alone, and gives one back.

The job runs as on the machine of a sweep: in a process of its own that is watched for memory and time, with the code as
it was when the sweep was submitted. A file in its directory tells it to save and end.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

STOP, RUNNING = "stop", "running.json"
POLL_SECONDS = 0.5


class Work:
    """Runs a job when it is called; gives the JSON of how it ended: `exit`, `cause`, `error`.

    Args:
        job: a `protocols.Job` as JSON.
        frozen: the file with the project's modules, a `frozen.Frozen` as JSON.
        path: where modules are imported from, as JSON.
        place: the folder for what is said to it and by it.
        owner: the process of this machine without which the job is to end; 0 for a queue that outlives its users.
    """

    def __init__(self, job: str, frozen: str, path: str, place: str, owner: int = 0) -> None:
        self.texts = (job, frozen, path, place, owner)
        self._slots: Any = None
        self._job: Any = None

    def __call__(self) -> str:
        job, frozen, path, place, owner = self.texts
        sys.path.extend(entry for entry in json.loads(path) if entry not in sys.path)
        from runner.files import write_json
        from runner.sweep.frozen import Frozen
        from runner.sweep.protocols import Job
        from runner.sweep.slots import Slots

        self._job = Job(**json.loads(job))
        self._slots = Slots(1, Frozen(**json.loads(Path(frozen).read_text())))
        folder, parent, asked = Path(place), os.getppid(), False
        try:
            if self._slots.has_room(self._job):  # as soon as it is ready
                self._slots.start(self._job)
            while True:
                for event in self._slots.wait(POLL_SECONDS):
                    if event.kind == "ended":
                        return json.dumps({"exit": event.exit, "cause": event.cause, "error": event.error})
                    write_json(folder / RUNNING, {"host": socket.gethostname(), "pid": event.pid})
                if not asked and (folder / STOP).exists():
                    asked = True
                    self._slots.stop(self._job.id)
                if os.getppid() != parent or (owner and not _lives(owner)):
                    return json.dumps({"exit": None, "cause": "lost", "error": "whoever had started it was gone"})
        finally:
            self._slots.kill()

    def checkpoint(self) -> Any:
        """What submitit calls, in the middle of the above, when time is nearly up: save and end, to be queued again."""
        from submitit.helpers import DelayedSubmission

        self._slots.stop(self._job.id)
        while not any(event.kind == "ended" for event in self._slots.wait(POLL_SECONDS)):
            pass
        return DelayedSubmission(Work(*self.texts))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
