"""Logger of a run: `metrics.jsonl`, TensorBoard events, `log.txt` and the console."""

import math
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from runner.core import event_stream, safe_io
from runner.core.escape import make_printable
from runner.core.files import to_json, write_atomic, write_gathered
from runner.log.console import ConsoleOutput, PlainConsole, ProgressBar, QuietConsole, format_values, is_terminal
from runner.log.jsonl import JsonLines, Value, find_whole_lines, put_aside
from runner.log.notebook import NotebookBar, NotebookConsole, is_notebook
from runner.log.tensorboard import EventWriter, NoEventWriter, TensorBoardWriter, find_own_event_files, read_events
from runner.log.trace_file import TRACE
from runner.log.tracking import TrackerProcess, send_pictures, send_scalars, tell_end, wait_for_trackers


class LogFile:
    """File `log.txt` of a run, opened for appending."""

    def __init__(self, run_dir: Path) -> None:
        self._text = safe_io.open_regular(run_dir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, text: str) -> None:
        """Write `text`."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(self._text, f"{now}  {make_printable(text)}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        os.close(self._text)

    def exception(self, error: BaseException) -> None:
        """Write the traceback of `error` and close the file."""
        try:
            self.note("".join(traceback.format_exception(error)).rstrip())
        finally:
            self.close()


class Logger:
    """Logger of one run; it draws no random number, so logging does not change a model.

    Each step has one line in `metrics.jsonl` (training and evaluation at the same step share it) and one event a tag in
    TensorBoard, also when a run is resumed at `start_step`: what was logged after that step is dropped.
    `trackers` get the same, pictures included; they are started once the log is open. `await_trackers` is called with
    those that have been told the end.
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
        trace: bool = False,
    ) -> None:
        self.trackers: Sequence[TrackerProcess] = ()
        self.await_trackers: Callable[[Sequence[TrackerProcess]], object] = wait_for_trackers
        self._ending = "interrupted", False  # unless `end` says otherwise
        in_notebook, stream = stream is None and is_notebook(), stream or sys.stdout
        self._go_on, self._refused = go_on, False
        self._text = safe_io.open_regular(run_dir / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lines = JsonLines(run_dir / "metrics.jsonl", until=start_step)
        self._trace = JsonLines(run_dir / TRACE, until=start_step) if trace else None
        self._events: EventWriter = TensorBoardWriter(run_dir / "tb", start_step) if tensorboard else NoEventWriter()
        self._console: ConsoleOutput = NotebookConsole(stream) if in_notebook else QuietConsole(stream)
        if progress and in_notebook:
            self._console = NotebookBar(stream, start_step, total_steps)
        elif progress:
            bar = is_terminal(stream)
            self._console = ProgressBar(stream, start_step, total_steps) if bar else PlainConsole(stream, total_steps)

    def say(self, what: object) -> None:
        """Print `what` and write it to `log.txt`; rich renders an object's `__rich__` on a terminal."""
        self._console.say(make_printable(what) if isinstance(what, str) else what)
        self.note(str(what))
        if isinstance(what, str):
            event_stream.emit("note", text=what)

    def alert(self, text: str) -> None:
        """Say what is amiss although the run goes on."""
        self._console.say(make_printable(text))
        self.note(text)
        event_stream.emit("warning", text=text)

    def note(self, text: str) -> None:
        """Write `text` to `log.txt` only."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._writing():
            os.write(self._text, f"{now}  {make_printable(text)}\n".encode(errors="backslashreplace"))

    def exception(self, error: BaseException) -> None:
        """Write the traceback of `error` to `log.txt` only; the caller reports it on the console."""
        self.note("".join(traceback.format_exception(error)).rstrip())

    def scalars(
        self, step: int, epoch: float, values: Mapping[str, Value], *, steps_per_second: float | None = None
    ) -> None:
        """Log training `values` (`<split>/<name>`) at optimizer step `step`; 20 µs without the bar."""
        self._record(step, epoch, values)
        self._console.progress(step, epoch, values, steps_per_second)
        event_stream.emit("log", step=step, epoch=epoch, metrics=values, steps_per_second=steps_per_second)

    def evaluated(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Log the `values` of an evaluation of the weights after optimizer step `step`."""
        self._record(step, epoch, values)
        line = f"step {step}  epoch {epoch:.4g}  {format_values(values)}"
        self._console.evaluated(line, values)
        self.note(line)
        event_stream.emit("evaluated", step=step, epoch=epoch, metrics=values)

    def trace(self, facts: Mapping[str, Any]) -> None:
        """Write what steps have computed to `trace.jsonl`: `step`, and facts since the last line."""
        if self._trace is not None:
            with self._writing():
                self._trace.append(dict(facts))

    def show(self, step: int, values: Sequence[Any]) -> None:
        """Show histograms, images, texts or curves (`runner.log.summaries`) of step `step` in TensorBoard."""
        with self._writing(events=True):
            self._events.show(step, values)
        if self.trackers:
            send_pictures(self.trackers, step, values)

    def graph(self, definition: bytes) -> None:
        """Show a model's graph (a serialised GraphDef) in TensorBoard, unless it already has one."""
        with self._writing(events=True):
            self._events.graph(definition)

    def hparams(self, values: Mapping[str, Any], status: str) -> None:
        """Write the run's row of TensorBoard's hparams page: the hyperparameters and the final status."""
        with self._writing(events=True):
            self._events.hparams(values, status)

    def sync(self) -> None:
        """Flush all logged data to disk; a run does this before it commits a checkpoint."""
        with self._writing():
            self._lines.sync()
        with self._writing(events=True):
            self._events.sync()

    def end(self, status: str, *, complete: bool) -> None:
        """Note how the run has ended, and whether its last step has all of its values."""
        self._ending = status, complete

    def close(self) -> None:
        """End the trackers and the progress output and close the files; further calls do nothing.

        Raises:
            OSError: the disk refuses the last TensorBoard events.
        """
        trackers, self.trackers = self.trackers, ()
        if trackers:
            tell_end(trackers, self._ending[0], complete=self._ending[1])
            self.await_trackers(trackers)
        self._console.close()
        self._lines.close()
        if self._trace is not None:
            self._trace.close()
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
        if self.trackers:
            send_scalars(self.trackers, step, {"epoch": epoch, **values})

    @contextmanager
    def _writing(self, *, events: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._lines.path.parent)
            if events:  # readers stop at a torn event, so nothing can follow one
                self._events.drop()
                self._events = NoEventWriter()
            if not self._go_on:
                raise
            if not self._refused:
                self._refused = True
                why = error.strerror or error
                text = f"the log cannot be written ({why}). The run goes on (train.on_save_error=go_on)"
                self._console.say(text)
                event_stream.emit("warning", text=text)


class WatchedLogger(Logger):
    """Logger that also passes each written event to `watch`, through which a sweep stops a run."""

    def __init__(self, run_dir: Path, watch: Callable[[int, Mapping[str, Value]], None], **settings: Any) -> None:
        super().__init__(run_dir, **settings)
        self._watch = watch

    def _record(self, step: int, epoch: float, values: Mapping[str, Value]) -> None:
        super()._record(step, epoch, values)
        self._watch(step, values)


class NoLogger(Logger):
    """Null logger of a process that writes nothing: every method is a no-op."""

    def __init__(self) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, what: object) -> None: ...

    def alert(self, text: str) -> None: ...

    def scalars(self, *_: Any, **__: Any) -> None: ...

    def evaluated(self, *_: Any, **__: Any) -> None: ...

    def trace(self, facts: Mapping[str, Any]) -> None: ...

    def show(self, *_: Any, **__: Any) -> None: ...

    def hparams(self, *_: Any, **__: Any) -> None: ...

    def graph(self, *_: Any, **__: Any) -> None: ...

    def end(self, *_: Any, **__: Any) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


