"""Results of a sweep at any time: its jobs, replicates as one entry, ranked, and its failures."""

import contextlib
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

from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import join_shell_words
from runner.sweep.interfaces import OUTPUT
from runner.sweep.ledger import FILE, OF_THE_MACHINE, JobRecord, Ledger, is_metrics
from runner.sweep.report.significance import ALPHA, Mean, compute_welch_p
from runner.sweep.verdicts import read_verdicts

UNFINISHED = ("running", "interrupted", "pruned")  # whose last logged objective is worth showing


REPLICATED = {"seed": "seeds", "dataset.fold": "folds"}  # keys that replicates of a point differ in


Curve = list[tuple[int, float]]  # optimizer step, value


@dataclass(frozen=True)
class ReportEntry:
    """Line of the table: a job, or the replicates of a point.

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

    rows: tuple[JobRecord, ...]
    values: Mapping[str, Any]
    mean: Mean | None
    last: float | None = None
    rank: int | None = None
    p: float | None = None
    front: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def within_noise(self) -> bool:
        """Whether replicates do not distinguish the entry from the best."""
        return self.p is not None and self.p >= ALPHA

    @property
    def statuses(self) -> Counter[str]:
        """Number of jobs by status."""
        return Counter(row.status for row in self.rows)


@dataclass(frozen=True)
class Report:
    """Settings and jobs of a sweep, and the table made from them.

    Attributes:
        folder: of the sweep.
        settings: of the sweep, from the ledger.
        rows: every job, also those that are no longer asked for.
        other_code: numbers of jobs that ran with a module that later changed -> the names of such modules.
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[JobRecord]
    other_code: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        """Metric by which jobs are compared."""
        given = self.settings.get("objective")
        if isinstance(given, str):
            return given
        logged = {name for row in self.rows for name in row.metrics}
        return next((name for name in ("val/loss", "train/loss") if name in logged), "objective")

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is better."""
        mode = self.settings.get("mode") or ("min" if self.objective.endswith("loss") else "max")
        return 1 if mode == "max" else -1

    @property
    def objectives(self) -> Mapping[str, str]:
        """Several objectives by name, with their modes; empty if there is only one."""
        several: Mapping[str, str] = self.settings.get("objectives") or {}
        return several if len(several) > 1 else {}

    @cached_property
    def active(self) -> list[JobRecord]:
        """Jobs that the last invocation asked for."""
        return [row for row in self.rows if row.active]

    @cached_property
    def removed(self) -> list[JobRecord]:
        """Jobs that the last invocation did not ask for."""
        return [row for row in self.rows if not row.active]

    @cached_property
    def finished_before(self) -> list[ReportEntry]:
        """Removed jobs with a result, one entry each, the best first."""
        return sorted((self._entry([row]) for row in self.removed if is_result(row)), key=self._badness)

    @cached_property
    def stacked(self) -> list[int]:
        """Numbers of the active jobs that have trained as one model with others."""
        verdicts = read_verdicts(self.settings).values()
        return sorted({number for verdict in verdicts for number in verdict.jobs} & {row.number for row in self.active})

    @cached_property
    def failed(self) -> list[JobRecord]:
        """Active jobs that failed."""
        return [row for row in self.active if row.status == "failed"]

    @cached_property
    def varied(self) -> list[str]:
        """Swept keys that have more than one value."""
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
        """Whether some jobs differ in seed or fold alone."""
        return any(count > 1 for count in Counter(row.replicate_of or row.id for row in self.active).values())

    @cached_property
    def keys(self) -> list[str]:
        """Columns of the table: the varied keys, without seed and fold of replicates."""
        return [key for key in self.varied if key not in REPLICATED or not self.has_replicates]

    @property
    def replicates(self) -> str:
        """Name of what replicates differ in: seeds, folds, or both."""
        return " and ".join(name for key, name in REPLICATED.items() if key in self.varied) or "seeds"

    @cached_property
    def entries(self) -> list[ReportEntry]:
        """Entries of the table: ranked by objective, the best first, then those without a result."""
        groups: dict[str, list[JobRecord]] = {}
        for row in self.active:
            groups.setdefault((row.replicate_of or row.id) if self.has_replicates else row.id, []).append(row)
        entries = [self._entry(rows) for rows in groups.values()]
        done = sorted((e for e in entries if e.mean is not None), key=self._badness)
        rest = sorted((e for e in entries if e.mean is None), key=self._order_of_rest)
        best = done[0].mean if done else None
        ranked = [
            replace(entry, rank=rank, p=compute_welch_p(entry.mean, best) if rank > 1 and entry.mean and best else None)
            for rank, entry in enumerate(done, 1)
        ]
        return [*self._fronts(ranked), *rest]

    def _entry(self, rows: Sequence[JobRecord]) -> ReportEntry:
        numbers = [row.objective for row in rows if is_result(row)]
        known = [number for number in numbers if number is not None]
        last = [row.objective for row in rows if row.objective is not None and row.status in UNFINISHED]
        several = {
            name: [_parse_finite(row.metrics.get(name)) for row in rows if is_result(row)] for name in self.objectives
        }
        scores = {
            name: sum(value for value in values if value is not None) / len(values)
            for name, values in several.items()
            if values and None not in values
        }
        return ReportEntry(
            tuple(rows),
            {key: rows[0].values.get(key) for key in self.keys},
            Mean.of(known) if known else None,
            last[0] if last else None,
            scores=scores,
        )

    def _badness(self, entry: ReportEntry) -> tuple[float, int]:
        assert entry.mean is not None
        return -self.sign * entry.mean.value, entry.rows[0].number

    def _order_of_rest(self, entry: ReportEntry) -> tuple[int, float, int]:
        order = ("pruned", "running", "interrupted", "failed", "completed", "waiting")
        last = math.inf if entry.last is None else -self.sign * entry.last
        return min(order.index(row.status) for row in entry.rows), last, entry.rows[0].number

    def _fronts(self, entries: list[ReportEntry]) -> list[ReportEntry]:
        """Mark the Pareto front of several objectives; a single objective changes no entry."""
        if not self.objectives:
            return entries
        signs = {name: 1 if mode == "max" else -1 for name, mode in self.objectives.items()}
        points = [[sign * e.scores.get(name, -sign * math.inf) for name, sign in signs.items()] for e in entries]
        fronts = [not any(_dominates(other, point) for other in points) for point in points]
        return [replace(entry, front=front) for entry, front in zip(entries, fronts, strict=True)]

    @property
    def best(self) -> ReportEntry | None:
        """Entry of the best mean; None if no job is completed."""
        return self.entries[0] if self.entries and self.entries[0].rank == 1 else None

    def arguments(self, row: JobRecord) -> list[str]:
        """Return all arguments of a job, as of a run of this job alone."""
        of_the_sweep = ("sweep.", "hydra.", "hydra/", "on_event")
        base = [text for text in self.settings.get("base") or [] if not text.startswith(of_the_sweep)]
        words = [*(text for text in base if text not in row.overrides), *row.overrides]
        return [text for text in words if not text.startswith("-")]  # no option, such as --trust, comes from a record

    def command(self, *arguments: str) -> str:
        """Format a shell command of the runner; `--trust` is added by the caller."""
        return join_shell_words(["python", "-m", "runner", *arguments])

    def job_line(self, row: JobRecord) -> str:
        """Return the command that runs this job alone, as a run of its own."""
        return self.command(*self.arguments(row))

    def again_line(self) -> str:
        """Return the command that continues the sweep, its failed jobs included."""
        words = [word for word in self._words if not word.startswith("sweep.retry=")]
        if any(row.cause not in OF_THE_MACHINE for row in self.failed):
            words.append("sweep.retry=all")
        return join_shell_words(["python", "-m", "runner", *words])

    @cached_property
    def _words(self) -> list[str]:
        """Arguments of the sweep's command without `--trust`: a record may come from a stranger."""
        words = list(map(str, self.settings.get("command") or []))
        words = words[3:] if words[:3] == ["python", "-m", "runner"] else words
        pairs = zip(["", *words], words, strict=False)
        return [word for before, word in pairs if before != "--trust" and not word.startswith("--trust")]

    def log_of(self, row: JobRecord) -> Path:
        """Return the file that says what happened to a job: its log or output; else its folder."""
        folder = self.folder / row.path
        names = ("log.txt", OUTPUT) if row.cause not in ("exit", "crash") else (OUTPUT, "log.txt")
        return next((file for name in names if (file := folder / name).is_file()), folder)

    def curves(self, row: JobRecord, names: Sequence[str]) -> dict[str, Curve]:
        """Return the finite logged values of metrics of a job."""
        return read_curves(self.folder / row.path / "metrics.jsonl", names)


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and list(a) != list(b)


