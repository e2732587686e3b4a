"""Charts are well-formed SVG, with every point where its axes say."""

import math
import xml.etree.ElementTree as ET

import pytest

from runner.core.chart import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, Panel, render_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel) -> tuple[list[list[list[float]]], list[str]]:
    """The points of each line in pixels, and all texts."""
    root = ET.fromstring(render_svg(panels))
    places = [line.get("points", "").split() for line in root.iter(f"{SVG}polyline")]
    lines = [[[float(number) for number in pair.split(",")] for pair in line] for line in places]
    return lines, [text.text or "" for text in root.iter(f"{SVG}text")]


def test_a_line_goes_from_corner_to_corner() -> None:
    """An axis of y that comes near to 0 begins there, and ends at a round number; ticks are round."""
    lines, texts = drawn(Panel("rate", [Line("a", [(0, 0), (1, 0.1), (2, 0.2)])], "epoch"))
    base = HEIGHT - TOP

    assert [[LEFT, base], [(LEFT + WIDTH - RIGHT) / 2, (TOP + base) / 2], [WIDTH - RIGHT, TOP]] == lines[0]
    assert {"rate", "a", "epoch", "0", "0.05", "0.1", "0.15", "0.2", "0.5", "1", "1.5", "2"} == set(texts)


def test_logarithmic_axes_leave_out_what_they_cannot_show() -> None:
    """Zero, NaN and infinity have no place; powers of ten are equally far apart."""
    points = [(1e-3, 1e-3), (1e-2, 0.0), (1e-2, math.nan), (1e-2, 1e-2), (1e-1, math.inf), (1e-1, 1e-1)]
    lines, texts = drawn(Panel("", [Line("", points)], "lr", log_x=True, log_y=True))
    xs = [x for x, _ in lines[0]]

    assert 3 == len(lines[0])
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.1)
    assert {"1e-3", "1e-2", "1e-1"} <= set(texts)


def test_panels_lie_below_each_other_and_names_are_escaped() -> None:
    """A faint line has the colour of the next one; a mark has its text."""
    lines = [Line("", [(0, 1), (1, 2)], faint=True), Line("x&y", [(0, 1), (1, 2)])]
    panel = Panel("a < b", lines, "x", mark=(0.5, "here"))
    root = ET.fromstring(render_svg([panel, panel]))

    assert str(2 * HEIGHT) == root.get("height")
    assert 1 == len({line.get("stroke") for line in root.iter(f"{SVG}polyline")})
    assert {"a < b", "x&y", "here"} <= {text.text for text in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(1.0, 5.0), (1.0, 5.0)], [(0.0, -1.0), (1.0, -2.0)]])
def test_whatever_there_is_to_draw(points: list[tuple[float, float]]) -> None:
    """No point, one point, a constant, negative numbers: an image all the same, every point inside."""
    lines, _ = drawn(Panel("", [Line("", points)], "x"))

    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - TOP for x, y in lines[0])