# ---- what was lost of `metrics.jsonl`


def mend(run_dir: Path, until: int, known: int, steps_per_epoch: int) -> list[str]:
    """Restore lost lines of `metrics.jsonl` from TensorBoard's events; return a report of the losses.

    Args:
        run_dir: the run directory.
        until: the step at which the run goes on; what was logged later is no loss.
        known: the last step that has a line, as the checkpoint says.
        steps_per_epoch: for the epoch of a line that is made again; 0 where that is not known.
    """
    path = run_dir / "metrics.jsonl"
    path.touch()
    places, damaged = find_whole_lines(path, until)
    content = safe_io.read_bytes(path, safe_io.MAX_LOG_BYTES)
    lines = {place.step: content[place.start : place.end] for place in places}
    events = {step: safe_io.parse_json(line) for step, line in lines.items()}
    found = _find_event_differences(events, run_dir / "tb", until)
    if found:  # what is to be written is looked at twice
        found = _find_event_differences(events, run_dir / "tb", until, verify=True)
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
            said.append(
                f"the lines of {_format_steps(new)} are made again from TensorBoard's events, in single precision"
            )
        if len(new) < len(found):
            changed = [step for step in found if step in events]
            said.append(
                f"numbers of {_format_steps(changed)} differ from TensorBoard's events, and are taken from there"
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
        write_gathered()  # the log goes on in it
    return [f"{path.name}: {line}" for line in said]


def _format_steps(steps: Sequence[int]) -> str:
    steps = sorted(steps)
    if len(steps) == 1:
        return f"step {steps[0]:,}"
    return f"{len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"


def _find_event_differences(
    lines: Mapping[int, Mapping[str, Any]], folder: Path, until: int, *, verify: bool = False
) -> dict[int, dict[str, float]]:
    """Return the events' values that differ from the lines or are missing there, by step."""
    known = {name for line in lines.values() for name in line}
    found: dict[int, dict[str, float]] = {}
    for step, values in _read_logged_numbers(folder, verify=verify).items():
        line = lines.get(step)
        if step > until:
            continue
        if line is None:
            found[step] = values
            continue
        other = {name: v for name, v in values.items() if name in known and not _is_same_number(line.get(name), v)}
        if other:
            found[step] = other
    return found


def _read_logged_numbers(folder: Path, *, verify: bool) -> dict[int, dict[str, float]]:
    """Read the numbers of event files: step → tag → value; a start drops values from its step on."""
    if not folder.is_dir():
        return {}
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    logged: dict[int, dict[str, float]] = {}
    for path in find_own_event_files(folder):
        for event in read_events(path, Event, verify=verify):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                logged = {step: values for step, values in logged.items() if step < event.step}
                continue
            numbers = {v.tag: v.simple_value for v in event.summary.value if v.WhichOneof("value") == "simple_value"}
            if numbers:
                logged[event.step] = logged.get(event.step, {}) | numbers
    return logged


def _is_same_number(logged: Any, single: float) -> bool:
    """Return whether a line's number equals an event's, which has single precision."""
    try:
        value = float(logged)
        rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    except (TypeError, ValueError):
        return False
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    return rounded == single or (math.isnan(rounded) and math.isnan(single))


# ---- the console


class _LastingStream:
    """Stream that discards all output after its reader has gone (`| head`, a closed terminal)."""

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
def suppress_console_errors() -> Iterator[None]:
    """Keep writes to standard output and error from failing after their reader has gone."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", stream and _LastingStream(stream)) for stream in before)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before
