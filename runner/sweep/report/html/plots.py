"""Plots of the report as PNG and SVG files, drawn by vl-convert from the specifications of the page."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Mistake
from runner.core.files import write_atomic, write_text
from runner.sweep.report.html.columns import make_unique
from runner.sweep.report.html.landscape import name_level, order_level
from runner.sweep.report.html.specs import fill, release_axes_from_zero

WIDTH = 640  # pixels of a plot's width; a PNG has twice as many


MOST_CURVES = 50  # the best runs


MOST_FILES = 60


BLACK = {"currentColor": "#000"}


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder for the plots that cannot be one. Raises ConfigError."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError([Mistake("--plots", "must be a folder, but is a file", str(folder), kind="file")])
    if not folder.parent.is_dir():
        raise ConfigError([Mistake("--plots", "must lie in a folder that exists", str(folder), kind="file")])


def write_plots(content: Mapping[str, Any], folder: Path) -> tuple[list[Path], list[str]]:
    """Write each plot as PNG and SVG, as the page shows it first; return files and what was left out."""
    import vl_convert

    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    names: list[str] = []
    left_out = 0
    for name, spec in list_plots(content):
        if len(written) >= MOST_FILES:
            left_out += 1
            continue
        safe = re.sub(r"[^\w.=-]+", "_", name).strip("._")[:100]
        names = make_unique([*names, safe], "_{}")
        safe = names[-1]
        given = json.dumps(_replace_other_numbers(spec), allow_nan=False)
        svg, png = folder / f"{safe}.svg", folder / f"{safe}.png"
        write_text(svg, vl_convert.vegalite_to_svg(given))
        image = vl_convert.vegalite_to_png(given, scale=2)
        write_atomic(png, lambda file, image=image: file.write(image))  # type: ignore[misc]
        written += [svg, png]
    said = f"{left_out:,} plot{'s are' if left_out > 1 else ' is'} left out: at most {MOST_FILES // 2} are drawn"
    return written, [said] * (left_out > 0)


def list_plots(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and specification of each plot, with its data."""
    columns = {column["name"]: _decode(column) for column in content["columns"]}
    objective = content["objective"]
    for metric in content["curves"]["metrics"]:
        yield f"curves_{metric['name']}", _draw_curves(content, metric)
    if content["replicates"]["rows"]:
        rows = content["replicates"]["rows"][:40]
        yield "replicates", _finish(content, "intervals", {"rows": rows}, {"$x": objective})
    if content["axes"] and len(content["runs"]["label"]) > 1:
        yield "parallel_coordinates", _draw_parallel(content)
    if values := content["importances"].get("values"):
        rows = [{"y": name, "x": share} for name, share in values]
        yield "importances", _finish(content, "importances", {"rows": rows}, {"$x": f"importance for {objective}"})
    for axis in content["axes"][:-1]:
        if axis["name"] in columns and objective in columns:
            yield f"slice_{axis['name']}", _draw_slice(content, columns, axis)
    for surface in content["surfaces"]:
        yield f"contour_{surface['x']}_{surface['y']}", _draw_surface(content, columns, surface)


def _decode(column: Mapping[str, Any]) -> list[Any]:
    if "texts" in column:
        return [None if number < 0 else column["texts"][number] for number in column["values"]]
    return [float(value) if isinstance(value, str) else value for value in column["values"]]


