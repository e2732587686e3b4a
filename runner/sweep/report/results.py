"""What came of a sweep, at any time: its jobs, replicates as one entry, the best first, and what is wrong."""

import json
import math
import os
import socket
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.config.suggestions import did_you_mean, nearest
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import shell_line
from runner.sweep.interfaces import OUTPUT
from runner.sweep.ledger import FILE, OF_THE_MACHINE, Ledger, Row
from runner.sweep.report.significance import ALPHA, Mean, welch

UNFINISHED = ("running", "interrupted", "pruned")  # whose last logged objective is worth showing


Curve = list[tuple[int, float]]  # optimizer step, value


@dataclass(frozen=True)
class Entry:
    """One line of the table: a job, or the replicates of a point.

    Attributes:
        rows: its jobs; those without a result too.
        values: of the keys that varied.
        mean: of the objective over the completed ones; None where none is.
        last: the objective as it was last logged, where none is completed.
        rank: from 1; None where it is not ranked.
        p: of Welch's test against the best; None where it is the best itself, or noise is not known.
        front: whether no other entry is better in one of several objectives and not worse in another.
        scores: the mean of each objective, where there are several.
    """

    rows: tuple[Row, ...]
    values: Mapping[str, Any]
    mean: Mean | None
    last: float | None = None
    rank: int | None = None
    p: float | None = None
    front: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def within_noise(self) -> bool:
        """Whether replicates do not tell it from the best."""
        return self.p is not None and self.p >= ALPHA

    @property
    def statuses(self) -> Counter[str]:
        """How many jobs ended how."""
        return Counter(row.status for row in self.rows)


