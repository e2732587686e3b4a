"""Report of a sweep as text, CSV and JSON."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner.core.errors import as_text
from runner.core.escape import escape_csv_cell
from runner.sweep.ledger import JobRecord, Status
from runner.sweep.report import significance
from runner.sweep.report.results import Report, ReportEntry, is_result
from runner.sweep.report.significance import Mean
from runner.sweep.verdicts import OFF

SHOWN = 40  # lines of the table on the console; all are in report.csv


LISTED = 20  # numbers in a list of jobs


STATUSES: tuple[Status, ...] = ("completed", "pruned", "failed", "interrupted", "running", "waiting")


COLUMNS = ("rank", "number", "status", "cause", "attempt", "exit", "seconds", "host", "slot", "start", "end")


RECORD = ("other_code", "removed", "id", "replicate_of", "code", "data", "path", "error", "rerun")


def format_report(report: Report) -> str:
    """Format the report for the console."""
    parts = [_format_head(report), *_format_table(report), *_format_failures(report), *_format_notes(report)]
    return "\n".join(parts)


def _format_head(report: Report) -> str:
    counts = Counter(row.status for row in report.active)
    said = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    jobs = f"{len(report.active):,} job{'s' * (len(report.active) != 1)}"
    return f"{report.folder}\n{jobs}{': ' if said else ''}{said}"


def _format_table(report: Report) -> Iterator[str]:
    if not report.entries:
        return
    names, searched = list(report.objectives) or [report.objective], report.settings.get("searched")
    way = {1: "more is better", -1: "less is better"}[report.sign]
    of_replicates = (
        f", mean ± {significance.CONFIDENCE:.0%} interval of n {report.replicates} (Student's t)"
        if report.has_replicates
        else ""
    )
    yield f"by {report.objective}, {way}{of_replicates}"
    header = ["rank", "job" if not report.has_replicates else "jobs", *report.keys, *names]
    lines = [[*header, "n", ""] if report.has_replicates else [*header, ""]]
    for entry in report.entries[:SHOWN]:
        scores = [_format_number(entry.scores[name]) if name in entry.scores else "" for name in report.objectives]
        line = [
            "" if entry.rank is None else str(entry.rank),
            _format_numbers([row.number for row in entry.rows], 3),
            *(format_value(entry.values[key]) for key in report.keys),
            *(scores or [format_score(entry)]),
            *([str(entry.mean.n if entry.mean else 0)] if report.has_replicates else []),
            "; ".join(list_notes(entry, report)),
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


def list_notes(entry: ReportEntry, report: Report) -> list[str]:
    """List the remarks on a line of the table."""
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


def format_score(entry: ReportEntry) -> str:
    """Format the objective of an entry: mean with interval, value, or last logged value in brackets."""
    if entry.mean is None:
        return "" if entry.last is None else f"({_format_number(entry.last)})"
    return format_mean(entry.mean)


def format_mean(mean: Mean) -> str:
    """Format a mean as `0.9912 ± 0.0021`, with the digits that its interval makes meaningful."""
    half = mean.half
    if math.isnan(half):
        return _format_number(mean.value)
    if half == 0:
        return f"{_format_number(mean.value)} ± 0"
    places = max(0, 1 - math.floor(math.log10(half)))
    readable = places <= 8 and half < 1e6
    return f"{mean.value:.{places}f} ± {half:.{places}f}" if readable else f"{mean.value:.6g} ± {half:.2g}"


def _format_number(value: float) -> str:
    return f"{value:.6g}"


def format_value(value: Any) -> str:
    """Format the value of a key in at most 40 characters."""
    if isinstance(value, float) and float(_format_number(value)) == value:
        return _format_number(value)
    said = value if isinstance(value, str) and value.isprintable() else as_text(value, 40)
    return said if len(said) <= 40 else said[:39] + "…"


def _format_numbers(numbers: Sequence[int], most: int = LISTED) -> str:
    """Format numbers as ranges: `0-4,7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ",".join(said[:most]) + ("…" if len(said) > most else "")


def format_point(row: JobRecord, keys: Sequence[str]) -> str:
    """Format the varied keys of a job as arguments."""
    return " ".join(f"{key}={format_value(row.values[key])}" for key in keys if key in row.values)


def _format_failures(report: Report) -> Iterator[str]:
    if not report.failed:
        return
    causes = Counter(row.cause or "unknown" for row in report.failed)
    yield f"\n{len(report.failed):,} failed: " + ", ".join(
        f"{number} {cause}" for cause, number in causes.most_common()
    )
    for row in report.failed:
        error = f": {' '.join(row.error.split())}" if row.error else ""
        left = f" (exit status {row.exit})" if row.exit is not None and row.exit > 1 else ""
        yield f"  job {row.number}  {format_point(row, report.varied)}".rstrip()
        yield f"    {row.cause or 'unknown cause'}{left}{error[:300]}"
        yield f"    log:   {report.log_of(row)}"
        yield f"    alone: {report.job_line(row)}"
    yield f"again, in their places: {report.again_line()}"


def _format_notes(report: Report) -> Iterator[str]:
    if report.stacked:
        number, of = len(report.stacked), len(report.active)
        yield f"{number:,} of {of:,} trained as one model with others: equal to rounding to a job alone ({OFF})"
    if report.removed:
        numbers = _format_numbers([row.number for row in report.removed])
        yield f"\nno longer asked for, and left out of the table: job {numbers}"
        yield from _format_finished_before(report)
    by_modules: dict[tuple[str, ...], list[int]] = {}
    for number, modules in report.other_code.items():
        by_modules.setdefault(tuple(modules), []).append(number)
    for changed, ran in by_modules.items():
        what = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        numbers = _format_numbers(ran)
        yield f"\nof other code than later jobs ({what}): job {numbers}; `sweep.rerun=changed` runs them again"


def _format_finished_before(report: Report) -> Iterator[str]:
    """Format the table of finished jobs that are no longer asked for."""
    done = report.finished_before
    if not done:
        return
    first = done[0].rows[0]
    what = format_point(first, report.varied)
    yield f"  the best of them: job {first.number}, {what}, {report.objective} {_format_number(first.objective or 0)}"
    best = report.best.mean.value if report.best and report.best.mean else -report.sign * math.inf
    lines = [["job", *report.varied, report.objective, ""]]
    for entry in done[:SHOWN]:
        row = entry.rows[0]
        better = report.sign * (row.objective or 0) > report.sign * best
        values = [format_value(row.values.get(key)) for key in report.varied]
        lines.append([str(row.number), *values, format_score(entry), "better than the best above" * better])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    if len(done) > SHOWN:
        yield f"  … {len(done) - SHOWN:,} more in {report.folder / 'report.csv'}"
    yield f"  one of them as an experiment: python -m runner promote {report.folder} --job {first.number}"


# ---- for programs


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data, with None for each non-finite number."""
    best, columns = report.best, list_columns(report)
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
        "entries": [_make_json_entry(entry, report) for entry in report.entries],
        "jobs": [dict(zip(columns, map(_replace_non_finite, line), strict=True)) for line in build_rows(report)],
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
        "finished_before": [_make_json_entry(entry, report) for entry in report.finished_before],
        "stacked": report.stacked,
        "other_code": {str(number): list(modules) for number, modules in report.other_code.items()},
    }


def _make_json_entry(entry: ReportEntry, report: Report) -> dict[str, Any]:
    mean = entry.mean
    return {
        "rank": entry.rank,
        "jobs": [row.number for row in entry.rows],
        "values": dict(entry.values),
        "objective": None if mean is None else mean.value,
        "n": 0 if mean is None else mean.n,
        "std": None if mean is None else _replace_non_finite(mean.std),
        "interval": None if mean is None or mean.n < 2 else [mean.value - mean.half, mean.value + mean.half],
        "p": entry.p,
        "within_noise": entry.within_noise if entry.p is not None else None,
        "last": _replace_non_finite(entry.last),
        **({"scores": dict(entry.scores), "front": entry.front} if report.objectives else {}),
        "notes": list_notes(entry, report),
    }


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_non_finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def list_columns(report: Report) -> list[str]:
    """List the CSV columns: the job, varied keys, objective, metrics and record."""
    return [*COLUMNS, *report.varied, report.objective, *_list_metrics(report), *RECORD]


def _list_metrics(report: Report) -> list[str]:
    """List the metrics of the jobs, without the objective, which has a column of its own."""
    names = dict.fromkeys(name for row in report.rows for name in row.metrics)
    return [name for name in names if name != report.objective]


def build_rows(report: Report) -> Iterator[list[Any]]:
    """Yield one CSV row per job, in table order; jobs no longer asked for come last."""
    metrics, varied = _list_metrics(report), report.varied
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
    """Return the report as CSV, one line per job."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(escape_csv_cell, list_columns(report)))
    writer.writerows([_format_cell(value) for value in line] for line in build_rows(report))
    return file.getvalue()


def _format_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | Mapping):
        value = json.dumps(value)
    return escape_csv_cell(value) if isinstance(value, str) else value
