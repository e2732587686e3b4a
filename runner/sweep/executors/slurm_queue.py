"""What SLURM says of our jobs: `squeue` of those that wait and run, `sacct`, where a cluster has it, of older ones."""

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence

from runner.sweep.ledger import Cause

LOOK_SECONDS = 10.0  # between two calls of squeue, for all jobs at once


ANSWER_SECONDS = 60.0


# A job in one of these never runs again; one that is queued again is PENDING. What the queue did is tried again.
_ENDINGS: dict[str, Cause] = {
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "memory",
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "PREEMPTED": "lost",
    "REVOKED": "lost",
    "CANCELLED": "killed",
    "COMPLETED": "lost",
    "FAILED": "lost",
}


class Slurm:
    """Asks for the states of jobs, no oftener than it should."""

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._states: dict[str, str] = {}  # the last that was said of a job
        self._over: dict[str, int] = {}  # how many looks in a row a job was over in

    def is_over(self, job: str, jobs: Sequence[str]) -> bool:
        """Whether a job will not run any more, which two looks must agree on; `jobs` are all that are looked for.

        What it has left behind is there for this machine too by then.
        """
        if time.monotonic() - self._asked > LOOK_SECONDS:
            self._asked = time.monotonic()
            states = self._look(jobs)
            if states is not None:
                self._states |= states
                over = [one for one in jobs if _is_over(states, one)]
                self._over = {one: self._over.get(one, 0) + 1 for one in over}
        return self._over.get(job, 0) > 1

    def may_run(self, job: str) -> bool:
        """Whether a job runs or waits, or SLURM does not answer."""
        states = self._look([job])
        return states is None or not _is_over(states, job)

    def ending(self, job: str) -> tuple[str, Cause]:
        """The state that a job ended in, and what that is a case of."""
        state = self._states.get(job, "UNKNOWN")
        if state not in _ENDINGS:
            state = self._accounted(job) or state
        return state, _ENDINGS.get(state, "lost")

    def withdraw(self, job: str) -> None:
        """Take it out of the queue, unless it runs."""
        _said("scancel", "--state=PENDING", job)

    def cancel(self, job: str) -> None:
        """End it."""
        _said("scancel", job)

    def _look(self, jobs: Sequence[str]) -> dict[str, str] | None:
        """The states of the jobs that SLURM knows, and it forgets what ended minutes ago; None without an answer."""
        try:
            lines = _said("squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i %T")
        except subprocess.CalledProcessError as error:  # of several unknown ones it says nothing, of a single one this
            return {} if "Invalid job id" in error.stderr else None
        except (OSError, subprocess.TimeoutExpired):
            return None
        return dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)

    def _accounted(self, job: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            for line in _said("sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={job}"):
                return line.split()[0].rstrip("+")  # `CANCELLED by 1000`
        return ""


def _is_over(states: Mapping[str, str], job: str) -> bool:
    return states.get(job, "COMPLETED") in _ENDINGS


def _said(*command: str) -> list[str]:
    """The lines that a command of SLURM's prints."""
    ran = subprocess.run(  # noqa: S603  ours
        command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS
    )
    return [line for line in ran.stdout.splitlines() if line.strip()]
