"""What a run says while it trains: `metrics.jsonl`, TensorBoard events, `log.txt` and the console."""

import json
import math
import os
import re
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from runner import safe_io
from runner.escape import one_line, printable
from runner.files import Lines, put_aside, to_json, whole_lines, write_atomic

Value = float | str  # of an event: a number, or a word such as the stage of a training

PLAIN_SECONDS = 5.0  # between two progress lines where the console is a file
REFRESH_SECONDS = 0.5  # between two drawings of the progress bar, 5 to 10 ms each
ROW = ".hparams"  # how the file with the run's row of TensorBoard's table ends
LONGEST_TAG = 1_000  # characters of a name in TensorBoard
SYNC_SECONDS = 30.0  # after so long TensorBoard sees what was logged


class Text:
    """The file `log.txt` of a run, which is added to."""

    def __init__(self, run_dir: Path) -> None:
        self._text = safe_io.open_regular(run_dir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, text: str) -> None:
        """Write `text`."""
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        os.write(self._text, f"{now}  {printable(text)}\n".encode(errors="backslashreplace"))

    def exception(self, error: BaseException) -> None:
        """Write the traceback of `error`, and close the file."""
        try:
            self.note("".join(traceback.format_exception(error)).rstrip())
        finally:
            os.close(self._text)


class Log:
    """The log of one run; it draws no random number, so nothing here changes a model.

    Each step has one line in `metrics.jsonl` (training and evaluation at the same step share it) and one event a tag in
    TensorBoard, also when a run is resumed at `start_step`: what was logged after that step is dropped.
    `stream` is the console (standard output unless given); `progress` is drawn there as a bar on a terminal, as lines
    elsewhere. What the disk refuses ends the run (OSError), or with `go_on` is said on the console once and left out.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool,
        progress: bool,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        go_on: bool = False,
    ) -> None:
        stream = stream or sys.stdout
        self._go_on, self._refused = go_on, False
        self._text = safe_io.open_regular(run_dir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lines = Lines(run_dir / "metrics.jsonl", until=start_step)
        self._events: _Events = _TensorBoard(run_dir / "tb", start_step) if tensorboard else _NoEvents()
        self._console: _Console = _Quiet(stream)
        if progress:
            bar = _is_terminal(stream)
            self._console = _Bar(stream, start_step, total_steps) if bar else _Plain(stream, total_steps)

    def say(self, what: object) -> None:
        """Print `what` and write it to `log.txt`; on a terminal rich draws it in its own way (`__rich__`)."""
        self._console.say(printable(what) if isinstance(what, str) else what)
        self.note(str(what))

    def note(self, text: str) -> None:
        """Write `text` to `log.txt` only."""
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        with self._writing():
            os.write(self._text, f"{now}  {printable(text)}\n".encode(errors="backslashreplace"))

    def exception(self, error: BaseException) -> None:
        """Write the traceback of `error` to `log.txt` only: the console gets a paragraph from whoever caught it."""
        self.note("".join(traceback.format_exception(error)).rstrip())

    def scalars(
        self, step: int, epoch: float, values: Mapping[str, Value], *, steps_per_second: float | None = None
    ) -> None:
        """Log `values` of training (`<split>/<name>`) at optimizer step `step`; takes 20 µs, the bar drawn aside."""
        self._record(step, epoch, values)
        self._console.progress(step, epoch, values, steps_per_second)

    def evaluated(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Log the `values` of an evaluation of the weights of optimizer step `step`."""
        self._record(step, epoch, values)
        line = f"step {step}  epoch {epoch:.4g}  {_words(values)}"
        self._console.evaluated(line, values)
        self.note(line)

    def show(self, step: int, values: Sequence[Any]) -> None:
        """Show histograms, images, texts or curves (`runner.summaries`) of step `step` in TensorBoard."""
        with self._writing(events=True):
            self._events.show(step, values)

    def graph(self, definition: bytes) -> None:
        """Show the graph of a model (a serialised GraphDef) in TensorBoard, unless there is one already."""
        with self._writing(events=True):
            self._events.graph(definition)

    def hparams(self, values: Mapping[str, Any], status: str) -> None:
        """Give TensorBoard's hparams page the run's row: what it was given, and how it ended."""
        with self._writing(events=True):
            self._events.hparams(values, status)

    def sync(self) -> None:
        """Bring all that was logged to the disk: before a checkpoint is committed, so that a resume finds no gap."""
        with self._writing():
            self._lines.sync()
        with self._writing(events=True):
            self._events.sync()

    def close(self) -> None:
        """End the progress and close the files; again is harmless.

        Raises:
            OSError: the disk refuses the last TensorBoard events.
        """
        self._console.close()
        self._lines.close()
        if self._text >= 0:
            os.close(self._text)
            self._text = -1
        with self._writing(events=True):
            self._events.close()

    def _record(self, step: int, epoch: float, values: Mapping[str, Value]) -> None:
        with self._writing():
            self._lines.append({"step": step, "epoch": epoch, **values})
        with self._writing(events=True):
            self._events.scalars(step, values)

    @contextmanager
    def _writing(self, *, events: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._lines.path.parent)
            if events:  # readers stop at a torn event, so nothing can follow one
                self._events.drop()
                self._events = _NoEvents()
            if not self._go_on:
                raise
            if not self._refused:
                self._refused = True
                why = error.strerror or error
                self._console.say(f"the log cannot be written ({why}). The run goes on (train.on_save_error=go_on)")


