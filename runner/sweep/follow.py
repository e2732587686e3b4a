"""What a running job logs, line by line, as it is written."""

import json
from pathlib import Path
from typing import Any


class Follower:
    """Reads on in a `metrics.jsonl`: each event once, and again where its line was added to."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"
        self._start_of_last = 0  # an event of the same step replaces the last line
        self._last = b""

    def new(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of each whole line that is new or has changed since the last call."""
        try:
            with self._file.open("rb") as file:
                if file.seek(0, 2) < self._start_of_last:  # a resume took lines back
                    self._start_of_last, self._last = 0, b""
                file.seek(self._start_of_last)
                lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        except OSError:
            return []
        if not lines:
            return []
        fresh = lines[1:] if lines[0] == self._last else lines
        self._start_of_last += sum(map(len, lines[:-1]))
        self._last = lines[-1]
        return [event for line in fresh if (event := _event(line)) is not None]


def _event(line: bytes) -> tuple[int, dict[str, float]] | None:
    try:
        event: dict[str, Any] = json.loads(line)
        metrics = {name: float(value) for name, value in event.items() if name not in ("step", "epoch")}
        return int(event["step"]), metrics
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
