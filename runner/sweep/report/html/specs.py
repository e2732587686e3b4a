"""Plots of the report as Vega-Lite specifications, filled with data by the page or by `draw_plots`.

A text that begins with `$` is a place: the page and `fill` put a title, a type or a scale there. Fields have names of
ours, never of a run: a stranger's name is a value or a title, and neither is an expression.
"""

from collections.abc import Mapping
from typing import Any

# Colours that keep apart on white and on black, also for most who are colour-blind (after Okabe and Ito).
PALETTE = ["#3b8ed0", "#e07b1a", "#1f9e77", "#c95fa0", "#8c6bd1", "#b58900", "#d64550", "#2aa1b3", "#7a8b3a", "#9a6a4f"]


# From less to more, visible on white and on black at either end.
RAMP = ["#6f63d6", "#4a8fd0", "#35b0a2", "#8fbd45", "#e8b421"]


RAMP_BANDS = ["#6f63d6", "#5c79d3", "#4a8fd0", "#40a0b9", "#35b0a2", "#62b674", "#8fbd45", "#bcb833", "#e8b421"]


_LINES = dict.fromkeys(("domainColor", "tickColor", "gridColor", "labelColor", "titleColor"), "currentColor")


CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **_LINES,
        "gridOpacity": 0.14,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "titleFontWeight": 500,
        "labelLimit": 160,
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelLimit": 240, "titleFontWeight": 500},
    "title": {"color": "currentColor"},
    "text": {"color": "currentColor"},
    "rule": {"color": "currentColor"},
    "range": {"category": PALETTE, "ramp": RAMP, "heatmap": RAMP},
}


# Dragging with a mouse moves, the wheel with Ctrl or Shift zooms; a finger and the bare wheel scroll the page.
ZOOM: dict[str, Any] = {
    "name": "zoom",
    "select": {
        "type": "interval",
        "zoom": "wheel![event.ctrlKey || event.shiftKey]",
        "translate": "[mousedown, window:mouseup] > window:mousemove!",
        "clear": "dblclick",
    },
    "bind": "scales",
}


def _make_number(field: str, title: str, scale: str) -> dict[str, Any]:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": scale, "nice": False} | ({"zero": False} if scale == "linear" else {}),
        "axis": {"labelOverlap": True},
    }


_COLOUR = {"field": "c", "type": "$ctype", "title": "$c"}


_TIPS = [
    {"field": "label", "type": "nominal", "title": "run"},
    {"field": "x", "type": "$xtype", "title": "$x"},
    {"field": "y", "type": "$ytype", "title": "$y"},
    {"field": "c", "type": "$ctype", "title": "$c"},
]


def make_specs() -> dict[str, dict[str, Any]]:
    """Make the specification of each plot by its name."""
    return {name: _wrap(spec) for name, spec in _SPECS.items()}


def _wrap(spec: Mapping[str, Any]) -> dict[str, Any]:
    base = {"width": "container", "height": 320, "config": CONFIG, "datasets": {"rows": []}, "data": {"name": "rows"}}
    fit = "fit-x" if isinstance(spec.get("height"), dict) else "fit"
    return base | {"description": "$description", "autosize": {"type": fit, "contains": "padding"}} | dict(spec)


def _make_any(field: str, channel: str) -> dict[str, Any]:
    return {"field": field, "type": f"${channel}type", "title": f"${channel}", "scale": f"${channel}scale"}


