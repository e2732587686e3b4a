"""Settings of a sweep against its objective: axes, positions on them, and surfaces between the jobs."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.sweep.report.html.columns import ReportColumn, round_number

MOST_AXES = 8  # of the parallel coordinates


MOST_VALUES = 12  # of a setting that is one side of a table of means


MOST_PAIRS = 15


CELLS = 24  # of a surface's side


FEWEST = 6  # jobs between which a surface is drawn


@dataclass(frozen=True)
class LandscapeAxis:
    """Axis of a setting or a metric: where each run lies on it, from 0 to 1.

    Attributes:
        name: of the column.
        positions: of each run; None where it has no value.
        ticks: position and text of each.
        is_log: whether numbers lie on it by their logarithm.
        low: the number at 0, and `high` at 1; NaN on an axis of texts.
        levels: the different values in order, where they are few; else empty.
    """

    name: str
    positions: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]
    is_log: bool
    low: float
    high: float
    levels: Sequence[str]

    def locate(self, position: float) -> float:
        """Return the number at a position."""
        if self.is_log:
            return math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
        return self.low + position * (self.high - self.low)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        rounded = [None if position is None else round(position, 4) for position in self.positions]
        return {"name": self.name, "positions": rounded, "ticks": self.ticks, "log": self.is_log}


def make_axis(column: ReportColumn) -> LandscapeAxis:
    """Make the axis of a column: of texts, linear, or logarithmic where positive numbers are far apart."""
    known = [value for value in column.values if value is not None]
    finite = [value for value in known if isinstance(value, int | float) and math.isfinite(value)]
    if column.is_numeric and finite:
        low, high = float(min(finite)), float(max(finite))
        is_log = low > 0 and high / low >= 30
        convert = math.log if is_log else float
        start, span = convert(low), convert(high) - convert(low)
        numbers = [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in column.values]
        positions = [None if v is None else (convert(v) - start) / span if span else 0.5 for v in numbers]
        levels = sorted(set(finite))
        few = [name_level(value) for value in levels] if len(levels) <= MOST_VALUES else []
        axis = LandscapeAxis(column.name, positions, [], is_log, low, high, few)
        places = [0.0, 0.25, 0.5, 0.75, 1.0] if span else [0.5]
        ticks = [(place, format(axis.locate(place) if span else low, ".3g")) for place in places]
        return LandscapeAxis(column.name, positions, ticks, is_log, low, high, few)
    texts = sorted({str(value) for value in known}, key=order_level)
    place = {text: (number / (len(texts) - 1) if len(texts) > 1 else 0.5) for number, text in enumerate(texts)}
    positions = [None if value is None else place[str(value)] for value in column.values]
    shown = texts if len(texts) <= MOST_VALUES else [texts[0], texts[-1]]
    ticks = [(place[text], text) for text in shown]
    few = texts if len(texts) <= MOST_VALUES else []
    return LandscapeAxis(column.name, positions, ticks, False, math.nan, math.nan, few)


def name_nulls(column: ReportColumn, objective: Sequence[float | None]) -> ReportColumn:
    """Return a setting as one of texts, with `null`, where a completed run has none; else as it is."""
    pairs = zip(column.values, objective, strict=True)
    if not any(value is None and done is not None for value, done in pairs):
        return column
    return ReportColumn(column.name, column.group, list(map(name_level, column.values)), is_numeric=False)


def order_level(text: str) -> tuple[int, float, str]:
    """Order texts: null, then numbers by their size, then the others."""
    try:
        number = float(text)
    except ValueError:
        return 2 * (text != "null"), 0.0, text
    return (1, number, text) if math.isfinite(number) else (2, 0.0, text)


def name_level(value: float | str | None) -> str:
    """Name a value of a setting: a number of six digits, an integer whole."""
    return "null" if value is None else format(value, ".6g") if isinstance(value, float) else str(value)


def make_surfaces(axes: Sequence[LandscapeAxis], objective: Sequence[float | None]) -> list[dict[str, Any]]:
    """Make a table of means of the objective, or a surface between the jobs, for each pair of settings.

    A surface is Shepard's inverse distance weighting (D. Shepard, ACM National Conference 1968) of power 3.
    """
    made: list[dict[str, Any] | None] = []
    for x, y in itertools.combinations(axes, 2):
        if len(made) >= MOST_PAIRS:
            break
        if x.levels and y.levels:
            made.append(_make_means(x, y, objective))
        elif not (math.isnan(x.low) or math.isnan(y.low)) and x.low < x.high and y.low < y.high:
            made.append(_make_surface(x, y, objective))
    return [one for one in made if one is not None]


def _list_points(
    x: LandscapeAxis, y: LandscapeAxis, objective: Sequence[float | None]
) -> list[tuple[float, float, float]]:
    return [
        (a, b, value)
        for a, b, value in zip(x.positions, y.positions, objective, strict=True)
        if a is not None and b is not None and value is not None and math.isfinite(value)
    ]


def _make_means(x: LandscapeAxis, y: LandscapeAxis, objective: Sequence[float | None]) -> dict[str, Any] | None:
    cells: dict[tuple[int, int], list[float]] = {}
    columns, rows = _number_levels(x), _number_levels(y)
    for a, b, value in _list_points(x, y, objective):
        cells.setdefault((columns[a], rows[b]), []).append(value)
    if not cells:
        return None
    found = [[i, j, round_number(sum(values) / len(values)), len(values)] for (i, j), values in sorted(cells.items())]
    return {"x": x.name, "y": y.name, "kind": "means", "levels": [x.levels, y.levels], "cells": found}


def _number_levels(axis: LandscapeAxis) -> dict[float, int]:
    known = sorted({position for position in axis.positions if position is not None})
    return {position: number for number, position in enumerate(known)}


def _make_surface(x: LandscapeAxis, y: LandscapeAxis, objective: Sequence[float | None]) -> dict[str, Any] | None:
    points = np.array(_list_points(x, y, objective))
    if len(points) < FEWEST:
        return None
    middles = (np.arange(CELLS) + 0.5) / CELLS
    grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    distances = ((grid - points[None, :, :2]) ** 2).sum(-1) + 1e-6
    weights = distances**-1.5
    values = (weights * points[None, :, 2]).sum(1) / weights.sum(1)
    edges = [[round_number(axis.locate(place / CELLS), 4) for place in range(CELLS + 1)] for axis in (x, y)]
    return {
        "x": x.name,
        "y": y.name,
        "kind": "surface",
        "edges": edges,
        "log": [x.is_log, y.is_log],
        "cells": [round_number(float(value), 4) for value in values],
    }
