"""`metrics.jsonl`: one JSON object a log event, each step once, also across resumes."""

import bisect
import itertools
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.core.files import to_json, write_atomic, write_gathered

Value = float | str  # of an event: a number, or a word such as the stage of a training


@dataclass
class LinePlace:
    """Position of a whole line in a JSON lines file: its step, its number from 1, and its byte range."""

    step: int
    number: int
    start: int
    end: int


def find_whole_lines(path: Path, until: float = math.inf) -> tuple[list[LinePlace], list[int]]:
    """Return the whole lines with growing steps up to `until`, and the numbers of damaged lines.

    Where steps do not grow, the fewest lines that are in the way count as damaged.
    """
    places, damaged, end = list[LinePlace](), list[int](), 0
    with safe_io.open_read(path) as file:
        for number, line in enumerate(safe_io.read_lines(file), 1):
            start, end = end, end + len(line)
            event = _parse_event(line)
            if event is None:
                damaged.append(number)
            elif event["step"] <= until:
                places.append(LinePlace(event["step"], number, start, end))
    if any(one.step >= other.step for one, other in itertools.pairwise(places)):
        kept = _select_growing(places)
        damaged += {place.number for place in places} - {place.number for place in kept}
        places = kept
    return places, sorted(damaged)


def _select_growing(places: list[LinePlace]) -> list[LinePlace]:
    """Return the longest subsequence of lines whose steps grow (patience sorting)."""
    tops: list[int] = []  # the least step that ends a growing part of each length
    ends: list[int] = []  # the place of that
    before: list[int] = []
    for at, place in enumerate(places):
        length = bisect.bisect_left(tops, place.step)
        before.append(ends[length - 1] if length else -1)
        tops[length : length + 1] = [place.step]
        ends[length : length + 1] = [at]
    kept, at = list[LinePlace](), ends[-1] if ends else -1
    while at >= 0:
        kept.append(places[at])
        at = before[at]
    return kept[::-1]


def put_aside(path: Path) -> str:
    """Copy a damaged file, such as `metrics.jsonl` to `metrics.1.jsonl` (the first free number)."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    with safe_io.open_read(path) as damaged, aside.open("xb") as file:
        shutil.copyfileobj(damaged, file)
    return aside.name


class JsonLines:
    """JSON lines file: one object per event, one line per step in order, flushed per event.

    An event with the step of the last line is merged into that line. What is opened loses its torn end and every line
    of a step after `until`: what a resume at step `until` will log again. A damaged line before whole ones is left out;
    the file as it was is put aside then.
    """

    def __init__(self, path: Path, until: float = math.inf) -> None:
        self.path = path
        self._handle = safe_io.open_regular(path, os.O_RDWR | os.O_CREAT)
        self.truncate_after(until)

    def truncate_after(self, step: float) -> None:
        """Drop every event with a step greater than `step` and a torn end; set `last` to the last event."""
        places, _ = find_whole_lines(self.path, step)
        if any(one.end != other.start for one, other in itertools.pairwise([LinePlace(0, 0, 0, 0), *places])):
            kept = [os.pread(self._handle, place.end - place.start, place.start) for place in places]
            put_aside(self.path)
            write_atomic(self.path, lambda file: file.writelines(kept))
            write_gathered()  # it is opened again at once
            os.close(self._handle)
            self._handle = safe_io.open_regular(self.path, os.O_RDWR)
            places, _ = find_whole_lines(self.path)
        self.last: dict[str, Any] = {}
        self._start_of_last = self._end = 0
        if places:
            self._start_of_last, self._end = places[-1].start, places[-1].end
            self.last = safe_io.parse_json(os.pread(self._handle, self._end - self._start_of_last, self._start_of_last))
        os.ftruncate(self._handle, self._end)

    def append(self, event: dict[str, Any]) -> None:
        """Write `event` to the file, unbuffered; its integer `step` is at least the last event's.

        Raises:
            OSError: the disk refuses; the line is left out, and a later one may find room.
        """
        again = bool(self.last) and event["step"] == self.last["step"]
        assert again or not self.last or event["step"] > self.last["step"], "events come in the order of their steps"
        start = self._start_of_last if again else self._end
        line = to_json(self.last | event if again else event).encode() + b"\n"
        at = start
        try:
            while at < start + len(line):  # a disk that fills up takes part of it
                at += os.pwrite(self._handle, line[at - start :], at)
            if again:  # what it replaces may have been longer
                os.ftruncate(self._handle, at)
        except OSError:
            before = to_json(self.last).encode() + b"\n" if again else b""
            os.pwrite(self._handle, before, start)
            os.ftruncate(self._handle, start + len(before))
            raise
        self.last, self._start_of_last, self._end = self.last | event if again else event, start, at

    def sync(self) -> None:
        """Flush the file to disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _parse_event(line: bytes) -> dict[str, Any] | None:
    try:
        event = safe_io.parse_json(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(event, dict) and isinstance(event.get("step"), int)
    return event if whole else None
