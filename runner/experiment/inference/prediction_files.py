"""Files of predictions: CSV, JSON lines and NPZ; rows for programs."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import cut_name, escape_csv_cell
from runner.core.files import to_json, write_atomic
from runner.core.trees import SampleList
from runner.experiment.inference.predict import PredictedBatch, Predictions

MOST_COLUMNS = 4096  # of one output in a CSV


def check_out(path: Path) -> list[Mistake]:
    """Find what is wrong with the file that predictions are to be written to."""
    where = f"argument `--out {path}`"
    if path.suffix.lower() not in WRITERS:
        return [Mistake("--out", f"must end with {', '.join(WRITERS)}", str(path), where, kind="file")]
    if path.is_dir():
        return [Mistake("--out", "must be a file, and is a folder", str(path), where, kind="file")]
    if not path.parent.is_dir():
        return [
            Mistake(
                "--out", f"must be in a folder that exists, and {path.parent} does not", str(path), where, kind="file"
            )
        ]
    return []


def write_predictions(predictions: Predictions, path: Path) -> int:
    """Write all predictions to a file, whole or not at all; return how many samples there are.

    Raises:
        ConfigError: they make no table.
        RunError: there is none.
    """
    counted = [0]

    def count(batches: Iterator[PredictedBatch]) -> Iterator[PredictedBatch]:
        for batch in batches:
            counted[0] += len(batch.names)
            yield batch

    def write(file: BinaryIO) -> None:
        WRITERS[path.suffix.lower()](predictions, file)
        if not counted[0]:
            raise RunError(f"there is nothing to write: {'; '.join(predictions.refused[:3]) or 'no sample'}")

    predictions.batches = count(predictions.batches)
    write_atomic(path, write)
    return counted[0]


def make_rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Make one JSON object a sample: input, target, class, label, probability, output."""
    for batch in predictions.batches:
        for at, name in enumerate(batch.names):
            row: dict[str, Any] = {"input": name}
            if batch.target is not None:
                row["target"] = _take(batch.target, at, len(batch.names))
            row |= _explain_row(predictions, batch.explained, at)
            yield {**row, "output": _take(batch.output, at, len(batch.names))}


def _explain_row(predictions: Predictions, explained: Mapping[str, Tensor], at: int) -> dict[str, Any]:
    """Return class, label and probabilities of a sample."""
    if "class" not in explained:
        return {}
    chosen = explained["class"][at]
    row: dict[str, Any] = {}
    if predictions.interpretation.kind == "classes":
        row["class"] = chosen.tolist()
        if predictions.classes and chosen.dim() == 0:
            row["label"] = predictions.get_label(int(chosen))
    elif chosen.numel() == 1:
        row["class"] = int(chosen)
        if len(predictions.classes) == 2:
            row["label"] = predictions.get_label(int(chosen))
    else:
        row["classes"] = [place for place, is_set in enumerate(chosen.flatten().tolist()) if is_set]
        if predictions.classes:
            row["labels"] = [predictions.get_label(place) for place in row["classes"]]
    if "probability" in explained:
        row["probability"] = explained["probability"][at].tolist()
    return row


def _take(tree: Any, at: int, count: int) -> Any:
    """Return the row of a sample in plain data; numbers have the digits of their dtype."""
    if isinstance(tree, Tensor):
        return tree[at].tolist() if tree.dim() and tree.size(0) == count else tree.tolist()
    if isinstance(tree, SampleList):
        return _take(tree[at], at, -1)
    if isinstance(tree, Mapping):
        return {str(name): _take(member, at, count) for name, member in tree.items()}
    if isinstance(tree, list | tuple):
        flat = not any(isinstance(member, Tensor | Mapping | list | tuple) for member in tree)
        return tree[at] if flat and len(tree) == count else [_take(member, at, count) for member in tree]
    return tree


def _write_json_lines(predictions: Predictions, file: BinaryIO) -> None:
    file.writelines(f"{to_json(row)}\n".encode() for row in make_rows(predictions))


def _write_csv(predictions: Predictions, file: BinaryIO) -> None:
    header: list[str] | None = None
    for row in make_rows(predictions):
        cells = _flatten_row(row)
        if header is None:
            header = list(cells)
            file.write(_format_line(header))
        if list(cells) != header:
            raise ConfigError([_refuse_table("samples have outputs of different shapes", "`--out FILE.jsonl`")])
        file.write(_format_line([_format_cell(cell) for cell in cells.values()]))