class WatchedLog(Log):
    """A log that also hands each event to `watch`, once it is written: with that a sweep stops a run."""

    def __init__(self, run_dir: Path, watch: Callable[[int, Mapping[str, Value]], None], **settings: Any) -> None:
        super().__init__(run_dir, **settings)
        self._watch = watch

    def _record(self, step: int, epoch: float, values: Mapping[str, Value]) -> None:
        super()._record(step, epoch, values)
        self._watch(step, values)


class NoLog(Log):
    """That of a process that leaves saying and writing to another."""

    def __init__(self) -> None:
        """Nothing is opened."""

    def note(self, text: str) -> None:
        """Not here."""

    def say(self, what: object) -> None:
        """Not here."""

    def scalars(self, *_: Any, **__: Any) -> None:
        """Not here."""

    def evaluated(self, *_: Any, **__: Any) -> None:
        """Not here."""

    def show(self, *_: Any, **__: Any) -> None:
        """Not here."""

    def hparams(self, *_: Any, **__: Any) -> None:
        """Not here."""

    def graph(self, *_: Any, **__: Any) -> None:
        """Not here."""

    def sync(self) -> None:
        """Nothing to bring anywhere."""

    def close(self) -> None:
        """Nothing is open."""


def final_report(metrics: Mapping[str, Any], run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Say the final metrics, one a line, and the run directory."""
    shown = {one_line(name): value for name, value in metrics.items()}
    width = max(map(len, shown), default=0)
    lines = [f"{name:<{width}}  {float(value):.6g}" for name, value in shown.items()]
    say("\n".join([*lines, printable(run_dir)]))


def _words(values: Mapping[str, Value]) -> str:
    return "  ".join(
        f"{one_line(name)} {one_line(value) if isinstance(value, str) else format(value, '.4g')}"
        for name, value in values.items()
    )


# ---- TensorBoard


class _Events(Protocol):
    def scalars(self, step: int, values: Mapping[str, Value]) -> None: ...
    def show(self, step: int, values: Sequence[Any]) -> None: ...
    def graph(self, definition: bytes) -> None: ...
    def hparams(self, values: Mapping[str, Any], status: str) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...
    def drop(self) -> None: ...


class _NoEvents:
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


class _TensorBoard:
    """One event file, written through tensorboardX's record writer in this thread.

    Its SummaryWriter would cost 130 µs an event of three values where this costs 12 (a queue, two threads, a pipe), and
    its `flush` leaves what is still in the queue: a gap after a kill.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX import RecordWriter  # 14 ms that only those pay who want it
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(exist_ok=True)
        earlier = [path for path in own_event_files(folder) if not path.name.endswith(ROW)]
        # The name decides the order of reading: a file started in the same second must be another, and come later.
        second = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in earlier)])
        self._name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self._folder = folder
        self._writer = RecordWriter(str(folder / self._name))
        self._Event, self._Summary = Event, Summary
        self._held_step = start_step
        # A start purges `start_step` too, since an evaluation may be done again: what stays is written anew.
        self._held, self._has_graph = _standing(earlier, start_step, Event, SessionLog.START)
        self._synced = time.monotonic()
        self._write(file_version="brain.Event:2")
        # TensorBoard takes the first start that it meets for no restart, so each file has one.
        self._write(step=start_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, Value]) -> None:
        self.show(step, [self._value(name, value) for name, value in values.items()])

    def _value(self, name: str, value: Value) -> Any:
        if isinstance(value, str):
            from runner.summaries import text

            return text(name, value)
        return self._Summary.Value(tag=one_line(name)[:LONGEST_TAG], simple_value=value)

    def show(self, step: int, values: Sequence[Any]) -> None:
        if step == self._held_step and self._held:
            values = [*(self._held | {value.tag: value for value in values}).values()]
            self._held = {}
        self._write_held()
        for value in values:
            if not value.tag.isprintable():
                value.tag = one_line(value.tag)
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
        """In a file of its own beside the events, so that TensorBoard shows one run, and its newest row.

        TensorBoard keeps the first row that it reads of a run, and a prolonged run has another.
        """
        from tensorboardX import RecordWriter

        from runner.summaries import hparams, text

        for earlier in self._folder.glob(f"events.out.tfevents.*{ROW}"):
            earlier.unlink()
        final = self._folder / "final"  # where earlier versions had it, as a run of its own
        for earlier in final.glob("events.out.tfevents.*"):
            earlier.unlink()
        with suppress(OSError):  # there is none, or it has files of others
            final.rmdir()
        writer = RecordWriter(str(self._folder / f"{self._name}{ROW}"))
        shown = [
            *hparams(values, status),
            text("config", "\n".join(f"    {key}: {value}" for key, value in values.items())),
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
        """Close the file without what is not written yet."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._Event(wall_time=time.time(), **fields).SerializeToString())


def own_event_files(folder: Path) -> list[Path]:
    """The event files in a folder that a run has written, in the order of their names: each begins with a start."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    def is_own(path: Path) -> bool:
        if not re.fullmatch(r"events\.out\.tfevents\.\d{10}\..+", path.name):
            return False
        with suppress(OSError):
            first = [event for _, event in zip(range(2), _events_of(path, Event), strict=False)]
            return len(first) == 2 and first[1].session_log.status == SessionLog.START
        return False

    return [path for path in sorted(folder.glob("events.out.tfevents.*")) if is_own(path)]


def _standing(files: Sequence[Path], step: int, event_type: Any, start: int) -> tuple[dict[str, Any], bool]:
    """What the earlier event files say of `step`, by tag, and whether they have a graph."""
    standing: dict[str, Any] = {}
    has_graph = False
    for path in files:
        for event in _events_of(path, event_type):
            if event.HasField("session_log") and event.session_log.status == start and event.step <= step:
                standing = {}
            elif event.step == step:
                standing |= {value.tag: value for value in event.summary.value}
            has_graph = has_graph or bool(event.graph_def)
    return standing, has_graph


def _events_of(path: Path, event_type: Any, *, verify: bool = False) -> Iterator[Any]:
    """The events of a file, without those that are damaged."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    for record in _records(path, verify=verify):
        try:
            event = event_type.FromString(record)
        except DecodeError:
            continue
        yield event


def _records(path: Path, *, verify: bool = False) -> Iterator[bytes]:
    """The records of an event file, up to a torn one: length, its checksum, content, its checksum.

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


# ---- what was lost of `metrics.jsonl`


def mend(run_dir: Path, until: int, known: int, steps_per_epoch: int) -> list[str]:
    """Keep the whole lines of `metrics.jsonl`, and take from TensorBoard's events what it has lost; what to say of it.

    Args:
        run_dir: the run directory.
        until: the step at which the run goes on; what was logged later is no loss.
        known: the last step that has a line, as the checkpoint says.
        steps_per_epoch: for the epoch of a line that is made again; 0 where that is not known.
    """
    path = run_dir / "metrics.jsonl"
    path.touch()
    places, damaged = whole_lines(path, until)
    content = path.read_bytes()
    lines = {place.step: content[place.start : place.end] for place in places}
    events = {step: json.loads(line) for step, line in lines.items()}
    found = _from_events(events, run_dir / "tb", until)
    if found:  # what is to be written is looked at twice
        found = _from_events(events, run_dir / "tb", until, verify=True)
    last = max([-1, *events, *found])
    inside = [number for number in damaged if places and number < places[-1].number]
    said = []
    if inside:
        many = len(inside) > 1
        numbers = ", ".join(map(str, inside[:5])) + (", …" if len(inside) > 5 else "")
        verb = "are damaged and left out" if many else "is damaged and left out"
        said.append(f"line{'s' * many} {numbers} {verb}")
    if found:
        new = [step for step in found if step not in events]
        if new:
            said.append(f"the lines of {_steps(new)} are made again from TensorBoard's events, in single precision")
        if len(new) < len(found):
            changed = [step for step in found if step in events]
            said.append(
                f"numbers of {_steps(changed)} were others than in TensorBoard's events, and are taken from there"
            )
    if last < known:
        since = f"after step {last:,} " if last >= 0 else ""
        said.append(f"what was logged {since}up to step {known:,} is lost: no other file holds it")
    if inside or found:
        aside = put_aside(path) if content else ""
        said.append(f"the file as it was is {aside}" if aside else "it was empty or missing")
        for step, values in found.items():
            epoch = {"epoch": step // steps_per_epoch} if steps_per_epoch else {}
            lines[step] = f"{to_json({'step': step} | epoch | events.get(step, {}) | values)}\n".encode()
        write_atomic(path, lambda file: file.writelines(lines[step] for step in sorted(lines)))
    return [f"{path.name}: {line}" for line in said]


def _steps(steps: Sequence[int]) -> str:
    steps = sorted(steps)
    if len(steps) == 1:
        return f"step {steps[0]:,}"
    return f"{len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"


def _from_events(
    lines: Mapping[int, Mapping[str, Any]], folder: Path, until: int, *, verify: bool = False
) -> dict[int, dict[str, float]]:
    """By step, what the event files say otherwise than the lines do, or what only they say."""
    known = {name for line in lines.values() for name in line}
    found: dict[int, dict[str, float]] = {}
    for step, values in _logged_events(folder, verify=verify).items():
        line = lines.get(step)
        if step > until:
            continue
        if line is None:
            found[step] = values
            continue
        other = {name: v for name, v in values.items() if name in known and not _same_number(line.get(name), v)}
        if other:
            found[step] = other
    return found


def _logged_events(folder: Path, *, verify: bool) -> dict[int, dict[str, float]]:
    """The numbers that the event files of a run show: step → tag → value; a start takes back what is not before it."""
    if not folder.is_dir():
        return {}
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    logged: dict[int, dict[str, float]] = {}
    for path in own_event_files(folder):
        for event in _events_of(path, Event, verify=verify):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                logged = {step: values for step, values in logged.items() if step < event.step}
                continue
            numbers = {v.tag: v.simple_value for v in event.summary.value if v.WhichOneof("value") == "simple_value"}
            if numbers:
                logged[event.step] = logged.get(event.step, {}) | numbers
    return logged


def _same_number(logged: Any, single: float) -> bool:
    """Whether a number of a line is that of an event, which has single precision."""
    try:
        value = float(logged)
        rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    except (TypeError, ValueError):
        return False
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    return rounded == single or (math.isnan(rounded) and math.isnan(single))


# ---- the console


class _Lasting:
    """A stream that a run can do without: once nobody takes it (`| head`, a closed terminal) nothing is said there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._all_the_same():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with self._all_the_same():
            self._stream.flush()

    @contextmanager
    def _all_the_same(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # what is still in its buffer would end the interpreter with a status of its own
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def lasting_console() -> Iterator[None]:
    """Let standard output and error go away without ending what writes to them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", stream and _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


class _Console(Protocol):
    def say(self, what: object) -> None: ...
    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None: ...
    def evaluated(self, line: str, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class _Quiet:
    """Says what it is told to, and no progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, what: object) -> None:
        if hasattr(what, "__rich__") and _is_terminal(self._stream):
            from rich.console import Console  # 27 ms that only a terminal pays

            Console(file=self._stream).print(what)
        else:
            print(what, file=self._stream, flush=True)

    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None:
        pass

    def evaluated(self, line: str, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Plain(_Quiet):
    """Lines: at most one every PLAIN_SECONDS, each evaluation, and the last one at the end."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        super().__init__(stream)
        self._total = total_steps
        self._due = time.monotonic() + PLAIN_SECONDS
        self._unsaid = ""

    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None:
        pace = _pace(self._total - step, rate)
        self._unsaid = f"step {step}/{self._total}  epoch {epoch:.4g}  {_words(values)}  {pace}"
        if time.monotonic() >= self._due or step >= self._total:
            self._flush()

    def evaluated(self, line: str, values: Mapping[str, float]) -> None:
        self.say(line)

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._unsaid:
            self.say(self._unsaid.rstrip())
            self._unsaid = ""
            self._due = time.monotonic() + PLAIN_SECONDS


class _Bar:
    """rich's progress bar, without its thread: drawn from here, at most every REFRESH_SECONDS."""

    def __init__(self, stream: TextIO, start_step: int, total_steps: int) -> None:
        from rich.console import Console  # 27 ms that only a terminal pays
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        rest = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
        columns = (BarColumn(10), MofNCompleteColumn(), rest)
        self._bar = Progress(*columns, console=Console(file=stream), auto_refresh=False, expand=True)
        self._task = self._bar.add_task("", total=total_steps, completed=start_step)
        self._total = total_steps
        self._step, self._where = start_step, ""
        self._values: dict[str, Value] = {}
        self._due = 0.0
        self._bar.start()

    def say(self, what: object) -> None:
        self._bar.console.print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))

    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None:
        self._step = step
        self._where = f"epoch {epoch:.4g}  {_pace(self._total - step, rate)}"
        self._values.update({name[6:]: value for name, value in values.items() if name.startswith("train/")})
        if time.monotonic() >= self._due:
            self._update()
            self._bar.refresh()
            self._due = time.monotonic() + REFRESH_SECONDS

    def evaluated(self, line: str, values: Mapping[str, float]) -> None:
        self._values.update(values)  # seen when it is drawn next; a line of its own would cost a drawing each

    def close(self) -> None:
        self._update()
        self._bar.stop()  # draws it a last time

    def _update(self) -> None:
        words = f"{self._where}  {_words(self._values)}"  # cut off where the terminal ends
        self._bar.update(self._task, completed=self._step, description=words)


def _pace(steps: int, rate: float | None) -> str:
    if not rate:
        return ""
    minutes, seconds = divmod(round(steps / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{rate:.4g} steps/s  {hours}:{minutes:02d}:{seconds:02d} left"