def is_result(row: JobRecord) -> bool:
    """Return whether a job completed with a finite objective."""
    return row.status == "completed" and row.objective is not None and math.isfinite(row.objective)


def gather(folder: Path) -> Report:
    """Read the ledger of a sweep, and from the job directories what the ledger lacks.

    Raises:
        ConfigError: it is no folder of a sweep.
    """
    folder = find(folder)
    try:
        with Ledger(folder, read_only=True) as ledger:
            settings, rows = ledger.settings(), ledger.jobs()
            other = dict(_find_other_code(rows, ledger))
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        rule = f"must be the folder of a sweep, but its {FILE} cannot be read ({error})"
        remedy = (
            "its jobs are run directories, which `evaluate`, `explain` and `resume` take; the sweep's line, given "
            f"again, puts {FILE} aside and makes it anew from them"
        )
        raise ConfigError([Mistake("SWEEP", rule, str(folder), remedy=remedy, kind="file")]) from error
    report = Report(folder, settings, rows, other)
    return replace(report, rows=[_update_row(row, report) for row in rows])


def find(folder: Path) -> Path:
    """Find the folder of a sweep, by its path or by its name below `outputs/<name>/`.

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
        rule = "must be the folder of a sweep, but is that of a run, which --html takes, too"
    elif folder.is_dir():
        rule = f"must be the folder of a sweep: it has no {FILE}, which every sweep has since they can be continued"
    else:
        rule = "must be the folder of a sweep, and does not exist"
    right = find_nearest(folder.name, [path.name for path in known])
    near = next((str(path) for path in known if path.name == right), "")
    near = str(folder.parent) if (folder.parent / FILE).is_file() else near  # a job of it
    listed = f"the sweeps here are {', '.join(map(str, sorted(known)[:5]))}" if known else ""
    raise ConfigError(
        [Mistake("SWEEP", rule, str(folder), remedy=format_suggestion(near) or listed, suggestion=near, kind="file")]
    )


def _find_other_code(rows: Iterable[JobRecord], ledger: Ledger) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the number of each completed job with its modules that a later job ran in another version."""
    ran = sorted((row for row in rows if row.code and row.status == "completed"), key=lambda row: row.start or 0)
    modules = {code: ledger.modules(code) for code in {row.code for row in ran}}
    latest: dict[str, str] = {}
    for row in ran:
        latest |= modules[row.code]
    changed = {code: sorted(m for m in known if known[m] != latest[m]) for code, known in modules.items()}
    for row in sorted(ran, key=lambda row: row.number):
        if changed[row.code]:
            yield row.number, changed[row.code]


