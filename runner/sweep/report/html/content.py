"""Content of the report's page as plain data: runs, columns, curves, replicates and pictures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Mistake
from runner.sweep.ledger import FILE
from runner.sweep.report import significance
from runner.sweep.report.html.columns import (
    ReportColumn,
    RunColumns,
    can_change_result,
    escape_text,
    make_columns,
    make_unique,
    round_number,
)
from runner.sweep.report.html.curve_data import make_curves
from runner.sweep.report.html.importances import PendingImportances
from runner.sweep.report.html.landscape import MOST_AXES, make_axis, make_surfaces, name_nulls
from runner.sweep.report.html.pictures import make_pictures
from runner.sweep.report.html.run_log import read_log
from runner.sweep.report.html.specs import make_specs
from runner.sweep.report.results import Report, gather, is_result
from runner.sweep.report.significance import Mean
from runner.sweep.report.table import format_value
from runner.sweep.runs.listing import RunList, select_runs
from runner.sweep.runs.reading import RunRow

TABLE_BYTES, CURVE_BYTES, PICTURE_BYTES = 500_000, 950_000, 400_000  # of a report of at most RUNS runs


RUNS = 1_000  # a report of more runs may be larger, in proportion


MOST_ENTRIES = 300  # groups of replicates


@dataclass(frozen=True)
class ReportedRuns:
    """Runs of a report, the best first, and the sweep that all of them are jobs of.

    Attributes:
        rows: the runs.
        report: of the sweep; None where they are not all of one.
        objective: metric that they are compared by.
        sign: 1 where more is better, else -1.
        values: the objective of each completed run; None of the others.
        ranks: of each run, replicates together.
        settings: of each run by key, those that its sweep varied first.
    """

    rows: list[RunRow]
    report: Report | None
    objective: str
    sign: int
    values: list[float | None]
    ranks: list[int | None]
    settings: list[Mapping[str, Any]]


def select_reported(words: Sequence[str]) -> tuple[ReportedRuns, RunList]:
    """Select the runs that words name, as `ls` does, and rank them.

    Raises:
        ConfigError: a word names nothing, or there is no run.
    """
    listed = select_runs(words)
    if not listed.rows:
        where = f"argument `{' '.join(words)}`"
        rule, remedy = "must hold at least one run", "`python -m runner ls` lists the runs"
        raise ConfigError([Mistake("DIR", rule, where=where, remedy=remedy, kind="file")])
    sweeps = {row.columns.get("sweep") for row in listed.rows}
    sweep = next(iter(sweeps)) if len(sweeps) == 1 else None
    report = gather(Path(sweep)) if isinstance(sweep, str) and (Path(sweep) / FILE).is_file() else None
    return _rank(listed.rows, report), listed


def _rank(rows: Sequence[RunRow], report: Report | None) -> ReportedRuns:
    if report is not None:
        objective, sign = report.objective, report.sign
    else:
        names = Counter(str(name) for row in rows if (name := row.columns.get("objective_name")))
        objective = names.most_common(1)[0][0] if names else "objective"
        modes = Counter(row.columns.get("mode") for row in rows if row.columns.get("objective_name") == objective)
        sign = -1 if modes and modes.most_common(1)[0][0] == "min" else 1
    entries = [] if report is None else report.entries
    by_path = {row.path: (row, entry.rank) for entry in entries for row in entry.rows}
    by_path |= {row.path: (row, None) for row in ([] if report is None else report.removed)}
    values = [_find_value(row, objective) for row in rows]
    order = sorted(v for v in (None if v is None else -sign * v for v in values) if v is not None)
    places = {value: number for number, value in reversed(list(enumerate(order, 1)))}
    ranks: list[int | None] = []
    settings: list[Mapping[str, Any]] = []
    for row, value in zip(rows, values, strict=True):
        job, rank = by_path.get(row.folder.name, (None, None))
        ranks.append(rank if job is not None else None if value is None else places[-sign * value])
        settings.append(row.config if job is None else {**job.values, **row.config})
    last = len(rows) + 1
    numbers = sorted(range(len(rows)), key=lambda n: (ranks[n] or last, -sign * (values[n] or 0.0), n))
    return ReportedRuns(
        [rows[number] for number in numbers],
        report,
        objective,
        sign,
        [values[number] for number in numbers],
        [ranks[number] for number in numbers],
        [settings[number] for number in numbers],
    )


def _find_value(row: RunRow, objective: str) -> float | None:
    """Find the objective of a completed run; None where it is no finite number."""
    same = row.columns.get("objective_name") in (objective, None)
    value = row.columns.get("objective") if same else row.metrics.get(objective)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value or 0) if is_number and row.status == "completed" else None


def make_content(given: ReportedRuns, listed: RunList) -> dict[str, Any]:
    """Make the content of the page, within a number of bytes."""
    scale = max(1.0, len(given.rows) / RUNS)
    swept = given.report.varied if given.report is not None else []
    columns = make_columns(given.rows, given.settings, given.ranks, given.objective, swept, int(TABLE_BYTES * scale))
    searched = [column for column in columns.list_searched() if not swept or column.name in map(escape_text, swept)]
    searched = [column for column in searched if column.count() > 1]
    pending = PendingImportances(searched, given.values, given.sign)
    logs = [read_log(row.folder) for row in given.rows]
    names = list(given.report.objectives) if given.report is not None and given.report.objectives else []
    curves, notes = make_curves(logs, [given.objective, *names], int(CURVE_BYTES * scale))
    axes = [make_axis(name_nulls(column, given.values)) for column in searched[: MOST_AXES - 1]]
    goal = make_axis(ReportColumn(escape_text(given.objective), "metric", given.values, is_numeric=True))
    runs = [(n, row.folder, str(row.columns.get("name") or "")) for n, row in enumerate(given.rows)]
    pictures, of_pictures = make_pictures(runs, PICTURE_BYTES)
    return {
        "title": _make_title(given),
        "about": _describe(given),
        "objective": escape_text(given.objective),
        "sign": given.sign,
        "runs": {"label": list(_label(given.rows)), "path": [escape_text(row.path) for row in given.rows]},
        "columns": [column.as_json() for column in columns.columns],
        "constants": columns.constants,
        "curves": curves,
        "axes": [axis.as_json() for axis in (*axes, goal)] if axes else [],
        "surfaces": make_surfaces(axes, given.values),
        "replicates": _make_replicates(given, columns),
        "importances": pending.collect(),
        "pictures": pictures,
        "notes": [*_list_notes(given, columns, listed), *notes, *of_pictures],
        "specs": make_specs(),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _make_title(given: ReportedRuns) -> str:
    if given.report is not None and len(given.rows) > 1:
        return escape_text(f"{given.report.settings.get('name') or 'Sweep'}: {given.report.folder.name}")
    if len(given.rows) == 1:
        return escape_text(f"{given.rows[0].columns.get('name') or 'Run'}: {given.rows[0].folder.name}")
    names = dict.fromkeys(str(name) for row in given.rows if (name := row.columns.get("name")))
    return escape_text(", ".join(names) or "Runs")


def _describe(given: ReportedRuns) -> str:
    counts = Counter(row.status for row in given.rows)
    if given.report is not None and len(given.rows) > 1:
        counts |= Counter(row.status for row in given.report.active if row.status == "waiting")
    said = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    way = "more is better" if given.sign > 0 else "less is better"
    number = f"{len(given.rows):,} run{'s' * (len(given.rows) != 1)}"
    return escape_text(f"{number}: {said}. Compared by {given.objective}, {way}.")


def _label(rows: Sequence[RunRow]) -> list[str]:
    """Make a short name for each run: its number in its sweep, else its folder; its path if not unique."""
    sweeps = {row.columns.get("sweep") for row in rows}
    labels = []
    for row in rows:
        job, sweep = row.columns.get("job"), str(row.columns.get("sweep") or "")
        alone = f"job {job}" if len(sweeps) == 1 else f"{Path(sweep).name}:{job}"
        labels.append(escape_text(alone if job is not None else row.folder.name))
    counts = Counter(labels)
    return [label if counts[label] == 1 else escape_text(row.path) for label, row in zip(labels, rows, strict=True)]


def _make_replicates(given: ReportedRuns, columns: RunColumns) -> dict[str, Any]:
    """Group runs that differ in seed and fold alone: mean and interval of each group, the best first."""
    keys = [column for column in columns.settings if can_change_result(column.name)]
    if given.report is not None:
        swept = {escape_text(name) for name in given.report.varied}
        keys = [column for column in keys if column.name in swept]
        found = _list_entries(given, given.report)
    else:
        found = _group_runs(given, keys)
    if not any(mean.n > 1 for mean, _, _ in found):
        return {"rows": [], "said": ""}
    rows = []
    labels = _label_groups(keys, [members[0] for _, members, _ in found[:MOST_ENTRIES]])
    for label, (mean, members, p) in zip(labels, found, strict=False):
        half = 0.0 if math.isnan(mean.half) else mean.half
        rows.append(
            {
                "label": label,
                "x": round_number(mean.value),
                "low": round_number(mean.value - half),
                "high": round_number(mean.value + half),
                "n": mean.n,
                "p": None if p is None else round_number(p, 3),
                "runs": members,
            }
        )
    noise = f"mean and {significance.CONFIDENCE:.0%} interval of the mean (Student's t)"
    test = significance.SAID if any(row["p"] is not None for row in rows) else ""
    return {"rows": rows, "said": f"{noise} of runs that differ in the seed or the fold alone", "test": test}


def _label_groups(keys: Sequence[ReportColumn], firsts: Sequence[int]) -> list[str]:
    """Label groups by as few settings, four or more, as tell the first run of each apart."""
    labels: list[str] = []
    for count in range(min(4, len(keys)), len(keys) + 1):
        labels = [escape_text(", ".join(_format_setting(key, n) for key in keys[:count]) or "all") for n in firsts]
        if len(set(labels)) == len(labels):
            break
    return make_unique(labels, " ({})")


def _list_entries(given: ReportedRuns, report: Report) -> list[tuple[Mean, list[int], float | None]]:
    """List the entries of a sweep's report, of the runs shown: mean, their numbers, p against the best."""
    numbers = {row.folder.name: number for number, row in enumerate(given.rows)}
    found: list[tuple[Mean, list[int]]] = []
    for entry in report.entries:
        rows = [row for row in entry.rows if row.path in numbers and is_result(row)]
        if values := [row.objective for row in rows if row.objective is not None]:
            found.append((Mean.of(values), [numbers[row.path] for row in rows]))
    found.sort(key=lambda one: -given.sign * one[0].value)
    ps = [significance.compute_welch_p(mean, found[0][0]) if place else None for place, (mean, _) in enumerate(found)]
    return [(mean, members, p) for (mean, members), p in zip(found, ps, strict=True)]


