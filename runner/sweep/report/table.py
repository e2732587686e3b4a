"""A report as text, as CSV and as plain data."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.core.errors import as_text
from runner.core.escape import csv_cell
from runner.sweep.ledger import Row, Status
from runner.sweep.report import significance
from runner.sweep.report.results import Entry, Report, is_result
from runner.sweep.report.significance import Mean

SHOWN = 40  # lines of the table on the console; all are in report.csv


LISTED = 20  # numbers in a list of jobs


STATUSES: tuple[Status, ...] = ("completed", "pruned", "failed", "interrupted", "running", "waiting")


COLUMNS = ("rank", "number", "status", "cause", "attempt", "exit", "seconds", "host", "slot", "start", "end")


RECORD = ("other_code", "removed", "id", "replicate_of", "code", "data", "path", "error", "rerun")


def text(report: Report) -> str:
    """What the console shows."""
    parts = [_head(report), *_table(report), *_failures(report), *_notes(report)]
    return "\n".join(parts)


def _head(report: Report) -> str:
    counts = Counter(row.status for row in report.active)
    said = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    jobs = f"{len(report.active):,} job{'s' * (len(report.active) != 1)}"
    return f"{report.folder}\n{jobs}{': ' if said else ''}{said}"


def _table(report: Report) -> Iterator[str]:
    if not report.entries:
        return
    names, searched = list(report.objectives) or [report.objective], report.settings.get("searched")
    way = {1: "more is better", -1: "less is better"}[report.sign]
    of_replicates = (
        f", mean ± {significance.CONFIDENCE:.0%} interval of n seeds (Student's t)" if report.has_replicates else ""
    )
    yield f"by {report.objective}, {way}{of_replicates}"
    header = ["rank", "job" if not report.has_replicates else "jobs", *report.keys, *names]
    lines = [[*header, "n", ""] if report.has_replicates else [*header, ""]]
    for entry in report.entries[:SHOWN]:
        scores = [_number(entry.scores[name]) if name in entry.scores else "" for name in report.objectives]
        line = [
            "" if entry.rank is None else str(entry.rank),
            _numbers([row.number for row in entry.rows], 3),
            *(value_text(entry.values[key]) for key in report.keys),
            *(scores or [score_text(entry)]),
            *([str(entry.mean.n if entry.mean else 0)] if report.has_replicates else []),
            "; ".join(notes(entry, report)),
        ]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {0, *(() if not report.has_replicates else (len(widths) - 2,))}
    for line in lines:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    if len(report.entries) > SHOWN:
        yield f"… {len(report.entries) - SHOWN:,} more in {report.folder / 'report.csv'}"
    if any(entry.p is not None for entry in report.entries):
        yield f"within noise: {significance.SAID}"
    elif report.best and not report.has_replicates and len(report.entries) > 1 and not searched:
        yield "one job a point says nothing about noise: `sweep.seeds=5` gives replicates"


def notes(entry: Entry, report: Report) -> list[str]:
    """What there is to say about a line of the table."""
    said = []
    if entry.rank == 1 and not report.objectives:
        said.append("best")
    if entry.front:
        said.append("on the Pareto front")
    if entry.within_noise:
        said.append(f"within noise of the best (p = {entry.p:.2g})")
    statuses = {s: n for s, n in entry.statuses.items() if s != "completed"}
    if statuses == dict(entry.statuses) and len(entry.rows) == 1:
        row = entry.rows[0]
        said.append(row.status + (f" ({row.cause})" if row.cause and row.status == "failed" else ""))
    else:
        said += [f"{number} of {len(entry.rows)} {status}" for status, number in statuses.items()]
    if any(row.status == "completed" and not is_result(row) for row in entry.rows):
        said.append("without an objective that is a number")
    if any(row.number in report.other_code for row in entry.rows):
        said.append("other code")
    return said


def score_text(entry: Entry) -> str:
    """The objective of a line: a mean with its interval, a value, or the last one logged, in brackets."""
    if entry.mean is None:
        return "" if entry.last is None else f"({_number(entry.last)})"
    return mean_text(entry.mean)


def mean_text(mean: Mean) -> str:
    """`0.9912 ± 0.0021`: as many digits as the interval has meaning."""
    half = mean.half
    if math.isnan(half):
        return _number(mean.value)
    if half == 0:
        return f"{_number(mean.value)} ± 0"
    places = max(0, 1 - math.floor(math.log10(half)))
    readable = places <= 8 and half < 1e6
    return f"{mean.value:.{places}f} ± {half:.{places}f}" if readable else f"{mean.value:.6g} ± {half:.2g}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def value_text(value: Any) -> str:
    """The value of a key, short."""
    if isinstance(value, float) and float(_number(value)) == value:
        return _number(value)
    said = value if isinstance(value, str) and value.isprintable() else as_text(value, 40)
    return said if len(said) <= 40 else said[:39] + "…"


def _numbers(numbers: Sequence[int], most: int = LISTED) -> str:
    """`0-4, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ",".join(said[:most]) + ("…" if len(said) > most else "")


def point_text(row: Row, keys: Sequence[str]) -> str:
    """The varied keys of a job, as arguments."""
    return " ".join(f"{key}={value_text(row.values[key])}" for key in keys if key in row.values)


def _failures(report: Report) -> Iterator[str]:
    if not report.failed:
        return
    causes = Counter(row.cause or "unknown" for row in report.failed)
    yield f"\n{len(report.failed):,} failed: " + ", ".join(
        f"{number} {cause}" for cause, number in causes.most_common()
    )
    for row in report.failed:
        error = f": {' '.join(row.error.split())}" if row.error else ""
        left = f" (exit status {row.exit})" if row.exit is not None and row.exit > 1 else ""
        yield f"  job {row.number}  {point_text(row, report.varied)}".rstrip()
        yield f"    {row.cause or 'unknown cause'}{left}{error[:300]}"
        yield f"    log:   {report.log_of(row)}"
        yield f"    alone: {report.job_line(row)}"
    yield f"again, in their places: {report.again_line()}"


def _notes(report: Report) -> Iterator[str]:
    if report.removed:
        numbers = _numbers([row.number for row in report.removed])
        yield f"\nno longer asked for, and left out of the table: job {numbers}"
        yield from _finished_before(report)
    by_modules: dict[tuple[str, ...], list[int]] = {}
    for number, modules in report.other_code.items():
        by_modules.setdefault(tuple(modules), []).append(number)
    for changed, ran in by_modules.items():
        what = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        yield f"\nof other code than later jobs ({what}): job {_numbers(ran)}; `sweep.rerun=changed` runs them again"


def _finished_before(report: Report) -> Iterator[str]:
    """The finished jobs that are no longer asked for, in a table of their own."""
    done = report.finished_before
    if not done:
        return
    first = done[0].rows[0]
    what = point_text(first, report.varied)
    yield f"  the best of them: job {first.number}, {what}, {report.objective} {_number(first.objective or 0)}"
    best = report.best.mean.value if report.best and report.best.mean else -report.sign * math.inf
    lines = [["job", *report.varied, report.objective, ""]]
    for entry in done[:SHOWN]:
        row = entry.rows[0]
        better = report.sign * (row.objective or 0) > report.sign * best
        values = [value_text(row.values.get(key)) for key in report.varied]
        lines.append([str(row.number), *values, score_text(entry), "better than the best above" * better])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    if len(done) > SHOWN:
        yield f"  … {len(done) - SHOWN:,} more in {report.folder / 'report.csv'}"
    yield f"  one of them as an experiment: python -m runner promote {report.folder} --job {first.number}"


# ---- for programs


def as_json(report: Report) -> dict[str, Any]:
    """Plain data; what is not a number is null."""
    best, columns = report.best, header(report)
    return {
        "sweep": str(report.folder),
        "id": report.settings.get("id", report.folder.name),
        "name": report.settings.get("name"),
        "objective": report.objective,
        "mode": {1: "max", -1: "min"}[report.sign],
        "varied": report.varied,
        "counts": dict(Counter(row.status for row in report.active)),
        "test": significance.SAID if any(entry.p is not None for entry in report.entries) else None,
        "best": None if best is None else [row.number for row in best.rows],
        "entries": [_entry(entry, report) for entry in report.entries],
        "jobs": [dict(zip(columns, map(_plain, line), strict=True)) for line in lines(report)],
        "failed": [
            {
                "number": row.number,
                "values": row.values,
                "cause": row.cause,
                "exit": row.exit,
                "error": row.error,
                "log": str(report.log_of(row)),
                "rerun": report.job_line(row),
            }
            for row in report.failed
        ],
        "rerun_failed": report.again_line() if report.failed else None,
        "removed": [row.number for row in report.removed],
        "finished_before": [_entry(entry, report) for entry in report.finished_before],
        "other_code": {str(number): list(modules) for number, modules in report.other_code.items()},
    }


def _entry(entry: Entry, report: Report) -> dict[str, Any]:
    mean = entry.mean
    return {
        "rank": entry.rank,
        "jobs": [row.number for row in entry.rows],
        "values": dict(entry.values),
        "objective": None if mean is None else mean.value,
        "n": 0 if mean is None else mean.n,
        "std": None if mean is None else _plain(mean.std),
        "interval": None if mean is None or mean.n < 2 else [mean.value - mean.half, mean.value + mean.half],
        "p": entry.p,
        "within_noise": entry.within_noise if entry.p is not None else None,
        "last": _plain(entry.last),
        **({"scores": dict(entry.scores), "front": entry.front} if report.objectives else {}),
        "notes": notes(entry, report),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def header(report: Report) -> list[str]:
    """The columns of the CSV: what was varied, the objective, the metrics, the record."""
    return [*COLUMNS, *report.varied, report.objective, *_metrics(report), *RECORD]


def _metrics(report: Report) -> list[str]:
    """The metrics of the jobs; the objective has its column already."""
    names = dict.fromkeys(name for row in report.rows for name in row.metrics)
    return [name for name in names if name != report.objective]


def lines(report: Report) -> Iterator[list[Any]]:
    """One a job, in the order of the table, those that are no longer asked for last."""
    metrics, varied = _metrics(report), report.varied
    ranks = {row.number: entry.rank for entry in report.entries for row in entry.rows}
    for row in [*(row for entry in report.entries for row in entry.rows), *report.removed]:
        seconds = round(row.end - row.start, 3) if row.start is not None and row.end is not None else None
        yield [
            *(ranks.get(row.number), row.number, row.status, row.cause, row.attempt, row.exit, seconds),
            *(row.host, row.slot, row.start, row.end),
            *(row.values.get(key) for key in varied),
            row.objective,
            *(row.metrics.get(name) for name in metrics),
            *(row.number in report.other_code, not row.active, row.id, row.replicate_of, row.code, row.data),
            *(row.path, row.error, report.job_line(row)),
        ]


def as_csv(report: Report) -> str:
    """One line a job."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(csv_cell, header(report)))
    writer.writerows([_cell(value) for value in line] for line in lines(report))
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | Mapping):
        value = json.dumps(value)
    return csv_cell(value) if isinstance(value, str) else value
