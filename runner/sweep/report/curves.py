"""Learning curves of a sweep in one figure."""

import contextlib
import functools
import importlib
import math
import textwrap
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.files import write_atomic
from runner.sweep.report.results import Curve, Report, ReportEntry
from runner.sweep.report.table import format_score, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURED = 8  # entries with a colour and a place in the legend; the others are grey


LABEL = 48  # characters of an entry's values in the legend: a longer one would leave no room for the curves


SIDE, GAP, TOP, BOTTOM = 0.65, 0.1, 0.65, 0.55  # inches: left of a panel, between two, above, below


MODULES = (
    "numpy",
    "PIL.PngImagePlugin",
    "matplotlib.font_manager",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)


MISSING = "curves.png needs matplotlib: pip install 'yaml-experiment-runner[report]'"


_ENDS = {"pruned": "x", "failed": "v", "interrupted": "|"}


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B")  # Okabe and Ito


_GREY = "#C8C8C8"


@functools.cache
def prepare() -> threading.Thread:
    """Import matplotlib in a thread, once, so that the end of a sweep need not wait for it.

    The end of the process waits for what is being imported: extension modules may not be cut short.
    """

    def load() -> None:
        with contextlib.suppress(Exception):  # `draw` imports it again, and says what is wrong
            for name in MODULES:
                if threading.main_thread().is_alive():  # else the process is about to end
                    importlib.import_module(name)

    thread = threading.Thread(target=load, name="matplotlib")
    thread.start()
    return thread


def draw(report: Report, file: Path) -> bool:
    """Plot `curves.png`; return False if no job has logged twice.

    Left is the objective, right the training loss, over optimizer steps; a line is a job, its colour its entry of the
    table. The best are drawn last and named. A job that was pruned ends in a cross.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    names = list(dict.fromkeys([*(report.objectives or [report.objective]), "train/loss"]))[:3]
    read = {row.number: report.curves(row, names) for entry in report.entries for row in entry.rows}
    logged = {name: {number: lines[name] for number, lines in read.items()} for name in names}
    names = [name for name in names if any(len(line) > 1 for line in logged[name].values())]
    if not names:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(names) + 2.5, 4.5), dpi=120)
    canvas = FigureCanvasAgg(figure)
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        _draw_panel(axes, report, name, logged[name])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    sizes: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8}
    corner = (1, 1 - TOP / figure.get_figheight())
    legend = figure.legend(
        handles[::-1], labels[::-1], loc="upper right", bbox_to_anchor=corner, frameon=False, **sizes
    )
    legend.set_title(_format_title(report))
    for text in [legend.get_title(), *legend.get_texts()]:
        text.set_parse_math(False)  # `${a}_${b}` is no formula
    figure.suptitle(f"{report.settings.get('name') or report.folder.parent.name}: {report.folder.name}", fontsize=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box in the place of a letter says enough
        drawn = legend.get_window_extent(canvas.get_renderer())  # type: ignore[no-untyped-call]
        _place_panels(figure, len(names), min(drawn.width / figure.dpi, figure.get_figwidth() / 2))
        write_atomic(file, lambda opened: figure.savefig(opened, format="png"))
    return True


def _place_panels(figure: "Figure", panels: int, legend: float) -> None:
    """Place the panels beside a legend of so many inches: matplotlib's layout takes 0.15 s more."""
    width, height = figure.get_size_inches()
    room = width - SIDE - legend - GAP / 2
    each = (room - (panels - 1) * (SIDE + GAP)) / panels
    figure.subplots_adjust(
        left=SIDE / width,
        right=(SIDE + room) / width,
        bottom=BOTTOM / height,
        top=1 - TOP / height,
        wspace=(SIDE + GAP) / each,
    )


def _format_title(report: Report) -> str:
    """Format the legend's title: the varied keys, the objective and the number of grey entries."""
    names = textwrap.fill(f"{', '.join(report.keys)}  {report.objective}".strip(), LABEL)
    more = len(report.entries) - COLOURED
    return f"{names}\n(grey: {more:,} more)" if more > 0 else names


def _draw_panel(axes: "Axes", report: Report, name: str, logged: Mapping[int, Curve]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import NullFormatter

    rest = [
        logged[row.number] for entry in report.entries[COLOURED:] for row in entry.rows if len(logged[row.number]) > 1
    ]
    if rest:  # one collection: a thousand lines are drawn at once
        axes.add_collection(LineCollection(rest, colors=_GREY, linewidths=0.6, zorder=1))
        axes.autoscale_view()
    for place, entry in reversed(list(enumerate(report.entries[:COLOURED]))):
        _draw_entry(axes, entry, report, _COLOURS[place], logged)
    values = [value for line in logged.values() for _, value in line]
    less_is_better = name.endswith("loss") or (name == report.objective and report.sign < 0)
    if less_is_better and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # formulas (10⁻³) take a parser's time
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimizer step")
    axes.set_title(name, fontsize=10, y=1)  # a place of its own: else all labels are measured to find one
    axes.grid(visible=True, color="#EEEEEE")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_entry(axes: "Axes", entry: ReportEntry, report: Report, colour: str, logged: Mapping[int, Curve]) -> None:
    """Draw the jobs of an entry; of replicates also the mean of the completed ones, or else of all."""
    lines = [(row, logged[row.number]) for row in entry.rows if logged[row.number]]
    label = _format_label(entry, report)
    several = len(lines) > 1
    for row, line in lines:
        style: dict[str, Any] = {"color": colour, "zorder": 2 if several else 3}
        style |= {"linewidth": 0.7, "alpha": 0.45} if several else {"linewidth": 1.6, "label": label}
        style |= {"linestyle": "--"} if row.status in _ENDS else {}
        style |= {"marker": "."} if len(line) == 1 else {}
        axes.plot([step for step, _ in line], [value for _, value in line], **style)
        if row.status in _ENDS:
            axes.plot(*line[-1], marker=_ENDS[row.status], color=colour, markersize=7, markeredgewidth=2, zorder=4)
    if several:
        whole = [dict(line) for row, line in lines if row.status == "completed"] or [dict(line) for _, line in lines]
        steps = sorted(set.intersection(*map(set, whole)))
        means = [math.fsum(values[step] for values in whole) / len(whole) for step in steps]
        axes.plot(steps, means, color=colour, linewidth=2, label=label, zorder=3)
    elif not lines:
        axes.plot([], [], color=colour, label=label)


def _format_label(entry: ReportEntry, report: Report) -> str:
    values = ", ".join(format_value(entry.values[key]) for key in report.keys) or f"job {entry.rows[0].number}"
    several = len(entry.rows) > 1
    ends = [f"{n} {status}" if several else status for status, n in entry.statuses.items() if status != "completed"]
    values = values if len(values) <= LABEL else values[: LABEL - 1] + "…"
    rank = f"{entry.rank}." if entry.rank else "-"  # a label that begins with `_` would be left out of the legend
    return "  ".join(filter(None, [f"{rank} {values}", format_score(entry), ", ".join(ends)]))
