"""Console output of a run in a Jupyter notebook: a progress bar and tables as HTML, without widgets."""

import sys
import time
from collections.abc import Mapping
from html import escape
from typing import Any, TextIO

from runner.core.escape import make_printable
from runner.log.console import REFRESH_SECONDS, QuietConsole, format_pace, format_values
from runner.log.jsonl import Value

_BAR = (
    '<div><progress value="{done}" max="{total}" style="width:16em"></progress> {done:,}/{total:,} '
    '<span style="font-family:monospace">{words}</span></div>'
)


def is_notebook() -> bool:
    """Return whether this is the kernel of a notebook, which shows HTML."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookConsole(QuietConsole):
    """Console output of a notebook without progress: lines, and tables as HTML."""

    def say(self, what: object) -> None:
        if hasattr(what, "__rich__"):
            _show_html(render_html(what))
        else:
            super().say(what)


class NotebookBar(NotebookConsole):
    """Progress bar of a notebook, redrawn in its place at most every REFRESH_SECONDS."""

    def __init__(self, stream: TextIO, start_step: int, total_steps: int) -> None:
        super().__init__(stream)
        self._total, self._step, self._where = total_steps, start_step, ""
        self._values: dict[str, Value] = {}
        self._due = 0.0
        self._handle = _show_html(self._render(), updates=True)

    def progress(self, step: int, epoch: float, values: Mapping[str, Value], rate: float | None) -> None:
        self._step = step
        self._where = f"epoch {epoch:.4g}  {format_pace(self._total - step, rate)}"
        self._values.update({name[6:]: value for name, value in values.items() if name.startswith("train/")})
        if time.monotonic() >= self._due:
            self._draw()
            self._due = time.monotonic() + REFRESH_SECONDS

    def evaluated(self, line: str, values: Mapping[str, float]) -> None:
        self._values.update(values)

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(self._render()))

    def _render(self) -> str:
        words = escape(make_printable(f"{self._where}  {format_values(self._values)}"))
        return _BAR.format(done=self._step, total=self._total, words=words)


def _show_html(html: str, *, updates: bool = False) -> Any:
    from IPython.display import HTML, display

    return display(HTML(html), display_id=True) if updates else display(HTML(html))


def render_html(what: object) -> str:
    """Render what rich can print as HTML with its colours, and without a style sheet."""
    import io

    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=120, force_jupyter=False)
    console.print(what)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.2">{code}</pre>')
