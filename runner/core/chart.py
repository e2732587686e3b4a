"""Line charts as SVG: panels below each other, on linear or logarithmic axes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


WIDTH, HEIGHT, LEFT, TOP, RIGHT = 760, 300, 70, 40, 20  # pixels: of a panel, and of its margins


@dataclass(frozen=True)
class Line:
    """One line; non-finite points, and those at or below 0 on a logarithmic axis, are left out."""

    label: str  # in the legend; empty: not there
    points: Sequence[tuple[float, float]]
    faint: bool = False  # behind the next line, in its colour


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    lines: Sequence[Line]
    x_label: str = ""  # empty: the horizontal axis has no numbers
    log_x: bool = False
    log_y: bool = False
    mark: tuple[float, str] | None = None  # a vertical line at this x, and what it says


class _Axis:
    """Axis that maps values to shares from 0 to 1 and places ticks; `rounded` ends it at ticks."""

    def __init__(self, values: Iterable[float], *, log: bool, rounded: bool = False) -> None:
        self.log = log
        known = sorted({math.log10(value) if log else value for value in values}) or [0.0]
        self.low, self.high = known[0], known[-1]
        if log and rounded:  # whole powers of ten
            self.low, self.high = math.floor(self.low), math.ceil(self.high)
        elif rounded and (self.low == self.high or self.low < self.high / 2):
            self.low = min(0.0, self.low)
        if self.high <= self.low:
            self.high = self.low + (1 if log else abs(self.low) or 1)
        self.step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        self.step *= next(round_ for round_ in (1, 2, 5, 10) if (self.high - self.low) / (self.step * round_) <= 6)
        if rounded and not log:
            self.low = self.step * math.floor(self.low / self.step + 1e-9)
            self.high = self.step * math.ceil(self.high / self.step - 1e-9)

    def share(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the shares and labels of the ticks: powers of ten, or about five round numbers."""
        span = self.high - self.low
        if self.log:
            every = max(1, math.ceil(span / 10))
            powers = range(math.ceil(self.low), math.floor(self.high) + 1, every)
            return [((power - self.low) / span, f"1e{power}") for power in powers]
        first = math.ceil(self.low / self.step - 1e-9)
        numbers = [self.step * (first + i) for i in range(8)]
        numbers = [number for number in numbers if number <= self.high + span * 1e-9]
        return [((number - self.low) / span, f"{number:.10g}") for number in numbers]


def render_svg(panels: Sequence[Panel]) -> str:
    """Render the panels as one SVG image, 760 pixels wide."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{len(panels) * HEIGHT}"'
            ' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        )
    ]
    for place, panel in enumerate(panels):
        parts += _render_panel(panel, place * HEIGHT + TOP)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _render_panel(panel: Panel, base: float) -> list[str]:
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - 2 * TOP
    lines = [[point for point in line.points if _is_visible(panel, *point)] for line in panel.lines]
    points = [point for line in lines for point in line]
    across = _Axis((x for x, _ in points), log=panel.log_x)
    up = _Axis((y for _, y in points), log=panel.log_y, rounded=True)
    parts = [f'<text x="{LEFT}" y="{base - 12}">{escape(panel.title)}</text>']
    for share, text in up.ticks():
        y = base + tall * (1 - share)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#ddd"/><text x="8" y="{y + 4:.1f}">{text}</text>')
    for share, text in across.ticks() if panel.x_label else []:
        x = LEFT + wide * share
        parts.append(f'<path d="M{x:.1f} {base + tall}v4" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + tall + 16}" text-anchor="middle">{text}</text>')
    if panel.x_label:
        y = base + tall + 32
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{escape(panel.x_label)}</text>')
    if panel.mark is not None and points:
        x = LEFT + wide * across.share(panel.mark[0])
        anchor, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        text = f'<text x="{x + shift:.1f}" y="{base + 12}" text-anchor="{anchor}">{escape(panel.mark[1])}</text>'
        parts.append(f'<path d="M{x:.1f} {base}v{tall}" stroke="#888" stroke-dasharray="4 3"/>{text}')
    return parts + _render_lines(panel, lines, (across, up), base)


def _is_visible(panel: Panel, x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not panel.log_x) and (y > 0 or not panel.log_y)


def _render_lines(
    panel: Panel, lines: Sequence[Sequence[tuple[float, float]]], axes: tuple[_Axis, _Axis], base: float
) -> list[str]:
    """Render the lines and the legend below them."""
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - 2 * TOP
    parts, number, place = [], 0, float(LEFT)
    for line, points in zip(panel.lines, lines, strict=True):
        colour = COLOURS[number % len(COLOURS)]
        number += not line.faint
        where = " ".join(
            f"{LEFT + wide * axes[0].share(x):.1f},{base + tall * (1 - axes[1].share(y)):.1f}" for x, y in points
        )
        style = 'stroke-width="1" stroke-opacity="0.35"' if line.faint else 'stroke-width="2"'
        parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" {style}/>')
        if line.label:
            parts.append(f'<text x="{place:.0f}" y="{base + tall + 32}" fill="{colour}">{escape(line.label)}</text>')
            place += max(60, 7 * len(line.label) + 16)
    return parts
