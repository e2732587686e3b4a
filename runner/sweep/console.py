"""Console output of a running sweep: a live table on a terminal, plain lines elsewhere."""

import contextlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from runner.core import event_stream
from runner.sweep.ledger import JobRecord

REFRESH_SECONDS = 0.5


PLAIN_SECONDS = 30.0  # between two lines that only say that jobs are running


MOST_RUNNING = 16  # rows of the live table


class Console:
    """Text stream that falls silent instead of failing once its reader is gone.

    A terminal that was closed, `| head`, a file on a full disk.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None where standard output was closed from the start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        if self._stream is not None:
            with self._all_the_same():
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self._stream.encoding
                    self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._all_the_same():
                self._stream.flush()

    def say(self, text: str) -> None:
        """Write a line and flush."""
        self.write(f"{text}\n")
        self.flush()

    @contextlib.contextmanager
    def _all_the_same(self) -> Iterator[None]:
        assert self._stream is not None
        try:
            yield
        except OSError:  # what is still in its buffer would end the interpreter with a status of its own
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class SweepConsole(Protocol):
    """Console of a sweep: receives the controller's reports of jobs that start and end."""

    def started(self, row: JobRecord) -> None: ...
    def ended(self, row: JobRecord) -> None: ...
    def say(self, text: str) -> None: ...
    def tick(self) -> None:
        """Redraw if a redraw is due."""

    def close(self) -> None: ...


class SweepProgress:
    """Counts of jobs by status, the best job, and an estimate of the remaining time."""

    def __init__(self, rows: Iterable[JobRecord], total: int | None, objective: str, mode: str) -> None:
        self.total, self.objective, self.mode = total, objective, mode
        self.running: dict[str, JobRecord] = {}
        self.counts: Counter[str] = Counter()
        self.best: JobRecord | None = None
        self._statuses: dict[str, str] = {}
        self._took, self._begun = 0, time.time()
        for row in rows:
            self.update(row)

    def update(self, row: JobRecord) -> None:
        """Count an active row under its new status."""
        if not row.active:
            return
        before = self._statuses.get(row.id)
        if before is not None:
            self.counts[before] -= 1
        self._statuses[row.id] = row.status
        self.counts[row.status] += 1
        self.running.pop(row.id, None)
        self._took += before == "running" and row.status not in ("running", "waiting")
        if row.status == "running":
            self.running[row.id] = row
        elif row.status == "completed":
            self.best = find_best([self.best, row] if self.best else [row], self.mode)

    @property
    def ended(self) -> int:
        """Number of jobs that completed, failed, were pruned or were interrupted."""
        return sum(self.counts[status] for status in ("completed", "failed", "pruned", "interrupted"))

    def left(self) -> float | None:
        """Estimate the remaining seconds from the rate of ended jobs; None without a rate or a total."""
        if not self._took or self.total is None:
            return None
        rate = self._took / max(time.time() - self._begun, 1e-9)
        return max(self.total - self.ended, 0) / rate

    def line(self) -> str:
        """Summarize the progress in one line."""
        counts = self.counts
        of = "" if self.total is None else f" of {self.total:,}"
        words = [f"{counts['completed'] + counts['pruned']:,}{of} done", f"{counts['running']:,} running"]
        words += [f"{counts[status]:,} {status}" for status in ("failed", "interrupted", "pruned") if counts[status]]
        if self.best is not None:
            words.append(f"best {self.objective} {self.best.objective:.6g} ({describe_job(self.best)})")
        if (seconds := self.left()) is not None and counts["running"]:
            words.append(f"{format_clock(seconds)} left")
        return ", ".join(words)


def find_best(rows: Sequence[JobRecord], mode: str) -> JobRecord | None:
    """Return the first row with the best objective, skipping NaN; None if there is none."""
    finite = [row for row in rows if row.objective is not None and row.objective == row.objective]
    sign = 1 if mode == "min" else -1
    return min(finite, key=lambda row: sign * (row.objective or 0.0), default=None)


def format_clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def describe_job(row: JobRecord) -> str:
    """Describe a job by its number and its overrides."""
    return f"{row.number}: {shlex.join(row.overrides)}" if row.overrides else str(row.number)


def describe_end(row: JobRecord) -> str:
    """Describe the end of a job: its status, with the cause in brackets."""
    return f"{row.status} ({row.cause})" if row.cause else row.status