@dataclass(frozen=True)
class Report:
    """All that is known about a sweep.

    Attributes:
        folder: of the sweep.
        settings: of the sweep, from the ledger.
        rows: every job, also those that are no longer asked for.
        other_code: numbers of jobs that ran with a module that later changed -> the names of such modules.
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    other_code: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        """The metric by which jobs are compared."""
        given = self.settings.get("objective")
        if isinstance(given, str):
            return given
        logged = {name for row in self.rows for name in row.metrics}
        return next((name for name in ("val/loss", "train/loss") if name in logged), "objective")

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        mode = self.settings.get("mode") or ("min" if self.objective.endswith("loss") else "max")
        return 1 if mode == "max" else -1

    @property
    def objectives(self) -> Mapping[str, str]:
        """Several objectives and which way each is better; empty where there is one."""
        several: Mapping[str, str] = self.settings.get("objectives") or {}
        return several if len(several) > 1 else {}

    @cached_property
    def active(self) -> list[Row]:
        """The jobs that the last invocation asked for."""
        return [row for row in self.rows if row.active]

    @cached_property
    def removed(self) -> list[Row]:
        """The jobs that it did not ask for any more."""
        return [row for row in self.rows if not row.active]

    @cached_property
    def finished_before(self) -> list[Entry]:
        """Of the jobs that it did not ask for any more those with a result, each for itself, the best first."""
        return sorted((self._entry([row]) for row in self.removed if is_result(row)), key=self._badness)

    @cached_property
    def failed(self) -> list[Row]:
        """The jobs that failed."""
        return [row for row in self.active if row.status == "failed"]

    @cached_property
    def varied(self) -> list[str]:
        """The swept keys that have more than one value."""
        seen: dict[str, set[str]] = {}
        for row in self.rows:
            for key in row.values:
                seen.setdefault(key, set())
        for row in self.rows:
            for key, values in seen.items():
                values.add(json.dumps(row.values.get(key), sort_keys=True, default=str))
        return [key for key, values in seen.items() if len(values) > 1]

    @cached_property
    def has_replicates(self) -> bool:
        """Whether some jobs differ in their seed alone."""
        return any(count > 1 for count in Counter(row.replicate_of or row.id for row in self.active).values())

    @cached_property
    def keys(self) -> list[str]:
        """The columns of the table: the keys that varied, without the seed of replicates."""
        return [key for key in self.varied if key != "seed" or not self.has_replicates]

    @cached_property
    def entries(self) -> list[Entry]:
        """The table: ranked by objective, the best first; then what has no result."""
        groups: dict[str, list[Row]] = {}
        for row in self.active:
            groups.setdefault((row.replicate_of or row.id) if self.has_replicates else row.id, []).append(row)
        entries = [self._entry(rows) for rows in groups.values()]
        done = sorted((e for e in entries if e.mean is not None), key=self._badness)
        rest = sorted((e for e in entries if e.mean is None), key=self._order_of_rest)
        best = done[0].mean if done else None
        ranked = [
            replace(entry, rank=rank, p=welch(entry.mean, best) if rank > 1 and entry.mean and best else None)
            for rank, entry in enumerate(done, 1)
        ]
        return [*self._fronts(ranked), *rest]

    def _entry(self, rows: Sequence[Row]) -> Entry:
        numbers = [row.objective for row in rows if is_result(row)]
        known = [number for number in numbers if number is not None]
        last = [row.objective for row in rows if row.objective is not None and row.status in UNFINISHED]
        several = {name: [_finite(row.metrics.get(name)) for row in rows if is_result(row)] for name in self.objectives}
        scores = {
            name: sum(value for value in values if value is not None) / len(values)
            for name, values in several.items()
            if values and None not in values
        }
        return Entry(
            tuple(rows),
            {key: rows[0].values.get(key) for key in self.keys},
            Mean.of(known) if known else None,
            last[0] if last else None,
            scores=scores,
        )

    def _badness(self, entry: Entry) -> tuple[float, int]:
        assert entry.mean is not None
        return -self.sign * entry.mean.value, entry.rows[0].number

    def _order_of_rest(self, entry: Entry) -> tuple[int, float, int]:
        order = ("pruned", "running", "interrupted", "failed", "completed", "waiting")
        last = math.inf if entry.last is None else -self.sign * entry.last
        return min(order.index(row.status) for row in entry.rows), last, entry.rows[0].number

    def _fronts(self, entries: list[Entry]) -> list[Entry]:
        """With the Pareto front marked, where there are several objectives."""
        if not self.objectives:
            return entries
        signs = {name: 1 if mode == "max" else -1 for name, mode in self.objectives.items()}
        points = [[sign * e.scores.get(name, -sign * math.inf) for name, sign in signs.items()] for e in entries]
        fronts = [not any(_dominates(other, point) for other in points) for point in points]
        return [replace(entry, front=front) for entry, front in zip(entries, fronts, strict=True)]

    @property
    def best(self) -> Entry | None:
        """The entry of the best mean; None where no job is completed."""
        return self.entries[0] if self.entries and self.entries[0].rank == 1 else None

    def arguments(self, row: Row) -> list[str]:
        """All arguments of a job: a run with them is this job alone."""
        of_the_sweep = ("sweep.", "hydra.", "hydra/")
        base = [text for text in self.settings.get("base") or [] if not text.startswith(of_the_sweep)]
        return [*(text for text in base if text not in row.overrides), *row.overrides]

    def command(self, *arguments: str) -> str:
        """A command line to paste; whom the sweep trusted is for the reader to say again."""
        return shell_line(["python", "-m", "runner", *arguments])

    def job_line(self, row: Row) -> str:
        """The command that runs this job alone, as a run of its own."""
        return self.command(*self.arguments(row))

    def again_line(self) -> str:
        """The command that takes up the sweep again, its failed jobs included."""
        words = [word for word in self._words if not word.startswith("sweep.retry=")]
        if any(row.cause not in OF_THE_MACHINE for row in self.failed):
            words.append("sweep.retry=all")
        return shell_line(["python", "-m", "runner", *words])

    @cached_property
    def _words(self) -> list[str]:
        """The arguments of the sweep's command line, but for whom it trusted: a record may come from a stranger."""
        words = list(map(str, self.settings.get("command") or []))
        words = words[3:] if words[:3] == ["python", "-m", "runner"] else words
        pairs = zip(["", *words], words, strict=False)
        return [word for before, word in pairs if before != "--trust" and not word.startswith("--trust")]

    def log_of(self, row: Row) -> Path:
        """Where a job says what happened."""
        folder = self.folder / row.path
        names = ("log.txt", OUTPUT) if row.cause not in ("exit", "crash") else (OUTPUT, "log.txt")
        return next((file for name in names if (file := folder / name).is_file()), folder)

    def curves(self, row: Row, names: Sequence[str]) -> dict[str, Curve]:
        """The logged values of metrics of a job, without those that are no numbers."""
        return logged(self.folder / row.path / "metrics.jsonl", names)


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and list(a) != list(b)


def is_result(row: Row) -> bool:
    """Whether a job has a final objective."""
    return row.status == "completed" and row.objective is not None and math.isfinite(row.objective)


