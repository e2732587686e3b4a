"""Columns of the report's table: facts, settings that differ, and metrics of each run, as plain data."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runner.config.identity import WITHOUT_EFFECT
from runner.core.escape import escape_line
from runner.sweep.report.results import REPLICATED
from runner.sweep.runs.reading import RunRow

LONGEST = 200  # characters of a text in the page


MOST_CONSTANTS = 400  # settings that all runs share, shown in the page


LARGEST = 2**53 - 1  # integer that JavaScript holds, as all up to it


Group = Literal["fact", "setting", "metric"]


FACTS = ("status", "started", "seconds", "steps", "seed", "cause", "error", "commit")


@dataclass(frozen=True)
class ReportColumn:
    """Column of the table.

    Attributes:
        name: of the key or the metric.
        group: whether it is a fact of the run, a setting or a metric.
        values: one a run: numbers in a column of numbers (NaN and infinity too), else texts; None where it has none.
        is_numeric: whether all values are numbers.
    """

    name: str
    group: Group
    values: Sequence[float | str | None]
    is_numeric: bool

    def count(self) -> int:
        """Count its different values, a missing one among them."""
        return len(set(self.values))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data: floats of six digits, integers whole, texts by their place in a list."""
        given = {"name": self.name, "group": self.group}
        if self.is_numeric:
            return given | {"values": [round_number(v) if isinstance(v, float) else v for v in self.values]}
        known = {value: number for number, value in enumerate(dict.fromkeys(v for v in self.values if v is not None))}
        return given | {
            "texts": list(known),
            "values": [-1 if value is None else known[value] for value in self.values],
        }


def round_number(value: float, digits: int = 6) -> float | str:
    """Round a number to significant digits; NaN and infinity, which JSON does not have, become texts."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def make_column(name: str, group: Group, given: Iterable[Any]) -> ReportColumn:
    """Make a column of values as they were recorded; one of texts where any is no number."""
    values = list(given)
    known = [value for value in values if value is not None]
    is_numeric = bool(known) and all(map(_is_shown_exactly, known))
    return ReportColumn(escape_text(name), group, values if is_numeric else list(map(format_text, values)), is_numeric)


def _is_shown_exactly(value: Any) -> bool:
    """Return whether a value is a number that a browser holds: no integer that it would round."""
    return isinstance(value, float) or (isinstance(value, int) and type(value) is not bool and abs(value) <= LARGEST)


def format_text(value: Any) -> str | None:
    """Format a value as a text of at most LONGEST characters, as YAML would say it; None stays None."""
    if value is None:
        return None
    return escape_text(value if isinstance(value, str) else json.dumps(value, default=str))


def escape_text(text: str) -> str:
    """Spell out control characters of a text, and cut it."""
    said = escape_line(text)
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 1]}…"


def make_unique(names: Iterable[str], suffix: str) -> list[str]:
    """Make names unique, whatever their case: the second of the same gets a number, as `suffix` says."""
    found, used = list[str](), set[str]()
    for name in names:
        tried = itertools.chain([name], (name + suffix.format(number) for number in itertools.count(2)))
        found.append(next(one for one in tried if one.casefold() not in used))
        used.add(found[-1].casefold())
    return found


def can_change_result(key: str) -> bool:
    """Return whether a setting may change a result by more than chance: it is no seed and has an effect."""
    return key not in REPLICATED and not any(key == name or key.startswith(f"{name}.") for name in WITHOUT_EFFECT)


@dataclass(frozen=True)
class RunColumns:
    """All columns of some runs.

    Attributes:
        columns: those that are shown, in their order.
        settings: all settings that differ.
        constants: settings that all runs share.
        left_out: names of columns that are not shown.
    """

    columns: list[ReportColumn]
    settings: list[ReportColumn]
    constants: dict[str, str]
    left_out: list[str]

    def find(self, name: str) -> ReportColumn | None:
        """Find a column by its name."""
        return next((column for column in self.columns if column.name == escape_text(name)), None)

    def list_searched(self) -> list[ReportColumn]:
        """List the settings that differ and can change a result, without the seed and the fold."""
        return [column for column in self.settings if can_change_result(column.name)]


def make_columns(
    rows: Sequence[RunRow],
    settings_of: Sequence[Mapping[str, Any]],
    ranks: Sequence[int | None],
    objective: str,
    swept: Sequence[str],
    budget: int,
) -> RunColumns:
    """Make the columns of runs, as many as fit into `budget` bytes, the most important first.

    Args:
        rows: the runs.
        settings_of: the settings of each run by key.
        ranks: of each run in its sweep.
        objective: name of the metric that runs are compared by.
        swept: keys that come first among the settings.
        budget: bytes of JSON, roughly.
    """
    facts = [make_column("rank", "fact", ranks), *(_make_fact(name, rows) for name in FACTS)]
    if len({row.get("sweep") for row in rows}) > 1:
        facts.append(_make_fact("sweep", rows))
    settings, constants = _make_settings(settings_of, swept)
    if any(column.name == "seed" for column in settings):
        facts = [column for column in facts if column.name != "seed"]
    metrics = _make_metrics(rows, objective)
    place = {column.name: number for number, column in enumerate([*settings, *facts, *metrics])}
    kept: list[ReportColumn] = []
    left_out: list[str] = []
    for column in [*metrics[:1], *settings, *facts, *metrics[1:]]:
        if column.group != "setting" and all(value is None for value in column.values):
            continue
        cost = len(json.dumps(column.as_json()))
        if cost > budget:
            left_out.append(column.name)
            continue
        budget -= cost
        kept.append(column)
    order: Callable[[ReportColumn], int] = lambda column: (  # noqa: E731  facts first, as they are read
        -2 if column.name == "rank" else -1 if column.name == "status" else place[column.name]
    )
    return RunColumns(sorted(kept, key=order), settings, constants, left_out)


def _make_fact(name: str, rows: Sequence[RunRow]) -> ReportColumn:
    return make_column(name, "fact", (row.columns.get(name) for row in rows))


def _make_settings(
    settings_of: Sequence[Mapping[str, Any]], swept: Sequence[str]
) -> tuple[list[ReportColumn], dict[str, str]]:
    """Make a column of each key that differs between runs; the others are constants."""
    names = dict.fromkeys(name for settings in settings_of for name in settings)
    columns, constants = [], dict[str, str]()
    for name in names:
        values = [settings.get(name) for settings in settings_of]
        first = values[0]
        if all(type(value) is type(first) and value == first for value in values):
            if len(constants) < MOST_CONSTANTS:
                constants[escape_text(name)] = format_text(first) or "null"
        else:
            columns.append(make_column(name, "setting", values))
    order = {escape_text(name): number for number, name in enumerate(swept)}
    columns.sort(key=lambda column: (order.get(column.name, len(order)), not can_change_result(column.name)))
    return columns, constants


def _make_metrics(rows: Sequence[RunRow], objective: str) -> list[ReportColumn]:
    """Make a column of each metric: the objective first, then those that most runs have."""
    counts = Counter(name for row in rows for name in row.metrics)
    names = sorted(counts, key=lambda name: (name != objective, name.startswith("best."), -counts[name]))
    return [make_column(name, "metric", (_clean(row.metrics, name) for row in rows)) for name in names]


def _clean(metrics: Mapping[str, Any], name: str) -> float | int | None:
    value = metrics.get(name)
    if type(value) is int and abs(value) > LARGEST:
        return float(value) if abs(value) < 1e300 else math.inf if value > 0 else -math.inf
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