def _flatten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a row into named cells: `output_0`, `probability_3`, `target`.

    Raises:
        ConfigError: it has too many.
    """
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("classes", "labels"):
            cells[name] = " ".join(map(str, value))
            continue
        cells |= dict(_flatten_cells(name, value))
        if len(cells) > MOST_COLUMNS:
            raise ConfigError([_refuse_table(f"one sample has over {MOST_COLUMNS:,} numbers")])
    if isinstance(row.get("probability"), list) and isinstance(row.get("class"), int):
        chosen = row["probability"][row["class"]] if row["class"] < len(row["probability"]) else None
        if not isinstance(chosen, list | None):
            at = list(cells).index("probability_0")
            items = list(cells.items())
            cells = dict([*items[:at], ("probability", chosen), *items[at:]])
    return cells


def _flatten_cells(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for member, part in value.items():
            yield from _flatten_cells(f"{name}.{cut_name(member)}", part)
    elif isinstance(value, list):
        for at, part in enumerate(value):
            yield from _flatten_cells(f"{name}_{at}", part)
    else:
        yield name, value


ANY_SHAPE = "`--out FILE.npz` keeps arrays of any shape, `--out FILE.jsonl` nested lists"


def _refuse_table(why: str, remedy: str = ANY_SHAPE) -> Mistake:
    return Mistake("--out", f"cannot be a CSV: {why}", remedy=remedy, kind="conflict")


def _format_cell(value: Any) -> str:
    return escape_csv_cell(value) if isinstance(value, str) else "" if value is None else repr(value)


def _format_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _write_arrays(predictions: Predictions, file: BinaryIO) -> None:
    """Write an NPZ of the columns, with `classes`, the names by index."""
    parts: dict[str, list[Any]] = {}
    for batch in predictions.batches:
        parts.setdefault("input", []).append(np.array(list(batch.names), dtype=str))
        trees = {"target": batch.target, "output": batch.output, **batch.explained}
        for name, tree in trees.items():
            for path, tensor in _list_tensors(name, tree):
                parts.setdefault(path, []).append(tensor.numpy())
    arrays: dict[str, Any] = {}
    for name, members in parts.items():
        if len({member.shape[1:] for member in members}) > 1:
            rule = f"cannot be an NPZ: {name} has different shapes from sample to sample"
            raise ConfigError([Mistake("--out", rule, remedy="`--out FILE.jsonl`", kind="conflict")])
        arrays[name] = np.concatenate(members)
    if predictions.classes:
        arrays["classes"] = np.array(predictions.classes, dtype=str)
    content = io.BytesIO()
    np.savez(content, **arrays)
    file.write(content.getbuffer())


def _list_leaves(name: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one sample, as they are."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        for member, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _list_leaves(f"{name}.{member}", part)


def _list_tensors(name: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree if tree.dim() else tree[None]
    elif isinstance(tree, SampleList):
        for member in tree:
            for path, leaf in _list_leaves(name, member):
                yield path, leaf[None]
    elif isinstance(tree, Mapping | list | tuple):
        for member, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _list_tensors(f"{name}.{member}", part)


WRITERS: dict[str, Callable[[Predictions, BinaryIO], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".npz": _write_arrays,
}


def format_rows(predictions: Predictions) -> Iterator[str]:
    """Format one line a sample for people: the input, its class with the probability, or its values."""
    for row in make_rows(predictions):
        name, output = row["input"], row["output"]
        if "classes" in row:
            yield f"{name}  {', '.join(row.get('labels', map(str, row['classes']))) or 'no label'}"
        elif isinstance(row.get("class"), int):
            label = row.get("label", row["class"])
            shares = row.get("probability")
            share = shares[row["class"]] if isinstance(shares, list) and row["class"] < len(shares) else shares
            while isinstance(share, list) and len(share) == 1:
                share = share[0]
            yield f"{name}  {label}" + (f"  {share:.4f}" if isinstance(share, float) else "")
        else:
            yield f"{name}  {_cut_numbers(output)}"


def _cut_numbers(output: Any) -> str:
    numbers = list(_flatten_cells("", output))
    shown = [f"{number:.6g}" if isinstance(number, float) else str(number) for _, number in numbers[:8]]
    return " ".join(shown) + f" … ({len(numbers):,} numbers)" * (len(numbers) > 8)
