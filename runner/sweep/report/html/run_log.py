"""Logs of runs for the report: curves of metrics, and when each step was done, read within limits."""

import contextlib
import math
import os
import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.core import safe_io

MOST_LINES = 1_000  # of a metrics.jsonl that are read; beyond it a part, and every line of an evaluation


MOST_METRICS = 500  # of one run


MOST_ANCHORS = 9  # between which epoch and time are straight lines


MOST_RECORDS = 20_000  # of the TensorBoard files of one run


Points = list[tuple[float, float]]


@dataclass
class RunLog:
    """Log of one run.

    Attributes:
        curves: metric → its steps and finite values; NaN where a value was none.
        epochs: (step, epoch) between which epochs grow evenly.
        seconds: (step, seconds since the start) likewise; empty where they are not known.
        skipped: number of lines that were not read, because there are too many.
    """

    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    epochs: Points = field(default_factory=list)
    seconds: Points = field(default_factory=list)
    skipped: int = 0


def read_log(folder: Path, *, with_times: bool = True) -> RunLog:
    """Read the log of a run directory, even one still being written."""
    log = RunLog()
    lines = _read_lines(folder / "metrics.jsonl")
    chosen = _choose_lines(lines)
    log.skipped = len(lines) - len(chosen)
    epochs: Points = []
    for event in _parse_events(chosen):
        step = event["step"]
        for name, value in event.items():
            number = value if type(value) is float and -1e300 < value < 1e300 else parse_number(value)
            if number is None or name == "step":
                continue
            if name == "epoch":
                epochs.append((step, number))
                continue
            curve = log.curves.get(name)
            if curve is None:
                if len(log.curves) >= MOST_METRICS:
                    continue
                curve = log.curves[name] = ([], [])
            curve[0].append(step)
            curve[1].append(number)
    log.epochs = reduce_points(epochs)
    if with_times:
        log.seconds = reduce_points(read_times(folder / "tb"))
    return log


