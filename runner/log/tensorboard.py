"""TensorBoard event files through tensorboardX; each step has one event, also across resumes."""

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from runner.core import safe_io
from runner.core.escape import escape_line
from runner.log.jsonl import Value

ROW = ".hparams"  # how the file with the run's row of TensorBoard's table ends


LONGEST_TAG = 1_000  # characters of a name in TensorBoard


SYNC_SECONDS = 30.0  # after so long TensorBoard sees what was logged


# ---- TensorBoard


class EventWriter(Protocol):
    def scalars(self, step: int, values: Mapping[str, Value]) -> None: ...
    def show(self, step: int, values: Sequence[Any]) -> None: ...
    def graph(self, definition: bytes) -> None: ...
    def hparams(self, values: Mapping[str, Any], status: str) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...
    def drop(self) -> None: ...


class NoEventWriter:
    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        pass

    def show(self, step: int, values: Sequence[Any]) -> None:
        pass

    def graph(self, definition: bytes) -> None:
        pass

    def hparams(self, values: Mapping[str, Any], status: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def drop(self) -> None:
        pass


class TensorBoardWriter:
    """Writer of one event file through tensorboardX's record writer, in the calling thread.

    Its SummaryWriter would cost 130 µs an event of three values where this costs 12 (a queue, two threads, a pipe), and
    its `flush` leaves what is still in the queue: a gap after a kill.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX import RecordWriter  # 14 ms that only those pay who want it
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(exist_ok=True)
        earlier = [path for path in find_own_event_files(folder) if not path.name.endswith(ROW)]
        # The name decides the order of reading: a file started in the same second must be another, and come later.
        second = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in earlier)])
        self._name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self._folder = folder
        self._writer = RecordWriter(str(folder / self._name))
        self._Event, self._Summary = Event, Summary
        self._held_step = start_step
        # A start purges `start_step` too, since an evaluation may be done again: what stays is written anew.
        self._held, self._has_graph = _read_step_values(earlier, start_step, Event, SessionLog.START)
        self._synced = time.monotonic()
        self._write(file_version="brain.Event:2")
        # TensorBoard takes the first start that it meets for no restart, so each file has one.
        self._write(step=start_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        self.show(step, [self._value(name, value) for name, value in values.items()])

    def _value(self, name: str, value: Value) -> Any:
        if isinstance(value, str):
            from runner.log.summaries import make_text

            return make_text(name, value)
        return self._Summary.Value(tag=make_tag(name), simple_value=value)

    def show(self, step: int, values: Sequence[Any]) -> None:
        if step == self._held_step and self._held:
            values = [*(self._held | {value.tag: value for value in values}).values()]
            self._held = {}
        self._write_held()
        for value in values:
            if len(value.tag) > LONGEST_TAG or not value.tag.isprintable():
                value.tag = make_tag(value.tag)
        self._write(step=step, summary=self._Summary(value=values))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def _write_held(self) -> None:
        if self._held:
            self._write(step=self._held_step, summary=self._Summary(value=[*self._held.values()]))
            self._held = {}

    def graph(self, definition: bytes) -> None:
        if not self._has_graph:
            self._write(graph_def=definition)
            self._has_graph = True

    def hparams(self, values: Mapping[str, Any], status: str) -> None:
        """Write the run's row to a separate file, so that TensorBoard shows one run and its newest row.

        TensorBoard keeps the first row that it reads of a run, and a prolonged run has another.
        """
        from tensorboardX import RecordWriter

        from runner.log.summaries import make_hparams, make_text

        for earlier in self._folder.glob(f"events.out.tfevents.*{ROW}"):
            earlier.unlink()
        final = self._folder / "final"  # where earlier versions had it, as a run of its own
        for earlier in final.glob("events.out.tfevents.*"):
            earlier.unlink()
        with suppress(OSError):  # there is none, or it has files of others
            final.rmdir()
        writer = RecordWriter(str(self._folder / f"{self._name}{ROW}"))
        shown = [
            *make_hparams(values, status),
            make_text("config", "\n".join(f"    {key}: {value}" for key, value in values.items())),
        ]
        for fields in ({"file_version": "brain.Event:2"}, {"step": 0, "summary": self._Summary(value=shown)}):
            writer.write(self._Event(wall_time=time.time(), **fields).SerializeToString())
        writer.close()

    def sync(self) -> None:
        self._write_held()
        self._writer.flush()
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._writer is not None:
            self.sync()
            self._writer.close()
            self._writer = None

    def drop(self) -> None:
        """Close the file and discard unwritten events."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._Event(wall_time=time.time(), **fields).SerializeToString())


@lru_cache(1024)
def make_tag(name: str) -> str:
    """Return a name as TensorBoard shows it, on one line and not too long."""
    return escape_line(name)[:LONGEST_TAG]


def find_own_event_files(folder: Path) -> list[Path]:
    """Return the event files that a run has written (each begins with a start), sorted by name."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    def is_own(path: Path) -> bool:
        if not re.fullmatch(r"events\.out\.tfevents\.\d{10}\..+", path.name):
            return False
        with suppress(OSError):
            first = [event for _, event in zip(range(2), read_events(path, Event), strict=False)]
            return len(first) == 2 and first[1].session_log.status == SessionLog.START
        return False

    return [path for path in sorted(folder.glob("events.out.tfevents.*")) if is_own(path)]


def _read_step_values(files: Sequence[Path], step: int, event_type: Any, start: int) -> tuple[dict[str, Any], bool]:
    """Return the earlier event files' values at `step`, by tag, and whether the files hold a graph."""
    standing: dict[str, Any] = {}
    has_graph = False
    for path in files:
        for event in read_events(path, event_type):
            if event.HasField("session_log") and event.session_log.status == start and event.step <= step:
                standing = {}
            elif event.step == step:
                standing |= {value.tag: value for value in event.summary.value}
            has_graph = has_graph or bool(event.graph_def)
    return standing, has_graph


def read_events(path: Path, event_type: Any, *, verify: bool = False) -> Iterator[Any]:
    """Yield the undamaged events of a file."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    for record in _read_records(path, verify=verify):
        try:
            event = event_type.FromString(record)
        except DecodeError:
            continue
        yield event


def _read_records(path: Path, *, verify: bool = False) -> Iterator[bytes]:
    """Yield the records of an event file up to a torn one: length, checksum, content, checksum.

    With `verify` those are left out whose content does not have its checksum (0.1 µs a byte).
    """
    with safe_io.open_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if file.tell() + length + 4 > size:
                return
            content = file.read(length + 4)
            if len(content) < length + 4:
                return
            if not verify or _has_checksum(content):
                yield content[:-4]


def _has_checksum(content: bytes) -> bool:
    from tensorboardX.record_writer import masked_crc32c

    same: bool = struct.pack("<I", masked_crc32c(content[:-4])) == content[-4:]
    return same