_SPECS: dict[str, dict[str, Any]] = {
    "curves": {
        "encoding": {
            "x": _make_number("x", "$x", "linear"),
            "y": _make_number("y", "$y", "$yscale"),
            "color": {**_COLOUR, "legend": "$legend"},
            "detail": {"field": "run", "type": "nominal"},
        },
        "layer": [
            {
                "params": [ZOOM],
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.25, "clip": True, "aria": False},
                "encoding": {"y": _make_number("raw", "$y", "$yscale")},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.6, "clip": True, "aria": False, "point": "$points"},
                "encoding": {"tooltip": {"field": "label", "type": "nominal", "title": "run"}},
            },
        ],
    },
    "scatter": {
        "params": [ZOOM],
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75, "clip": True, "aria": False},
        "encoding": {"x": _make_any("x", "x"), "y": _make_any("y", "y"), "color": _COLOUR, "tooltip": _TIPS},
    },
    "slice": {
        "height": 220,
        "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.7, "clip": True, "aria": False},
        "encoding": {"x": _make_any("x", "x"), "y": _make_any("y", "y"), "tooltip": _TIPS[:3]},
    },
    "parallel": {
        "height": 340,
        "datasets": {"rows": [], "ticks": []},
        "encoding": {
            "x": {
                "field": "axis",
                "type": "nominal",
                "title": None,
                "sort": "$axes",
                "axis": {"labelAngle": 0, "grid": True, "labelLimit": 130, "labelOverlap": False},
            },
            "y": {"field": "y", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1]}},
        },
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.55, "aria": False},
                "encoding": {
                    "color": _COLOUR,
                    "detail": {"field": "run", "type": "nominal"},
                    "tooltip": {"field": "label", "type": "nominal", "title": "run"},
                },
            },
            {
                "data": {"name": "ticks"},
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10, "limit": 110, "aria": False},
                "encoding": {"text": {"field": "text", "type": "nominal"}},
            },
        ],
    },
    "importances": {
        "height": {"step": 26},
        "mark": {"type": "bar", "color": PALETTE[0], "aria": False},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": "$x", "scale": {"domainMin": 0}},
            "y": {"field": "y", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}},
            "tooltip": [
                {"field": "y", "type": "nominal", "title": "setting"},
                {"field": "x", "type": "quantitative", "title": "$x"},
            ],
        },
    },
    "means": {
        "height": {"step": 34},
        "encoding": {
            "x": {"field": "x", "type": "ordinal", "title": "$x", "sort": "$xlevels", "axis": {"labelAngle": 0}},
            "y": {"field": "y", "type": "ordinal", "title": "$y", "sort": "$ylevels"},
        },
        "layer": [
            {
                "mark": {"type": "rect", "aria": False},
                "encoding": {
                    "color": {"field": "c", "type": "quantitative", "title": "$c", "scale": {"range": RAMP}},
                    "tooltip": [
                        {"field": "x", "type": "ordinal", "title": "$x"},
                        {"field": "y", "type": "ordinal", "title": "$y"},
                        {"field": "c", "type": "quantitative", "title": "$c"},
                        {"field": "n", "type": "quantitative", "title": "runs"},
                    ],
                },
            },
        ],
    },
    "surface": {
        "datasets": {"rows": [], "points": []},
        "encoding": {
            "x": _make_number("x", "$x", "$xscale"),
            "y": _make_number("y", "$y", "$yscale"),
            "color": {
                "field": "c",
                "type": "quantitative",
                "title": "$c",
                "scale": {"type": "quantize", "range": RAMP_BANDS, "domain": "$domain"},
            },
        },
        "layer": [
            {
                "mark": {"type": "rect", "aria": False, "strokeWidth": 0.6, "stroke": None},
                "encoding": {"x2": {"field": "x2"}, "y2": {"field": "y2"}},
            },
            {
                "data": {"name": "points"},
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 30,
                    "stroke": "white",
                    "strokeWidth": 0.7,
                    "aria": False,
                },
                "encoding": {
                    "tooltip": [_TIPS[0], *({"field": f, "type": "quantitative", "title": f"${f}"} for f in "xyc")]
                },
            },
        ],
    },
    "intervals": {
        "height": {"step": 22},
        "encoding": {
            "y": {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
                "encoding": {
                    "x": {"field": "low", "type": "quantitative", "title": "$x", "scale": {"zero": False}},
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "color": PALETTE[1], "aria": False},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative", "title": "$x", "scale": {"zero": False}},
                    "tooltip": [
                        {"field": "label", "type": "nominal", "title": "point"},
                        {"field": "x", "type": "quantitative", "title": "mean"},
                        {"field": "low", "type": "quantitative", "title": "from"},
                        {"field": "high", "type": "quantitative", "title": "to"},
                        {"field": "n", "type": "quantitative", "title": "runs"},
                    ],
                },
            },
        ],
    },
    "differences": {
        "height": {"step": 20},
        "mark": {"type": "bar", "aria": False},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": "$x"},
            "y": {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}},
            "color": {
                "field": "better",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["better", "worse", "equal"], "range": [PALETTE[2], PALETTE[6], "#888888"]},
            },
            "tooltip": [
                {"field": "label", "type": "nominal", "title": "run"},
                {"field": "x", "type": "quantitative", "title": "$x"},
            ],
        },
    },
}


def fill(template: Any, places: Mapping[str, Any]) -> Any:
    """Return a copy of a specification with each place filled."""
    if isinstance(template, dict):
        return {name: fill(inner, places) for name, inner in template.items()}
    if isinstance(template, list):
        return [fill(member, places) for member in template]
    if isinstance(template, str) and template.startswith("$"):
        return places.get(template)
    return template


def release_axes_from_zero(spec: Mapping[str, Any]) -> None:
    """Let no linear axis be drawn down to zero; a logarithmic one has none, and must not be told."""
    for part in (spec, *spec.get("layer", ())):
        for channel in part.get("encoding", {}).values():
            scale = channel.get("scale") if isinstance(channel, dict) else None
            if isinstance(scale, dict) and scale.get("type") == "linear":
                scale["zero"] = False