def gather(folder: Path) -> Report:
    """Read the ledger of a sweep, and from the directories of its jobs what the ledger does not say yet.

    Raises:
        ConfigError: it is no folder of a sweep.
    """
    folder = find(folder)
    try:
        with Ledger(folder, read_only=True) as ledger:
            settings, rows = ledger.settings(), ledger.jobs()
            other = dict(_other_code(rows, ledger))
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"must be the folder of a sweep, but its {FILE} cannot be read ({error})"
        remedy = (
            "its jobs are run directories, which `evaluate`, `explain` and `resume` take; the sweep's line, given "
            f"again, puts {FILE} aside and makes it anew from them"
        )
        raise ConfigError([Mistake("SWEEP", rule, str(folder), remedy=remedy)]) from error
    report = Report(folder, settings, rows, other)
    return replace(report, rows=[_as_it_is(row, report) for row in rows])


def find(folder: Path) -> Path:
    """The folder of a sweep, also by its name below `outputs/<name>/`.

    Raises:
        ConfigError: there is none.
    """
    if (folder / FILE).is_file():
        return folder
    known = [file.parent for file in Path("outputs").glob(f"*/*/{FILE}")]
    named = [path for path in known if path.name == str(folder)]
    if len(named) == 1:
        return named[0]
    if named:
        rule = f"must be one sweep, but there are {', '.join(map(str, named))}"
    elif (folder / "config.yaml").is_file():
        rule = "must be the folder of a sweep, but is that of a run"
    elif folder.is_dir():
        rule = f"must be the folder of a sweep: it has no {FILE}, which every sweep has since they can be continued"
    else:
        rule = "must be the folder of a sweep, and does not exist"
    right = nearest(folder.name, [path.name for path in known])
    near = next((str(path) for path in known if path.name == right), "")
    near = str(folder.parent) if (folder.parent / FILE).is_file() else near  # a job of it
    listed = f"the sweeps here are {', '.join(map(str, sorted(known)[:5]))}" if known else ""
    raise ConfigError([Mistake("SWEEP", rule, str(folder), remedy=did_you_mean(near) or listed, suggestion=near)])


def _other_code(rows: Iterable[Row], ledger: Ledger) -> Iterator[tuple[int, Sequence[str]]]:
    """Jobs with a module that was another one in a later job: number, and the names of such modules."""
    ran = sorted((row for row in rows if row.code and row.status == "completed"), key=lambda row: row.start or 0)
    modules = {code: ledger.modules(code) for code in {row.code for row in ran}}
    latest: dict[str, str] = {}
    for row in ran:
        latest |= modules[row.code]
    changed = {code: sorted(m for m in known if known[m] != latest[m]) for code, known in modules.items()}
    for row in sorted(ran, key=lambda row: row.number):
        if changed[row.code]:
            yield row.number, changed[row.code]


def _as_it_is(row: Row, report: Report) -> Row:
    """The row with what the job's directory says where the controller has not written it down (yet)."""
    if row.status not in (*UNFINISHED, "failed"):
        return row
    folder, status, known = report.folder / row.path, row.status, row.metrics
    result = _json(folder / "result.json")
    continued = result.get("status") == "completed"  # by hand
    if not continued and (status == "failed" or (status == "pruned" and row.objective is not None)):
        return row
    if continued or (status != "pruned" and result.get("status") in ("failed", "pruned", "interrupted")):
        status, known = result["status"], result.get("metrics") or {}
        if status in ("completed", "failed"):
            cause, error = ("", "") if continued else (row.cause, result.get("error") or "")
            objective = _finite(result.get("objective"))
            return replace(row, status=status, cause=cause, objective=objective, metrics=known, error=error)
    here = row.host in ("", socket.gethostname()) and row.pid is not None
    if status == "running" and here and not _is_alive(row.pid):
        status = "interrupted"
    last = logged(folder / "metrics.jsonl", [report.objective])[report.objective]
    given = _finite(known.get(report.objective))
    return replace(row, status=status, objective=last[-1][1] if last else given, metrics=known)


def _finite(value: Any) -> float | None:
    """A number of a result, where NaN and infinity are texts."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _is_alive(pid: int | None) -> bool:
    """Whether a process of this machine runs; one that ended and that nobody waited for does not."""
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # no Linux
        return True


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def logged(file: Path, names: Sequence[str]) -> dict[str, Curve]:
    """The values of metrics in a `metrics.jsonl`, also of one that is being written; empty where it has none."""
    found: dict[str, Curve] = {name: [] for name in names}
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            event = json.loads(line)
            values = {name: float(event[name]) for name in names if name in event}  # NaN and infinity are texts there
            step = int(event["step"])
        except (ValueError, TypeError, KeyError):
            continue  # a line that is half written
        for name, value in values.items():
            if math.isfinite(value):
                found[name].append((step, value))
    return found