def _parse_events(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Parse the lines that are whole: all at once, or one by one where that fails."""
    try:
        found = safe_io.parse_json(b"[%b]" % b",".join(lines)) if sum(map(len, lines)) < safe_io.MAX_LINE else None
    except ValueError:
        found = None
    if found is None or len(found) != len(lines):
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # one that is half written
                found.append(safe_io.parse_json(line))
    return [one for one in found if isinstance(one, dict) and type(one.get("step")) is int and abs(one["step"]) < 2**53]


def parse_number(value: object) -> float | None:
    """Return a logged number; NaN for the texts that stand for what is not finite; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else math.nan
    return math.nan if value in ("NaN", "Infinity", "-Infinity") else None


def _read_lines(file: Path) -> list[bytes]:
    with contextlib.suppress(OSError), safe_io.open_read(file) as opened:
        if os.fstat(opened.fileno()).st_size <= safe_io.MAX_LOG_BYTES:
            return list(safe_io.read_lines(opened))
    return []


def _choose_lines(lines: Sequence[bytes]) -> Sequence[bytes]:
    """Choose at most twice MOST_LINES lines, evenly: of all of them, and of those of evaluations."""
    if len(lines) <= MOST_LINES:
        return lines
    evaluated = [number for number, line in enumerate(lines) if b'"val/' in line or b'"test/' in line]
    chosen = {*choose_evenly(range(len(lines)), MOST_LINES), *choose_evenly(evaluated, MOST_LINES)}
    return [lines[number] for number in sorted(chosen)]


def choose_evenly(numbers: Sequence[int], most: int) -> Sequence[int]:
    """Choose at most so many numbers, the first and the last among them."""
    if len(numbers) <= most:
        return numbers
    return [numbers[round(place * (len(numbers) - 1) / (most - 1))] for place in range(most)]


def reduce_points(points: Points) -> Points:
    """Leave at most MOST_ANCHORS points whose first coordinates grow, rounded."""
    growing = [point for before, point in zip([(-1.0, 0.0), *points], points, strict=False) if point[0] > before[0]]
    numbers = choose_evenly(range(len(growing)), MOST_ANCHORS)
    kept = [(growing[number][0], round(growing[number][1], 3)) for number in numbers]
    if len(kept) > 2 and all(_is_between(kept[0], point, kept[-1]) for point in kept[1:-1]):
        return [kept[0], kept[-1]]
    return kept


def _is_between(a: tuple[float, float], point: tuple[float, float], b: tuple[float, float]) -> bool:
    straight = a[1] + (b[1] - a[1]) * (point[0] - a[0]) / (b[0] - a[0])
    return abs(straight - point[1]) <= 0.002 * max(abs(b[1]), 1e-9)


def read_times(folder: Path) -> Points:
    """Read when each step was logged from TensorBoard's files, seconds since the first one was begun.

    The time between the end of one file and the start of the next, when the run was stopped, does not count.
    """
    try:
        with os.scandir(folder) as entries:
            files = sorted(entry.path for entry in entries if ".tfevents." in entry.name and entry.is_file())
    except OSError:
        return []
    found: dict[int, float] = {}
    elapsed = 0.0
    for file in files[:20]:
        start, times = _read_file_times(Path(file))
        for step, time in times:
            found.setdefault(step, elapsed + time - start)
        elapsed += max((time - start for _, time in times), default=0.0)
    return sorted((float(step), time) for step, time in found.items())


def _read_file_times(file: Path) -> tuple[float, list[tuple[int, float]]]:
    """Read when a file was begun, and step and wall time of each record.

    A record is length, checksum, then the fields 1 and 2 of `Event`; the first, of the file's version, has no step.
    """
    found: list[tuple[int, float]] = []
    first = math.inf
    with contextlib.suppress(OSError, struct.error), safe_io.open_read(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        at = 0
        while at + 16 < size and len(found) < MOST_RECORDS:
            opened.seek(at)
            head = opened.read(32)
            length = struct.unpack_from("<Q", head)[0]
            data = head[12 : 12 + min(length, 20)]
            at += 16 + length
            if len(data) > 10 and data[0] == 0x09:
                time = struct.unpack_from("<d", data, 1)[0]
                if math.isfinite(time) and first == math.inf:
                    first = time
                if math.isfinite(time) and data[9] == 0x10:
                    found.append((_parse_varint(data[10:]), time))
    return (min(first, found[0][1]) if found else 0.0), found  # a writer may have been told other times than its own


def _parse_varint(data: bytes) -> int:
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return value


def reduce_curve(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """Reduce a curve to at most `most` points that keep its look, the first and the last among them.

    Largest-Triangle-Three-Buckets (S. Steinarsson, "Downsampling Time Series for Visual Representation", 2013).
    """
    count = len(steps)
    if count <= most or most < 3:
        return list(steps), list(values)
    finite = [0.0 if math.isnan(value) else value for value in values]
    kept = [0]
    width = (count - 2) / (most - 2)
    for bucket in range(most - 2):
        start, end = 1 + int(bucket * width), 1 + int((bucket + 1) * width)
        after = range(end, min(1 + int((bucket + 2) * width), count)) if bucket < most - 3 else range(count - 1, count)
        mean_x = sum(steps[n] for n in after) / len(after)
        mean_y = sum(finite[n] for n in after) / len(after)
        x, y = steps[kept[-1]], finite[kept[-1]]
        areas = [abs((x - mean_x) * (finite[n] - y) - (x - steps[n]) * (mean_y - y)) for n in range(start, end)]
        kept.append(start + max(range(len(areas)), key=areas.__getitem__))
    kept.append(count - 1)
    return [steps[n] for n in kept], [values[n] for n in kept]


def interpolate(points: Points, x: float) -> float:
    """Interpolate between points whose first coordinates grow; beyond them along the last two."""
    place = min(max(bisect_left(points, (x, -math.inf)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
