"""Formats of a list of runs: a table for people, JSON and CSV for programs."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from runner.core.escape import escape_csv_cell, escape_line
from runner.core.files import to_json
from runner.sweep.runs.listing import RunList
from runner.sweep.runs.reading import COLUMNS, RunRow
from runner.sweep.runs.removal import KeptRun

TABLE = ("path", "status", "age", "objective")  # columns of the table for people


WIDEST = 60  # characters of a cell


MOST_PROBLEMS = 10  # that are told below the table


def format_table(listed: RunList) -> str:
    """Format the runs as a table, with the number of them by status below it."""
    if not listed.rows:
        return format_count(listed)
    shown = [name for name in listed.show if name not in TABLE]
    lines = [["run", *TABLE[1:], *map(escape_line, shown)]]
    lines += [[row.path, *(_format_cell(row, name) for name in (*TABLE[1:], *shown))] for row in listed.rows]
    damaged = [row for row in listed.rows if row.status == "damaged" and row.columns["problem"]]
    told = [f"damaged: {row.path}: {row.columns['problem']}" for row in damaged[:MOST_PROBLEMS]]
    more = [f"… {len(damaged) - MOST_PROBLEMS:,} more: --show problem"] if len(damaged) > MOST_PROBLEMS else []
    return "\n".join([align_columns(lines), *map(escape_line, told), *more, format_count(listed)])


def format_count(listed: RunList) -> str:
    """Format the number of runs by status."""
    if not any(table.rows for table in listed.tables):
        where = ", ".join(str(folder) for folder in listed.folders) or "outputs"
        return f"no runs below {escape_line(where)}"
    counts = Counter(row.status for row in listed.rows)
    by_status = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    total = sum(len(table.rows) for table in listed.tables)
    number = f"{len(listed.rows):,}" if len(listed.rows) == total else f"{len(listed.rows):,} of {total:,}"
    return f"{number} run{'s' * (total != 1)}{f': {by_status}' if by_status else ''}"


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Align the cells of lines in columns, two spaces apart."""
    shown = [[escape_line(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in shown)


def _format_cell(row: RunRow, name: str) -> str:
    value = row.get(name)
    if name == "age":
        return format_age(value)
    if name == "size":
        return format_size(value)
    if name == "status" and row.columns["cause"]:
        return f"{value} ({row.columns['cause']})"
    if name == "objective" and value is not None:
        return f"{format_value(value)} {row.columns['objective_name'] or ''}".rstrip()
    return format_value(value)


def format_value(value: Any) -> str:
    """Format a value for a cell: a number to 6 digits, null as `-`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = to_json(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def format_age(seconds: float | None) -> str:
    """Format a time in its greatest whole unit: 45s, 12m, 3h, 5d."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def format_size(size: float) -> str:
    """Format a number of bytes: 512 B, 1.4 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{int(size)} B"


# ---- of `rm` and `archive`


def format_plan(lines: Sequence[Sequence[str]], kept: Sequence[KeptRun], failed: Sequence[str]) -> list[str]:
    """Format the runs that go, those that stay with the reason, and what failed."""
    width = max(map(len, lines), default=0)
    told = [align_columns([[*line, *[""] * (width - len(line))] for line in lines])] if lines else []
    told += [escape_line(f"stays: {one.row.path}: {one.reason}") for one in kept]
    return told + [escape_line(f"failed: {text}") for text in failed]


def count_runs(count: int) -> str:
    """Write a number of runs: `1 run`, `3 runs`."""
    return f"{count:,} run{'s' * (count != 1)}"


def ask_for_yes(planned: Sequence[object], *, does_it: bool) -> str:
    """Say how to do what was only planned; empty where it was done, or there is nothing to do."""
    return "" if does_it or not planned else ": again with --yes to do it"


# ---- for programs


def as_json(listed: RunList) -> dict[str, Any]:
    """Return the list as plain data: every column of each run, its metrics, and what was asked for."""
    return {
        "filters": listed.filters,
        "folders": [str(folder) for folder in listed.folders],
        "index": [str(table.index) for table in listed.tables if table.index is not None],
        "total": sum(len(table.rows) for table in listed.tables),
        "counts": dict(Counter(row.status for row in listed.rows)),
        "show": listed.show,
        "runs": [describe_row(row, listed.show) for row in listed.rows],
        "notes": listed.notes,
    }


def describe_row(row: RunRow, show: Iterable[str] = ()) -> dict[str, Any]:
    """Describe a run as plain data; `age` in seconds, `size` in bytes."""
    columns = {name: row.get(name) for name in COLUMNS}
    return columns | {"metrics": row.metrics} | {"shown": {name: row.get(name) for name in show}}


def as_csv(listed: RunList) -> str:
    """Return the list as CSV: the columns of every run, then what was asked for."""
    names = [*COLUMNS, *(name for name in listed.show if name not in COLUMNS)]
    return write_csv(names, ([row.get(name) for name in names] for row in listed.rows))


def write_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a header and rows as CSV, without formulas of a spreadsheet."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(escape_csv_cell, names))
    writer.writerows([_make_csv_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _make_csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return {True: "NaN"}.get(math.isnan(value), "Infinity" if value > 0 else "-Infinity")
    text = to_json(value) if isinstance(value, list | dict) else value
    return escape_csv_cell(text) if isinstance(text, str) else text
