"""Hold the saves of a stack in memory, and write them together where enough time has passed.

An epoch of a small stack takes less than its checkpoints take to be written and synced, one by one, for every job. So a
save is a copy in memory first, and none at all where neither a writing nor the end of the job can come to need it. What
is left to keep is written when a job ends or is stopped, and from time to time, by threads that wait for the disk while
the stack trains on. A job that trains to its last step has the checkpoints that it has alone. One that ends earlier has
its best and its last one, and may have fewer between; a process that is killed goes on from the last writing.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from runner.core.durations import compute_next_due
from runner.train.checkpoint import CheckpointEntry, Checkpoints
from runner.train.plain_state import count_bytes, to_plain
from runner.train.state import Run

LEAST_SECONDS = 5.0  # between two writings; epochs that take longer are all written
LEAST_RATIO = 10.0  # of the time between two writings to the time that all jobs took for the last
MOST_BYTES = 2_000_000  # of a state that is held; a larger one is written at once, by a thread of its own
WRITERS = 4  # files at a time: they wait for the disk most of the time


class SaveClock:
    """Clock of a stack: whether its jobs hold or write what they save at this pause.

    Attributes:
        holds: whether they hold it.
        writers: threads that write.
    """

    def __init__(self) -> None:
        self.holds, self.writers = False, ThreadPoolExecutor(WRITERS, "checkpoint")
        self._written, self._took, self._begun = time.perf_counter(), 0.0, False

    def decide(self) -> None:
        """Decide for all jobs that save at this pause, where there are some."""
        self.holds = time.perf_counter() - self._written < max(LEAST_SECONDS, LEAST_RATIO * self._took)
        self._begun = False

    def begin(self) -> None:
        """Begin the writing of this pause, at the first of its saves."""
        if not self._begun:
            self._written, self._took, self._begun = time.perf_counter(), 0.0, True

    def took(self, seconds: float) -> None:
        """Count the time of one writing."""
        self._took += seconds


class HeldCheckpoints(Checkpoints):
    """Checkpoints of a run in a stack, which hold what the run saves until the stack writes.

    Args:
        run: whose checkpoints these take over; its log is open.
        clock: of the stack.
    """

    syncs_log = False

    def __init__(self, run: Run, clock: SaveClock) -> None:
        vars(self).update(vars(run.checkpoints))
        self.background_bytes = 0
        self.clock, self.log = clock, run.log
        self.config = to_plain(run.config)
        self.run = run
        self.is_large: bool | None = None  # known from the first state on
        self.held: list[tuple[CheckpointEntry, dict[str, Any]]] = []
        self._writing: Future[None] | None = None

    def takes(self, metric: float | None) -> bool:
        """Return whether a state is to be kept: it is the best, or written now, or among the last of the job."""
        if self.is_large is not False or metric is not None or not self.clock.holds:
            return True
        return self._ends_soon()

    def _ends_soon(self) -> bool:
        """Return whether a state of now may be among the last ones when the job ends."""
        run, rhythm, step = self.run, self.run.rhythm, self.run.progress.step
        if run.stop.asked:
            return True
        for _ in range(self.keep):
            due = compute_next_due(rhythm.checkpoint_every, step, rhythm.steps_per_epoch)
            if due is None or due >= rhythm.total_steps:
                return True
            step = due
        return False

    def save(self, state: dict[str, Any], step: int, metric: float | None, *, background: bool = False) -> None:
        """Hold a state; where the clock says so, let it be written with those that are held."""
        changing = {name: part for name, part in state.items() if name != "config"}
        if self.is_large is None:
            self.is_large = count_bytes(changing) >= MOST_BYTES
        if self.is_large:
            self.wait()
            self.log.sync()
            super().save(state, step, metric, background=background)
            return
        copied = to_plain(changing, copy=True)
        try:
            self._join()
        finally:  # what could not be written before does not keep this state from being held
            self._hold(CheckpointEntry("", step, metric, ""), {name: copied.get(name, self.config) for name in state})
            if not self.clock.holds:
                self.clock.begin()
                if len(self.held) > 1 and not self._ends_soon():  # those between would soon be gone
                    best = self._best([*self.entries(), *(one for one, _ in self.held)])
                    self.held = [*((one, kept) for one, kept in self.held[:-1] if one == best), self.held[-1]]
                self.begin_writing()

    def _hold(self, entry: CheckpointEntry, state: dict[str, Any]) -> None:
        """Hold a state, without those that would be gone if all had been written."""
        self.held = [(one, kept) for one, kept in self.held if one.step < entry.step]
        self.held.append((entry, state))
        entries = [one for one in self.entries() if one.step < entry.step] + [one for one, _ in self.held]
        best = self._best(entries)
        self.held = [(one, kept) for one, kept in self.held if one in entries[-self.keep :] or one == best]

    def begin_writing(self) -> None:
        """Let a thread write what is held; `wait` waits for it, and raises what went wrong."""
        held, self.held = self.held, []
        if held:
            self._writing = self.clock.writers.submit(self._write_held, held, self._writing)

    def _write_held(self, held: list[tuple[CheckpointEntry, dict[str, Any]]], earlier: Future[None] | None) -> None:
        """Write each state, whatever became of those before, and name all at once; raise the first error."""
        failure = earlier.exception() if earlier is not None else None
        begun = time.perf_counter()
        self.log.sync()
        written: list[CheckpointEntry] = []
        for entry, state in held:
            try:
                written.append(self._store(entry, state))
            except Exception as error:  # noqa: BLE001  raised below
                failure = failure or error
        try:
            if written:
                with self._explain_failure(written[-1].file, held[-1][1]):
                    self._list(written)
        except Exception as error:  # noqa: BLE001  raised below
            failure = failure or error
        self.clock.took(time.perf_counter() - begun)
        if failure is not None:
            raise failure

    def _store(self, entry: CheckpointEntry, state: dict[str, Any]) -> CheckpointEntry:
        file = self._free_name(entry.step)
        with self._explain_failure(file, state):
            return self._write_file(to_plain(state), file, entry.step, entry.metric)

    def _join(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def wait(self) -> None:
        """Write what is held, and wait until no save is under way."""
        self.begin_writing()
        self._join()
        super().wait()
