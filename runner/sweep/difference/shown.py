"""Difference of two sides, shown: as text, curves over each other, the code's difference as a file."""

import re
from pathlib import Path
from typing import Any

from runner.core.chart import Line, Panel, render_svg
from runner.core.escape import escape_line, make_printable
from runner.core.files import write_text
from runner.experiment.record.state_differences import StateDifference
from runner.sweep.difference.diff import SideDifference, write_value
from runner.sweep.runs.formats import align_columns, format_value

MOST_LINES = 120  # of the difference of code on the console; all of it is in a file


MOST_PANELS = 4


MOST_POINTS = 1_000  # of a line of losses


WIDEST = 100  # characters of a value


def write_files(found: SideDifference, root: Path) -> None:
    """Write curves (`curves.svg`) and the difference of code (`code.diff`) below `root`, if there are any.

    Raises:
        OSError: they cannot be written.
    """
    panels = _draw_panels(found)
    texts = {"curves.svg": render_svg(panels) if panels else "", "code.diff": found.code.text}
    folder = root / f"{_make_name(found.a.word)}--{_make_name(found.b.word)}"
    for name, text in texts.items():
        if text:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)
            found.files.append(folder / name)


def _make_name(word: str) -> str:
    """Make a part of a folder's name of a word: its last two parts."""
    parts = [part for part in re.split(r"[/\s]+", word) if part not in ("", ".", "..", "outputs")]
    return re.sub(r"[^\w.=-]+", "_", "_".join(parts[-2:]))[:100].strip(".") or "it"


def _draw_losses(found: SideDifference) -> list[Panel]:
    """Draw the loss of each step that the traces have, of many steps every so many."""
    lines = []
    for side in (found.a, found.b):
        steps = sorted(side.losses)
        every = max(1, len(steps) // MOST_POINTS)
        points = [(step, side.losses[step]) for step in steps[::every]]
        lines += [Line(f"{side.name} {escape_line(side.word)[-28:]}", points)] if points else []
    return [Panel("loss of each step", lines, x_label="optimizer step")] if lines else []


def _draw_panels(found: SideDifference) -> list[Panel]:
    """Draw a panel for the objective, the training loss and what else both have logged."""
    sides = (found.a, found.b)
    objectives = [str(side.config.get("train", {}).get("objective")) for side in sides if side.config]
    both = [name for name in found.a.curves if name in found.b.curves]
    either = [*found.a.curves, *found.b.curves]
    known = [name for name in [*objectives, "train/loss", "val/loss", *both, *either] if name in either]
    panels = []
    for name in list(dict.fromkeys(known))[:MOST_PANELS]:
        lines = [Line(f"{side.name} {escape_line(side.word)[-28:]}", side.curves.get(name, [])) for side in sides]
        values = [value for line in lines for _, value in line.points]
        spreads = name.endswith("loss") and min(values) > 0 and max(values) > 30 * min(values)
        shown = [line for line in lines if line.points]
        panels.append(Panel(escape_line(name), shown, x_label="optimizer step", log_y=spreads))
    return [*panels, *_draw_losses(found)]


def format_difference(found: SideDifference) -> str:
    """Format a difference for people: what is compared, then each part, then what is not known."""
    lines = [f"A: {found.a.said}", f"B: {found.b.said}", ""]
    lines += _format_settings(found)
    lines += _format_code(found)
    for title, kinds in (("packages", ("package",)), ("hardware", ("hardware", "threads")), ("data", ("data", "plan"))):
        lines += _format_state(title, found.list_state(*kinds), _find_gap(title, found))
    lines += [*_format_results(found), *_format_losses(found)]
    for side in (found.a, found.b):
        lines += [f"of {side.name}: {text}" for text in side.missing]
    return "\n".join([*map(_cut_line, lines), *map(str, found.files)])


def _cut_line(line: str) -> str:
    return make_printable(line).replace("\t", "    ")


def _format_settings(found: SideDifference) -> list[str]:
    if not found.a.config or not found.b.config:
        return ["config: not known of both"]
    if not found.settings:
        return ["config: the same"]
    count = len(found.settings)
    rows = []
    for one in found.settings:
        note = "" if one.has_effect else "changes no result"
        rows.append([one.key, "A", _cut_value(write_value(one.a)), one.place_a])
        rows.append(
            ["", "B", _cut_value(write_value(one.b)), " ".join(filter(None, [one.place_b, f"({note})" * bool(note)]))]
        )
    return [f"config: {count} key{'s' * (count != 1)}", *_put_indented(align_columns(rows))]


def _cut_value(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _put_indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _format_code(found: SideDifference) -> list[str]:
    code, modules = found.code, [one for one in found.list_state("code") if one.name != "git commit"]
    commits = [commit[:12] if commit else "no commit" for commit in code.commits]
    if code.is_same:
        lines = [f"code: the same, commit {commits[0]} with the same changes"]
    elif code.text:
        lines = [f"code: A at {commits[0]}, B at {commits[1]}", *_put_indented(code.stat.rstrip("\n"))]
        whole = code.text.splitlines()
        lines += _put_indented("\n".join(whole[:MOST_LINES]))
        if len(whole) > MOST_LINES:
            lines.append(f"  … {len(whole) - MOST_LINES:,} more lines, all in code.diff")
    elif modules or not _has_modules(found):
        lines = [f"code: {'' if modules else 'not known of both'}".rstrip()]
    else:
        lines = ["code: the same modules"]
    changed = [one.name for one in modules if one.was and one.now]
    alone = {"A": [one.name for one in modules if not one.now], "B": [one.name for one in modules if not one.was]}
    lines += [f"  modules with another source: {', '.join(changed)}"] if changed else []
    lines += [f"  modules of {name} alone: {', '.join(names)}" for name, names in alone.items() if names]
    return [*lines, *(f"  {note}" for note in code.notes)]


def _has_modules(found: SideDifference) -> bool:
    return all("code" not in parts for parts in found.unknown.values())


def _find_gap(title: str, found: SideDifference) -> str:
    names = [name.upper() for name, parts in found.unknown.items() if title in parts]
    return f"not known of {' and '.join(names)}" if names else ""


def _format_state(title: str, differences: list[StateDifference], gap: str) -> list[str]:
    if not differences:
        return [f"{title}: {gap or 'the same'}"]
    rows = [[one.name, _write_fact(one.was), "->", _write_fact(one.now)] for one in differences]
    return [f"{title}:", *_put_indented(align_columns(rows))]


def _write_fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_write_fact(inner)}" for name, inner in value.items())
    text = write_value(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", text) else _cut_value(text)


def _format_losses(found: SideDifference) -> list[str]:
    if found.losses is None:
        return []
    if found.losses.first is None:
        return [f"losses: bitwise the same in all {found.losses.steps:,} steps that both traces have"]
    size = f", by {found.losses.largest:.2g} of their size at most (step {found.losses.largest_at:,})"
    return [f"losses: they differ from step {found.losses.first:,} on{size if found.losses.largest_at else ''}"]


def _format_results(found: SideDifference) -> list[str]:
    if not found.results:
        return ["results: not known of both"]
    rows = [["", "A", "B", "B - A"]]
    for one in found.results:
        change = "" if one.change is None else f"{one.change:+.6g}"
        rows.append([one.name, format_value(one.a), format_value(one.b), change])
    same = {True: ", bitwise the same weights", False: ", other weights", None: ""}[found.same_weights]
    return [f"results{same}:", *_put_indented(align_columns(rows))]
