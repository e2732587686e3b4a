"""`trace.jsonl`: results of each step of a run as bits and hashes, for a replay to compare.

A line has the step that it was written after. Facts of each step since the line before are packed: `loss` (its bits),
`order` (hash of the sample indices), `weights_probe` and `gradient_probe` (hashes of a few weights before the update
and of a few gradients), `data_probe` (where the samples are read one by one), `settings` of the optimizer. A log line
adds `batch` and `drawn` (generators); a checkpoint adds `weights`, `optimizer` and `generators`; the start of a process
adds `begin`, which says whether it trains in a stack (`stacked`): no step is probed there, and a save adds nothing.
"""

import base64
import binascii
import itertools
import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runner.core import safe_io

TRACE = "trace.jsonl"


STEP_HASHES = ("order", "data_probe", "weights_probe", "gradient_probe")  # of 32 bits, one a step


MARKS = ("batch", "drawn", "weights", "optimizer", "ema", "generators", "begin")


MAX_CONFIG = 4_000_000  # bytes of an unpacked config


MAX_STEPS = 50_000_000  # in one line: more than any log rhythm


@dataclass
class StepFacts:
    """Facts of one step, as far as they are known."""

    loss: float | None = None
    hashes: dict[str, int] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)


@dataclass
class RecordedTrace:
    """Facts of a run's steps, and the marks that were set at some of them (`MARKS`), by step."""

    steps: dict[int, StepFacts] = field(default_factory=dict)
    marks: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The last step with a fact; 0 without one."""
        return max([0, *self.steps, *self.marks])

    @property
    def stacked_after(self) -> int | None:
        """The step after which it trained in a stack for the first time; None where it always trained alone."""
        begins = ((step, marks.get("begin")) for step, marks in self.marks.items())
        return min(
            (step for step, begin in begins if isinstance(begin, Mapping) and begin.get("stacked")), default=None
        )

    def add(self, event: Mapping[str, Any]) -> None:
        """Add the facts of a line.

        Raises:
            ValueError: it is no line of a trace.
        """
        step = event.get("step")
        if type(step) is not int or step < 0:
            message = "a line without a step"
            raise ValueError(message)
        self.steps.update(expand_steps(event))
        marks = {name: event[name] for name in MARKS if isinstance(event.get(name), Mapping | str)}
        if marks:
            self.marks[step] = self.marks.get(step, {}) | marks


def read_trace(lines: Iterable[Any]) -> RecordedTrace:
    """Read the lines of a trace.

    Raises:
        ValueError: one is no line of a trace.
    """
    trace = RecordedTrace()
    for event in lines:
        if not isinstance(event, Mapping):
            message = "a line that is no mapping"
            raise ValueError(message)  # noqa: TRY004  of what a file holds
        trace.add(event)
    return trace


def read_trace_lines(folder: Path) -> list[Any]:
    """Read the lines of a run's trace; a torn last one is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no JSON.
    """
    lines = safe_io.read_bytes(folder / TRACE, safe_io.MAX_LOG_BYTES).split(b"\n")
    return [safe_io.parse_json(line) for line in lines[:-1]]


# ---- packed numbers


def pack_losses(losses: Sequence[float]) -> str:
    """Pack losses bit by bit: as float32 where they all are, else as float64."""
    single = array("f", losses)
    return f"f4:{_encode(single)}" if single.tolist() == losses else f"f8:{_encode(array('d', losses))}"


def pack_hashes(hashes: Sequence[int]) -> str:
    """Pack hashes of 32 bits."""
    return f"u4:{_encode(array('I', hashes))}"


def pack_setting(values: Sequence[float]) -> float | str:
    """Pack a setting of each step; one number where it is the same in all."""
    return values[0] if len(set(values)) == 1 else f"f8:{_encode(array('d', values))}"


def pack_config(config: Mapping[str, Any]) -> str:
    """Pack a config."""
    return base64.b64encode(zlib.compress(json.dumps(config, sort_keys=True).encode(), 6)).decode()


def unpack_config(text: Any) -> dict[str, Any]:
    """Unpack a config; empty where it cannot be read, or is larger than a config can be."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MAX_CONFIG)
        config = safe_io.parse_json(content)
    except (TypeError, ValueError, binascii.Error, zlib.error):
        return {}
    return config if isinstance(config, dict) else {}


def unpack(text: Any) -> list[Any]:
    """Unpack numbers.

    Raises:
        ValueError: the text is none of the packed forms.
    """
    kind, separator, body = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in ("f4", "f8", "u4") or not separator or len(body) > 16 * MAX_STEPS:
        message = "no packed numbers"
        raise ValueError(message)
    numbers: list[Any] = np.frombuffer(base64.b64decode(body, validate=True), dtype=f"<{kind}").tolist()
    return numbers


def expand_steps(event: Mapping[str, Any]) -> Iterator[tuple[int, StepFacts]]:
    """Yield each step of a line with its facts.

    Raises:
        ValueError: the line's parts do not fit each other.
    """
    if "loss" not in event:
        return
    losses = unpack(event["loss"])
    count, last = len(losses), event["step"]
    hashes = {name: unpack(event[name]) for name in STEP_HASHES if name in event}
    settings = event.get("settings")
    columns = dict(_expand_settings(settings, count)) if isinstance(settings, Mapping) else {}
    if any(len(column) != count for column in (*hashes.values(), *columns.values())) or count > last:
        message = "a line whose parts have different lengths"
        raise ValueError(message)
    for row, step in enumerate(range(last - count + 1, last + 1)):
        known = {name: column[row] for name, column in hashes.items()}
        yield step, StepFacts(losses[row], known, {name: column[row] for name, column in columns.items()})


def _expand_settings(settings: Mapping[str, Any], count: int) -> Iterator[tuple[str, list[float]]]:
    for name, value in settings.items():
        if not isinstance(value, str | float | int):
            message = f"a setting {name} that is no number"
            raise ValueError(message)  # noqa: TRY004  of what a file holds
        yield name, unpack(value) if isinstance(value, str) else list(itertools.repeat(float(value), count))


def _encode(numbers: "array[Any]") -> str:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return binascii.b2a_base64(numbers.tobytes(), newline=False).decode()


def match_bits(one: float, other: float) -> bool:
    """Return whether two numbers have the same bits; every NaN counts as the same."""
    return struct.pack("<d", one) == struct.pack("<d", other) or (one != one and other != other)  # noqa: PLR0124