def _update_row(row: JobRecord, report: Report) -> JobRecord:
    """Update a row from its job directory where the controller has not written it down."""
    if row.status not in (*UNFINISHED, "failed"):
        return row
    folder, status, known = report.folder / row.path, row.status, row.metrics
    result = _read_json(folder / "result.json")
    continued = result.get("status") == "completed"  # by hand
    if not continued and (status == "failed" or (status == "pruned" and row.objective is not None)):
        return row
    if continued or (status != "pruned" and result.get("status") in ("failed", "pruned", "interrupted")):
        metrics = result.get("metrics")
        status, known = result["status"], metrics if metrics and is_metrics(metrics) else {}
        if status in ("completed", "failed"):
            error = "" if continued else str(result.get("error") or "")
            objective = _parse_finite(result.get("objective"))
            cause = "" if continued else row.cause
            return replace(row, status=status, cause=cause, objective=objective, metrics=known, error=error)
    here = row.host in ("", socket.gethostname()) and row.pid is not None
    if status == "running" and here and not _is_alive(row.pid):
        status = "interrupted"
    last = read_curves(folder / "metrics.jsonl", [report.objective])[report.objective]
    given = _parse_finite(known.get(report.objective))
    return replace(row, status=status, objective=last[-1][1] if last else given, metrics=known)


def _parse_finite(value: Any) -> float | None:
    """Return a finite number of a result, else None; NaN and infinity are strings there."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _is_alive(pid: int | None) -> bool:
    """Return whether a process of this machine runs; a zombie does not."""
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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = safe_io.read_json(file)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def read_curves(file: Path, names: Sequence[str]) -> dict[str, Curve]:
    """Read the finite values of metrics from a `metrics.jsonl`, even one still being written."""
    found: dict[str, Curve] = {name: [] for name in names}
    with contextlib.suppress(OSError), safe_io.open_read(file) as opened:
        if os.fstat(opened.fileno()).st_size > safe_io.MAX_LOG_BYTES:
            return found
        for line in safe_io.read_lines(opened):
            try:
                event = safe_io.parse_json(line)
                values = {name: float(event[name]) for name in names if name in event}  # NaN, infinity are texts there
                step = int(event["step"])
            except (ValueError, TypeError, KeyError, OverflowError):
                continue  # a line that is half written
            for name, value in values.items():
                if math.isfinite(value):
                    found[name].append((step, value))
    return found
