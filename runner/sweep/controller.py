"""Controller of a sweep: the one process that asks for points, starts jobs and writes the ledger."""

import dataclasses
import math
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runner.core.errors import ConfigError
from runner.core.exit_status import EXIT_APART, EXIT_DONE, get_stop_status
from runner.core.stop_signals import handle_signals, leave_at_once
from runner.experiment.examine import examine
from runner.sweep.console import SweepConsole
from runner.sweep.interfaces import Event, Executor, JobSpec, Proposal, Source
from runner.sweep.jobs import Anew, PlannedJob, SweepPlan
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.outcome import RESULT, describe_exit, read_json, read_outcome, read_place
from runner.sweep.reconcile import decide, read_job_numbers, reconcile_row, remember_code
from runner.sweep.stacks import Place, StackPlan, read_fitting
from runner.sweep.verdicts import encode_verdicts, read_verdicts

CLOCK_SECONDS = 2.0  # by which the clock of a file system may be behind that of this process

LOOK_SECONDS = 1.0  # between two looks at the jobs of stacks, of which some end before the others

SETTLED_SECONDS = 20.0  # after which a stack has taken its memory, which is no longer among what is free

WAIT_SECONDS = 0.2  # so long at most until a signal, or the clock of the board, is looked at


@dataclasses.dataclass
class SweepStop:
    """Signals received by the sweep: the first lets jobs save, a later Ctrl-C kills them.

    Attributes:
        signals: those that came.
        noted: whether somebody looks at them, so that they need not end this process.
    """

    signals: list[int] = dataclasses.field(default_factory=list)
    noted: bool = False

    @property
    def status(self) -> int:
        """Exit status for the first signal: 130 for SIGINT, 75 for any other."""
        return get_stop_status(self.signals[0])