def make_console(tally: SweepProgress, stream: Console) -> SweepConsole:
    """Make a live table if the stream is a terminal, else plain lines."""
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Table(tally, stream) if live else PlainLines(tally, stream)


class PlainLines:
    """Plain console: a line per ended job, and a progress line after 30 s of silence."""

    def __init__(self, tally: SweepProgress, stream: Console) -> None:
        self._tally, self._stream = tally, stream
        self._due = time.monotonic() + PLAIN_SECONDS

    def started(self, row: JobRecord) -> None:
        self._tally.update(row)

    def ended(self, row: JobRecord) -> None:
        self._tally.update(row)
        of = "" if self._tally.total is None else f"/{self._tally.total}"
        value = "" if row.objective is None else f"  {self._tally.objective} {row.objective:.6g}"
        self.say(f"[{self._tally.ended}{of}] {describe_job(row)}  {describe_end(row)}{value}  {_format_elapsed(row)}")

    def say(self, text: str) -> None:
        self._stream.say(text)
        self._due = time.monotonic() + PLAIN_SECONDS

    def tick(self) -> None:
        if time.monotonic() >= self._due:
            self.say(self._tally.line())

    def close(self) -> None:
        pass


def _format_elapsed(row: JobRecord) -> str:
    return "" if row.start is None or row.end is None else f"{row.end - row.start:.1f} s"


class Table:
    """Live table of rich: running jobs and a progress line, with failed jobs printed above."""

    def __init__(self, tally: SweepProgress, stream: Console) -> None:
        from rich.console import Console as Screen  # 27 ms that only a terminal pays
        from rich.live import Live

        self._tally = tally
        self._console = Screen(file=cast("TextIO", stream))
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._due = 0.0
        self._live.start()

    def started(self, row: JobRecord) -> None:
        self._tally.update(row)

    def ended(self, row: JobRecord) -> None:
        self._tally.update(row)
        if row.status == "failed":
            self.say(f"{describe_job(row)}  {describe_end(row)}: {row.error}")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def tick(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + REFRESH_SECONDS
            self._live.update(self._drawn(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        running = sorted(self._tally.running.values(), key=_get_slot_order)
        grid = Grid("slot", "job", "for", box=None, header_style="bold", pad_edge=False)
        now = time.time()
        for row in running[:MOST_RUNNING]:
            grid.add_row(
                Text("" if row.slot is None else str(row.slot)),
                Text(describe_job(row), no_wrap=True),
                Text(format_clock(now - (row.start or now))),
            )
        more = [Text(f"and {len(running) - MOST_RUNNING} more")] if len(running) > MOST_RUNNING else []
        return Group(*([grid] if running else []), *more, Text(self._tally.line()))


def _get_slot_order(row: JobRecord) -> tuple[int, int]:
    return (-1 if row.slot is None else row.slot, row.number)


class EventConsole:
    """Console that also tells each job's start and end to the program that listens."""

    def __init__(self, console: SweepConsole, tally: SweepProgress, folder: Path) -> None:
        self._console, self._tally, self._folder = console, tally, folder
        self._told: set[str] = set()

    def started(self, row: JobRecord) -> None:
        self._console.started(row)
        if row.pid is not None or row.host:  # before, its executor has only been asked
            self._tell_start(row)

    def _tell_start(self, row: JobRecord) -> None:
        if row.id not in self._told:
            self._told.add(row.id)
            place = {"host": row.host, "slot": row.slot, "pid": row.pid, "attempt": row.attempt}
            event_stream.emit("job_started", **self._identify(row), **place)

    def ended(self, row: JobRecord) -> None:
        self._console.ended(row)
        self._tell_start(row)
        event_stream.emit(
            "job_ended",
            **self._identify(row),
            status=row.status,
            cause=row.cause,
            error=row.error,
            objective=row.objective,
            metrics=row.metrics,
            seconds=None if row.start is None or row.end is None else row.end - row.start,
            ended=self._tally.ended,
            jobs=self._tally.total,
        )

    def _identify(self, row: JobRecord) -> dict[str, Any]:
        return {"number": row.number, "overrides": row.overrides, "run": str(self._folder / row.path)}

    def say(self, text: str) -> None:
        self._console.say(text)
        event_stream.emit("note", text=text)

    def tick(self) -> None:
        self._console.tick()

    def close(self) -> None:
        self._console.close()
