"""SLURM's job states: `squeue` for waiting and running jobs, `sacct` for older ones."""

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
    """SLURM client: states of jobs, queried for all jobs at once, and their cancellation."""

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._states: dict[str, str] = {}  # the last that was said of a job
        self._over: dict[str, int] = {}  # how many looks in a row a job was over in

    def is_over(self, job: str, jobs: Sequence[str]) -> bool:
        """Return whether two looks in a row at `jobs` agree that the job will not run any more.

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
        """Return whether a job runs or waits; True if SLURM does not answer."""
        states = self._look([job])
        return states is None or not _is_over(states, job)

    def ending(self, job: str) -> tuple[str, Cause]:
        """Return the state that a job ended in, and its cause."""
        state = self._states.get(job, "UNKNOWN")
        if state not in _ENDINGS:
            state = self._accounted(job) or state
        return state, _ENDINGS.get(state, "lost")

    def withdraw(self, job: str) -> None:
        """Remove a job from the queue, unless the job runs."""
        _run_command("scancel", "--state=PENDING", job)

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        _run_command("scancel", job)

    def _look(self, jobs: Sequence[str]) -> dict[str, str] | None:
        """Return the states of jobs that SLURM knows, for minutes after their end; None if unanswered."""
        try:
            lines = _run_command("squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i %T")
        except subprocess.CalledProcessError as error:  # of several unknown ones it says nothing, of a single one this
            return {} if "Invalid job id" in error.stderr else None
        except (OSError, subprocess.TimeoutExpired):
            return None
        return dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)

    def _accounted(self, job: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            for line in _run_command(
                "sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={job}"
            ):
                return line.split()[0].rstrip("+")  # `CANCELLED by 1000`
        return ""


def _is_over(states: Mapping[str, str], job: str) -> bool:
    return states.get(job, "COMPLETED") in _ENDINGS


def _run_command(*command: str) -> list[str]:
    """Run a command of SLURM; return its non-empty output lines."""
    ran = subprocess.run(  # noqa: S603  ours
        command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS
    )
    return [line for line in ran.stdout.splitlines() if line.strip()]