def _finish(
    content: Mapping[str, Any], kind: str, data: Mapping[str, Sequence[Any]], places: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill a specification; on white, in black, of a width of its own."""
    spec = fill(content["specs"][kind], places)
    release_axes_from_zero(spec)
    spec["datasets"].update(data)
    spec["width"] = WIDTH
    for part in (spec, *spec.get("layer", ())):
        part.pop("params", None)
    finished: dict[str, Any] = _replace_ink(spec)
    finished["config"] = finished["config"] | {"background": "white"}
    return finished


def _replace_ink(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: inner if name == "datasets" else _replace_ink(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replace_ink(member) for member in value]
    return BLACK.get(value, value) if isinstance(value, str) else value


def _replace_other_numbers(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {name: _replace_other_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_other_numbers(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_final(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_curves(content: Mapping[str, Any], metric: Mapping[str, Any]) -> dict[str, Any]:
    labels, grids, objective = content["runs"]["label"], content["curves"]["grids"], content["objective"]
    column = next((_decode(one) for one in content["columns"] if one["name"] == objective), None)
    drawn = [number for number, grid in enumerate(metric["grid"]) if grid >= 0][:MOST_CURVES]
    is_named = len(drawn) <= 12 or column is None
    rows = [
        {
            "run": number,
            "label": labels[number],
            "x": x,
            "y": y,
            "raw": None,
            "c": labels[number] if is_named or column is None else column[number],
        }
        for number in drawn
        for x, y in zip(grids[metric["grid"][number]], metric["values"][number], strict=True)
        if y is not None
    ]
    kind, title = ("nominal", "run") if is_named else ("quantitative", objective)
    places = {"$x": "optimizer step", "$y": metric["name"], "$yscale": "linear", "$c": title, "$ctype": kind}
    legend: dict[str, Any] | None = None if len(drawn) == 1 else {}
    return _finish(content, "curves", {"rows": rows}, places | {"$points": False, "$legend": legend})


def _draw_parallel(content: Mapping[str, Any]) -> dict[str, Any]:
    axes = content["axes"]
    goal = axes[-1]["positions"]
    rows = [
        {"run": number, "label": label, "axis": axis["name"], "y": axis["positions"][number], "c": goal[number]}
        for number, label in enumerate(content["runs"]["label"])
        if goal[number] is not None
        for axis in axes
        if axis["positions"][number] is not None
    ]
    columns = {column["name"]: _decode(column) for column in content["columns"]}
    if content["objective"] in columns:
        rows = [row | {"c": columns[content["objective"]][row["run"]]} for row in rows]
    ticks = [{"axis": axis["name"], "y": y, "text": text} for axis in axes for y, text in axis["ticks"]]
    names = list(dict.fromkeys(axis["name"] for axis in axes))
    places = {"$axes": names, "$c": content["objective"], "$ctype": "quantitative"}
    return _finish(content, "parallel", {"rows": rows, "ticks": ticks}, places)


def _list_done(content: Mapping[str, Any]) -> list[int]:
    """List the completed runs: the objective has a position on its axis."""
    return [number for number, position in enumerate(content["axes"][-1]["positions"]) if position is not None]


def _draw_slice(content: Mapping[str, Any], columns: Mapping[str, Any], axis: Mapping[str, Any]) -> dict[str, Any]:
    x, y = columns[axis["name"]], columns[content["objective"]]
    done = [number for number in _list_done(content) if _is_final(y[number])]
    is_number = all(isinstance(x[number], int | float) for number in done)
    rows = [
        {
            "label": content["runs"]["label"][number],
            "x": x[number] if is_number else name_level(x[number]),
            "y": y[number],
        }
        for number in done
        if not is_number or _is_final(x[number])
    ]
    scale: dict[str, Any]
    if is_number:
        scale = {"type": "log" if axis["log"] else "linear", "nice": False, "padding": 8}
    else:
        scale = {"type": "point", "domain": sorted({row["x"] for row in rows}, key=order_level)}
    places = {"$x": axis["name"], "$y": content["objective"], "$xtype": "quantitative" if is_number else "nominal"}
    places_of_scales = {"$ytype": "quantitative", "$xscale": scale, "$yscale": {"type": "linear", "zero": False}}
    return _finish(content, "slice", {"rows": rows}, places | places_of_scales)


def _draw_surface(content: Mapping[str, Any], columns: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    places: dict[str, Any] = {"$x": given["x"], "$y": given["y"], "$c": content["objective"]}
    if given["kind"] == "means":
        xs, ys = given["levels"]
        rows = [{"x": xs[i], "y": ys[j], "c": value, "n": count} for i, j, value, count in given["cells"]]
        return _finish(content, "means", {"rows": rows}, places | {"$xlevels": xs, "$ylevels": ys[::-1]})
    xs, ys = given["edges"]
    side = len(ys) - 1
    rows = [
        {"x": xs[k // side], "x2": xs[k // side + 1], "y": ys[k % side], "y2": ys[k % side + 1], "c": value}
        for k, value in enumerate(given["cells"])
    ]
    trios = list(zip(columns[given["x"]], columns[given["y"]], columns.get(content["objective"], []), strict=False))
    points = [
        {"label": content["runs"]["label"][number], "x": x, "y": y, "c": c}
        for number in _list_done(content)
        for x, y, c in trios[number : number + 1]
        if all(map(_is_final, (x, y, c)))
    ]
    values = [*given["cells"], *(point["c"] for point in points)]
    scales = {"$xscale": "log" if given["log"][0] else "linear", "$yscale": "log" if given["log"][1] else "linear"}
    places |= scales | {"$domain": [min(values), max(values)]}
    return _finish(content, "surface", {"rows": rows, "points": points}, places)
