"""Console output of a run: a progress bar, plain lines, or nothing."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from runner.core.escape import escape_line, make_printable
from runner.log.jsonl import Value

PLAIN_SECONDS = 5.0  # between two progress lines where the console is a file


REFRESH_SECONDS = 0.5  # between two drawings of the progress bar, 5 to 10 ms each


def print_final_report(metrics: Mapping[str, Any], run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Print the final metrics, one per line, and the run directory."""
    shown = {escape_line(name): value for name, value in metrics.items()}
    width = max(map(len, shown), default=0)
    lines = [f"{name:<{width}}  {float(value):.6g}" for name, value in shown.items()]
    say("\n".join([*lines, make_printable(run_dir)]))


def format_values(values: Mapping[str, Value]) -> str:
    """Format logged values as one line, numbers with four digits."""
    return "  ".join(
        f"{escape_line(name)} {escape_line(value) if isinstance(value, str) else format(value, '.4g')}"
        for name, value in values.items()
    )


class ConsoleOutput(Protocol):
    def say(self, what: object) -> None: ...
    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None: ...
    def evaluated(self, line: str, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class QuietConsole:
    """Console output without progress: `progress` and `evaluated` are no-ops."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, what: object) -> None:
        if hasattr(what, "__rich__") and is_terminal(self._stream):
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


class PlainConsole(QuietConsole):
    """Console output in lines: progress at most every PLAIN_SECONDS, evaluations, and the last step."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        super().__init__(stream)
        self._total = total_steps
        self._due = time.monotonic() + PLAIN_SECONDS
        self._unsaid: tuple[int, float, Mapping[str, Value], float | None] | None = None

    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None:
        self._unsaid = step, epoch, values, rate
        if time.monotonic() >= self._due or step >= self._total:
            self._flush()

    def evaluated(self, line: str, values: Mapping[str, float]) -> None:
        self.say(line)

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._unsaid is not None:
            step, epoch, values, rate = self._unsaid
            line = f"step {step}/{self._total}  epoch {epoch:.4g}  {format_values(values)}"
            self.say(f"{line}  {format_pace(self._total - step, rate)}".rstrip())
            self._unsaid = None
            self._due = time.monotonic() + PLAIN_SECONDS


class ProgressBar:
    """Rich's progress bar without its thread, redrawn by `progress` at most every REFRESH_SECONDS."""

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
        self._where = f"epoch {epoch:.4g}  {format_pace(self._total - step, rate)}"
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
        words = f"{self._where}  {format_values(self._values)}"  # cut off where the terminal ends
        self._bar.update(self._task, completed=self._step, description=words)


def format_pace(steps: int, rate: float | None) -> str:
    """Format the speed and the time that is left; empty where the speed is not known."""
    if not rate:
        return ""
    minutes, seconds = divmod(round(steps / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{rate:.4g} steps/s  {hours}:{minutes:02d}:{seconds:02d} left"
