"""Learning curves of the report as plain data that fits into a number of bytes."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from runner.sweep.report.html.columns import escape_text, round_number
from runner.sweep.report.html.run_log import RunLog, reduce_curve

SIZES = (1_000, 500, 250, 120, 60, 40, 30, 20, 12)  # points that a curve may keep


VALUE_BYTES, POINT_BYTES = 8, 15  # of a value on steps that other runs share; of one with a step of its own


MOST_SHOWN = 40  # metrics


def make_curves(logs: Sequence[RunLog], objectives: Sequence[str], budget: int) -> tuple[dict[str, Any], list[str]]:
    """Make the curves of runs, the most important metrics first; return also what was left out, in words.

    Args:
        logs: of the runs.
        objectives: metrics that come first.
        budget: bytes of JSON, roughly.

    Returns:
        `{"grids": [steps, …], "metrics": [{"name", "grid": number of the steps of each run or -1, "values"}, …],
        "epochs": […], "seconds": […]}`, and notes.
    """
    counts = Counter(name for log in logs for name in log.curves)
    names = sorted(counts, key=lambda name: (*_weigh(name, objectives), -counts[name], name))
    shown = names[:MOST_SHOWN]
    most = _choose_size(logs, shown, budget)
    while most is None and len(shown) > 1:
        shown.pop()
        most = _choose_size(logs, shown, budget)
    most = most or SIZES[-1]
    grids: dict[str, int] = {}
    metrics = [_make_metric(name, logs, most, grids) for name in shown]
    made = {
        "grids": [json.loads(grid) for grid in grids],
        "metrics": metrics,
        "epochs": [[number for point in log.epochs for number in point] for log in logs],
        "seconds": [[number for point in log.seconds for number in point] for log in logs],
    }
    return made, list(_list_notes(logs, names, shown, most))


def _weigh(name: str, objectives: Sequence[str]) -> tuple[int, int]:
    if name in objectives:
        return 0, objectives.index(name)
    split, _, metric = name.partition("/")
    return (1 if name == "train/loss" else 2 if split == "val" else 3 if split in ("test", "train") else 4), len(metric)


def _choose_size(logs: Sequence[RunLog], names: Sequence[str], budget: int) -> int | None:
    """Choose how many points a curve may have so that all fit; None where not even the fewest do."""
    lengths = Counter(len(log.curves[name][0]) for log in logs for name in names if name in log.curves)
    for most in SIZES:
        cost = sum(
            count * (length * VALUE_BYTES if length <= most else most * POINT_BYTES)
            for length, count in lengths.items()
        )
        if cost <= budget:
            return most
    return None


def _make_metric(name: str, logs: Sequence[RunLog], most: int, grids: dict[str, int]) -> dict[str, Any]:
    places: list[int] = []
    values: list[list[float | None]] = []
    for log in logs:
        if name not in log.curves:
            places.append(-1)
            values.append([])
            continue
        steps, numbers = reduce_curve(*log.curves[name], most)
        places.append(grids.setdefault(json.dumps(steps), len(grids)))
        values.append([_as_plain(number) for number in numbers])
    return {"name": escape_text(name), "grid": places, "values": values}


def _as_plain(value: float) -> float | None:
    short = round_number(value, 5)
    return None if isinstance(short, str) else short


def _list_notes(logs: Sequence[RunLog], names: Sequence[str], shown: Sequence[str], most: int) -> Iterator[str]:
    reduced = sum(len(log.curves[name][0]) > most for log in logs for name in shown if name in log.curves)
    if reduced:
        yield (
            f"{reduced:,} curves are drawn with at most {most:,} points each, chosen so that they look the same "
            "(largest triangle, three buckets); metrics.jsonl has all"
        )
    skipped = sum(log.skipped > 0 for log in logs)
    if skipped:
        yield f"of {skipped:,} long logs a part of the lines was read: evenly, and those of evaluations first"
    if len(shown) < len(names):
        rest = [escape_text(name) for name in names[len(shown) :]]
        listed = ", ".join(rest[:10]) + (", …" if len(rest) > 10 else "")
        yield f"curves of {len(rest):,} metrics are left out to keep the file small: {listed}"
    if not any(log.seconds for log in logs) and any(log.curves for log in logs):
        yield "no run has TensorBoard files, which say when a step was done: its seconds are spread over its steps"