@contextmanager
def catch_stop_signals(stop: SweepStop) -> Iterator[None]:
    """Record SIGINT, SIGTERM and SIGUSR1 in `stop`; exit at once while `stop.noted` is False.

    An exception in its place may be lost in a callback of an import. The same SIGTERM reaches a process more than once
    (`timeout`, a queue), so that only Ctrl-C means more the second time.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT or not stop.signals:
            stop.signals.append(number)
        if not stop.noted:
            leave_at_once(stop.status, number)

    with handle_signals(handler):
        yield


class Controller:
    """Event loop of a sweep: asks for points, starts jobs and records how they end.

    Args:
        plan: what its jobs are.
        ledger: open for writing, the sweep's lock held; every known point has its row.
        source: where points come from.
        executor: where jobs run.
        board: what is said meanwhile.
        stop: the signals that came.
    """

    def __init__(
        self, plan: SweepPlan, ledger: Ledger, source: Source, executor: Executor, board: SweepConsole, stop: SweepStop
    ) -> None:
        self._plan, self._ledger, self._source, self._executor = plan, ledger, source, executor
        self._board, self._stop = board, stop
        self.rows: dict[str, JobRecord] = {row.id: row for row in ledger.jobs()}
        self._points: dict[str, list[Proposal]] = {}  # what each job was asked for as
        self._there = read_job_numbers(plan.folder)
        self._number = max([*(row.number for row in self.rows.values()), *self._there.values(), -1])
        self._waiting: deque[tuple[PlannedJob, Anew]] = deque()
        self._next: tuple[list[tuple[PlannedJob, Anew]], JobSpec] | None = None  # what starts as soon as there is room
        self._stacks = StackPlan(plan.settings, queued=plan.is_queued)
        self._stacks.recall(read_verdicts(ledger.settings()))
        self._trials: dict[str, str] = {}  # stacks whose group waits for what their trial finds: by id, the group
        self._members: dict[str, list[tuple[PlannedJob, Anew]]] = {}  # of each stack that runs
        self._begun: dict[str, float] = {}  # when each stack began
        self._to_come: set[str] = set()  # what waits or runs
        self._running: set[str] = set()
        self._asked_to_stop: set[str] = set()
        self._failed: JobRecord | None = None  # the job that `sweep.fail_fast` ends the sweep for
        self._count = 0  # of stacks
        self._next_look = 0.0
        self._places: dict[str, Place] = {}  # where each job that has been there before stands

    def add(self, asked: PlannedJob, anew: Anew | None) -> None:
        """Attach a point to its row; queue the job if `anew` is given, else report its end."""
        self._points.setdefault(asked.id, []).append(asked.point)
        row = self.rows[asked.id]
        self._source.started(asked.point, row)
        if anew is not None:
            self._stacks.add(asked.id, asked.config, lambda: asked.stack_id)
            self._waiting.append((asked, anew))
            self._to_come.add(asked.id)
        elif asked.id not in self._to_come:
            self._source.ended(asked.point, row)

    def run(self) -> None:
        """Run until no job is left, or until the sweep is stopped and its running jobs have ended."""
        said = 0
        while True:
            if len(self._stop.signals) > said:
                said = len(self._stop.signals)
                self._answer_signals(at_once=said > 1)
            elif not self._is_stopping():
                self._fill()
            if not self._running and not self._members and (self._is_stopping() or self._has_no_more()):
                return
            for event in self._executor.wait(WAIT_SECONDS):
                self._take(event)
            self._look_at_stacks()
            self._board.tick()

    def _is_stopping(self) -> bool:
        return bool(self._stop.signals) or self._failed is not None

    def _has_no_more(self) -> bool:
        return self._source_is_done() and not self._waiting

    def _source_is_done(self) -> bool:
        return self._source.known or self._source.done

    def _fill(self) -> None:
        """Start jobs while the executor has room for the next one."""
        while self._waiting or self._ask():
            self._next = self._next or self._choose()
            if self._next is None or not self._executor.has_room(self._next[1]):
                return
            chosen, job = self._next
            self._next = None
            started = {"status": "running", "start": time.time(), "end": None, "cause": "", "error": "", "exit": None}
            with self._ledger.transaction():  # on the disk before the process is started
                for asked, anew in chosen:
                    self._waiting.remove((asked, anew))
                    row = self.rows[asked.id]
                    (self._plan.folder / row.path).mkdir(exist_ok=True)
                    self._update(row.id, **started, attempt=row.attempt + 1, host="", slot=None, pid=None)
                    self._running.add(row.id)
                    self._places.pop(row.id, None)
            if job.members:
                self._members[job.id] = chosen
                self._begun[job.id] = time.monotonic()
            if job.timed:
                self._trials[job.id] = self._stacks.keys[chosen[0][0].id]
            self._executor.start(job)
            for asked, _ in chosen:
                self._board.started(self.rows[asked.id])

    def _choose(self) -> tuple[list[tuple[PlannedJob, Anew]], JobSpec] | None:
        """Choose the jobs of the next process: the first that may start, or a stack with it.

        None where all that wait are like those of a stack whose trial is under way: they take its verdict over.
        """
        tried = set(self._trials.values())
        waiting = {
            asked.id: (asked, anew) for asked, anew in self._waiting if self._stacks.keys.get(asked.id) not in tried
        }
        if not waiting:
            return None
        if self._stacks.keys:
            self._stacks.gpus = getattr(self._executor, "gpus", 0)  # of the local one, which knows when it is ready
        chosen = [waiting[job] for job in self._stacks.choose([*waiting], self._read_place)]
        specs = [self._plan.job(asked, self.rows[asked.id], anew, self._source.judge) for asked, anew in chosen]
        first = specs[0].id
        if line := self._stacks.say_recalled(first):
            self._board.say(line)
        if len(specs) == 1:
            return chosen, specs[0]
        timed = self._plan.settings.vectorize == "auto" and not self._stacks.has_decided(first)
        job = self._plan.stack(specs, self._count, self._count_sharing(chosen), timed=timed)
        self._count += 1
        return chosen, job

    def _count_sharing(self, chosen: Sequence[tuple[PlannedJob, Anew]]) -> int:
        """Count the stacks that share the free memory: this one, those that just begin, those to come."""
        young = {name for name in self._members if time.monotonic() - self._begun[name] < SETTLED_SECONDS}
        held = len(self._running) - sum(len(members) for members in self._members.values())  # by jobs alone
        held += len(self._members) - len(young)
        beginning = sum(len(self._members[name]) for name in young)
        stacks = math.ceil((len(self._waiting) + beginning) / len(chosen))
        return max(1, min(self._stacks.count_slots(chosen[0][0].config) - held, stacks))

    def _read_place(self, job: str) -> Place:
        row = self.rows[job]
        if not row.attempt:
            return 0, ""
        if job not in self._places:
            self._places[job] = read_place(self._plan.folder / row.path)
        return self._places[job]

    def _ask(self) -> bool:
        """Ask the source for points until a job, or a batch, waits to run; return whether one does."""
        while self._source.has_more or (
            not self._waiting and not self._source_is_done() and self._executor.has_room(self._plan.typical)
        ):
            point = self._source.next()
            if point is None:
                return False
            try:
                asked, checked = self._plan.ask(point)
                if mistakes := checked.at_once or examine(asked.job.composed, self._plan.trust).mistakes:
                    raise ConfigError(mistakes)
            except ConfigError as error:
                self._source.refused(point, str(error))
                continue
            if asked.id not in self.rows:
                number = self._there.get(asked.id[:8])
                if number is None:
                    number = self._number = self._number + 1
                row = self._plan.row(asked, number)
                self._ledger.add([row])
                self.rows[asked.id] = reconcile_row(row, self._ledger, self._plan.folder)
            self._update(asked.id, active=True)
            row = self.rows[asked.id]
            to_come = asked.id in self._to_come
            self.add(asked, None if to_come else decide([row], self._ledger, self._plan).run.get(row.id))
        return bool(self._waiting)

    def _take(self, event: Event) -> None:
        members = self._members.get(event.job)
        if event.kind == "started":
            jobs = [event.job] if members is None else [asked.id for asked, _ in members]
            with self._ledger.transaction():
                for job in jobs:
                    self._update(job, host=event.host, slot=event.slot, pid=event.pid)
            for job in jobs:
                self._board.started(self.rows[job])
            return
        if event.kind == "tried":
            if members is not None:
                self._take_verdict(event, members)
            return
        self._trials.pop(event.job, None)
        if members is not None:
            del self._members[event.job]
            if len(members) == 1 and members[0][0].id in self._running:  # whose trial has left it alone
                self._end(event, [members[0][0].id])
            else:
                self._take_stack(event, members)
        elif event.job in self._running:  # else it was ended from here, and its executor says so too
            self._end(event, [event.job])

    def _take_verdict(self, event: Event, members: list[tuple[PlannedJob, Anew]]) -> None:
        """Record what a trial has found; its process goes on with all jobs, or with the one that it names."""
        self._trials.pop(event.job, None)
        as_one, first = event.exit != EXIT_APART, members[0][0].id
        known = self._stacks.has_decided(first) and self._stacks.verdicts[self._stacks.keys[first]].as_one == as_one
        if not known:
            verdict = self._stacks.decide(first, as_one=as_one, why=event.error)
            self._board.say(verdict.describe(self._stacks.count_alike(first)))
        ids = [asked.id for asked, _ in members]
        self._note_stacked(ids, as_one=as_one)
        if as_one:
            return
        self._stacks.part(ids, alone=True)
        self._next = None
        stays = [(asked, anew) for asked, anew in members if asked.id == event.member]
        self._members[event.job] = stays
        for asked, anew in reversed(members):
            if asked.id != event.member and asked.id in self._running:  # its directory was not touched
                self._let_wait(asked, attempt=self.rows[asked.id].attempt - 1)
                self._waiting.appendleft((asked, anew))

    def _let_wait(self, asked: PlannedJob, **columns: Any) -> None:
        self._running.discard(asked.id)
        self._update(asked.id, status="waiting", pid=None, slot=None, **columns)
        self._board.started(self.rows[asked.id])

    def _note_stacked(self, jobs: Sequence[str], *, as_one: bool) -> None:
        """Write into the ledger what was decided about these jobs, and whether they are in a stack."""
        if (verdict := self._stacks.verdicts.get(self._stacks.keys[jobs[0]])) is None:
            return
        numbers = {self.rows[job].number for job in jobs}
        verdict.jobs = sorted({*verdict.jobs} | numbers if as_one else {*verdict.jobs} - numbers)
        self._ledger.set(stacks=encode_verdicts(self._stacks.verdicts))

    def _take_stack(self, event: Event, members: list[tuple[PlannedJob, Anew]]) -> None:
        """Record the ends of a stack's jobs; those without one wait again, for smaller stacks."""
        running = [(asked, anew) for asked, anew in members if asked.id in self._running]
        left = [(asked, anew) for asked, anew in running if self._is_left(event, asked.id)]
        names = {asked.id for asked, _ in left}
        self._end(event, [asked.id for asked, _ in running if asked.id not in names])
        if not left:
            return
        fits = read_fitting(event.error)
        memory = "out of memory" in event.error or fits > 1
        alone = event.exit == EXIT_APART and not memory
        ids = [asked.id for asked, _ in left]
        self._stacks.part(ids, alone=alone, fits=fits)
        self._next = None
        if alone and len(members) > 1:
            self._stacks.decide(ids[0], as_one=False, why=event.error)
        self._note_stacked(ids, as_one=False)
        how = "alone" if alone or len(left) == 1 else "in smaller stacks"
        why = event.error or describe_exit(event.exit, event.cause)
        self._board.say(f"{len(left):,} jobs of a stack go on {how}: {why}")
        with self._ledger.transaction():
            for asked, anew in left:
                self._let_wait(asked)
                self._waiting.append((asked, "if_changed" if anew == "always" else anew))

    def _look_at_stacks(self) -> None:
        """Record the ends of jobs whose stack goes on without them, at most once a second."""
        if not self._members or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        for stack, members in list(self._members.items()):
            ended = []
            for job in [asked.id for asked, _ in members if asked.id in self._running]:
                row = self.rows[job]
                file = self._plan.folder / row.path / RESULT
                try:
                    is_of_this_attempt = file.stat().st_mtime > (row.start or 0.0)
                except OSError:
                    continue
                if is_of_this_attempt and (read_json(file) or {}).get("status") in ("completed", "pruned", "failed"):
                    ended.append(job)
            self._end(Event("ended", stack, exit=EXIT_DONE), ended)

    def _is_left(self, event: Event, job: str) -> bool:
        """Return whether a job of an ended stack is tried again: it has no result of this attempt."""
        row = self.rows[job]
        if job in self._asked_to_stop or event.cause == "lost":
            return False
        try:
            written = (self._plan.folder / row.path / RESULT).stat().st_mtime
        except OSError:
            return True
        return written < (row.start or 0.0) - CLOCK_SECONDS

    def _end(self, event: Event, jobs: Sequence[str]) -> None:
        """Record how jobs of one process have ended, together, and tell it once that is on the disk."""
        if not jobs:
            return
        with self._ledger.transaction():
            for job in jobs:
                self._record_end(event, job)
        for job in jobs:
            self._tell_end(job)

    def _record_end(self, event: Event, job: str) -> None:
        self._running.remove(job)
        folder = self._plan.folder / self.rows[job].path
        stopped = job in self._asked_to_stop
        status = None if event.exit == EXIT_APART else event.exit
        columns = read_outcome(folder, status, event.cause, event.error, stopped=stopped)
        remember_code(self._ledger, folder, columns["code"])
        self._to_come.discard(job)
        self._update(job, end=time.time(), **columns)

    def _tell_end(self, job: str) -> None:
        row = self.rows[job]
        self._board.ended(row)
        for point in self._points[job]:
            self._source.ended(point, row)
        if row.status == "failed" and self._plan.settings.fail_fast and not self._is_stopping():
            self._failed = row
            words = f"{len(self._running)} running jobs save and stop, {len(self._waiting)} wait"
            self._board.say(f"job {row.number} failed (sweep.fail_fast): {words}")
            self._stop_jobs()

    def _update(self, job: str, **columns: Any) -> None:
        self._ledger.update(job, **columns)
        self.rows[job] = dataclasses.replace(self.rows[job], **columns)

    def _answer_signals(self, *, at_once: bool) -> None:
        if at_once:
            self._executor.kill()
            self._asked_to_stop.update(self._running)
            for job in list(self._running):
                self._end(Event("ended", job, exit=-signal.SIGKILL), [job])
            self._members.clear()
            return
        name = signal.Signals(self._stop.signals[0]).name
        again = "; once more stops at once, with what is saved" if self._stop.signals[0] == signal.SIGINT else ""
        self._board.say(f"{name}: {len(self._running)} running jobs save and stop{again}")
        self._stop_jobs()

    def _stop_jobs(self) -> None:
        """Let the running jobs save and stop."""
        in_stack = {asked.id: stack for stack, members in self._members.items() for asked, _ in members}
        for job in dict.fromkeys(in_stack.get(job, job) for job in self._running - self._asked_to_stop):
            self._executor.stop(job)
        self._asked_to_stop |= self._running