def _group_runs(given: ReportedRuns, keys: Sequence[ReportColumn]) -> list[tuple[Mean, list[int], float | None]]:
    """Group runs whose settings are alike, the best group first."""
    groups: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for number, value in enumerate(given.values):
        if value is not None:
            groups.setdefault(tuple(column.values[number] for column in keys), []).append((number, value))
    found = [(Mean.of([v for _, v in members]), [n for n, _ in members], None) for members in groups.values()]
    return sorted(found, key=lambda one: -given.sign * one[0].value)


def _format_setting(column: ReportColumn, number: int) -> str:
    return f"{column.name.rpartition('.')[2]}={format_value(column.values[number])}"


def _list_notes(given: ReportedRuns, columns: RunColumns, listed: RunList) -> list[str]:
    notes = [escape_text(note) for note in listed.notes]
    if columns.left_out:
        names = ", ".join(columns.left_out[:8]) + (", …" if len(columns.left_out) > 8 else "")
        notes.append(f"{len(columns.left_out):,} columns are left out to keep the file small: {names}")
    problems = Counter(str(row.columns["problem"]) for row in given.rows if row.columns.get("problem"))
    notes += [
        escape_text(f"{count:,} run{'s' * (count != 1)}: {problem}") for problem, count in problems.most_common(5)
    ]
    if given.report is not None and given.report.other_code:
        notes.append(f"{len(given.report.other_code):,} jobs ran with other code than later ones")
    return notes
