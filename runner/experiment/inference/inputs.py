"""Inputs of a prediction: paths become raw samples, in the form that the run's dataset states."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.check.imports import TargetError, import_object
from runner.config.schema import Config
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake, RunError
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Place
from runner.data.raw_inputs import ARRAYS, IMAGES, RawInputs, as_rows, count_rows, find_files, read_arrays, read_image
from runner.experiment.builders.instantiate import Trust, build_argument
from runner.experiment.inference.trained_model import StepInputs, find_raw_form

TABLES = frozenset({".csv", ".tsv", ".tab", ".txt", ".parquet"})
PLAIN_TABLE = {"_target_": "datasets.table.Table"}  # reads a table for a run whose own dataset reads none


def check_paths(paths: Sequence[str]) -> list[Mistake]:
    """Find inputs that are not there, or whose kind of file no one reads."""
    found = []
    for text in paths:
        path, where = Path(text), f"argument `{text}`"
        if not path.exists():
            near = find_nearest(path.name, [other.name for other in path.absolute().parent.glob("*")])
            remedy = format_suggestion(str(path.parent / near)) if near else ""
            found.append(Mistake("INPUT", "must be a file or a folder", text, where, remedy, near, "file"))
        elif path.is_dir() and not any(True for _ in find_files(path)):
            rule = f"must hold images ({', '.join(sorted(IMAGES))}), and this folder has none"
            found.append(Mistake("INPUT", rule, text, where, kind="file"))
    return found


def open_inputs(
    paths: Sequence[str], config: Config, inputs: StepInputs, trust: Trust, columns: Sequence[str] = ()
) -> tuple[RawInputs, list[str]]:
    """Open the inputs as raw samples; return them and what was refused, each with its file.

    Args:
        paths: files and folders.
        config: of the run.
        inputs: the members of a sample that the model gets.
        trust: patterns of trusted names.
        columns: of the table that the run was trained on, where they are recorded.

    Raises:
        ConfigError: a file cannot be an input of this model.
        RunError: a table or an array cannot be read.
    """
    samples, refused = RawInputs(inputs.places), list[str]()
    for text in paths:
        path = Path(text)
        if path.is_dir():
            for file, wrong in find_files(path):
                if wrong:
                    refused.append(f"{file} {wrong}")
                else:
                    _add_image(samples, file, config, inputs)
            continue
        ending = path.suffix.lower()
        reader = _find_reader(config, trust)
        try:
            with watch_reading():
                if ending in IMAGES:
                    _add_image(samples, path, config, inputs)
                elif ending in ARRAYS:
                    _add_arrays(samples, path, config, inputs)
                elif ending in TABLES or reader is not None:
                    _add_table(samples, path, config, inputs, trust, columns)
                else:
                    raise ConfigError([_refuse_ending(text, ending)])
        except (ValueError, OSError) as error:
            if isinstance(error, ConfigError):
                raise
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise RunError(said if text in said else f"{path} {said}") from error
    return samples, refused


def _refuse_ending(text: str, ending: str) -> Mistake:
    kinds = ", ".join(sorted({*IMAGES, *ARRAYS, *TABLES}))
    rule = f"must be a folder of images or end with one of {kinds}, and ends with {ending or 'nothing'}"
    remedy = "save it as NPY, or give the run's dataset a static method `read_inputs(path)`: tensors and a name of each"
    return Mistake("INPUT", rule, text, f"argument `{text}`", remedy, kind="unavailable")


def _require_one_member(inputs: StepInputs, text: str) -> Place:
    if len(inputs.places) == 1:
        return inputs.places[0]
    listed = ", ".join(map(str, inputs.places))
    rule = f"must be an NPZ with the arrays {listed}: the model has {len(inputs.places)} inputs (step.input)"
    raise ConfigError([Mistake("INPUT", rule, text, f"argument `{text}`", kind="unavailable")])


def _add_image(samples: RawInputs, path: Path, config: Config, inputs: StepInputs) -> None:
    place = _require_one_member(inputs, str(path))
    form = find_raw_form(config, place)
    if not form.mode and form.shape is not None and len(form.shape) not in (2, 3):
        rule = f"cannot be an image: a sample of the run has the shape {list(form.shape)} (dataset.sample)"
        raise ConfigError([Mistake("INPUT", rule, str(path), f"argument `{path}`", "give NPY or CSV", kind="slot")])

    def read() -> Mapping[Place, Any]:
        return {place: read_image(path, form)}

    samples.add(str(path), read)


def _add_arrays(samples: RawInputs, path: Path, config: Config, inputs: StepInputs) -> None:
    arrays = read_arrays(path)
    if path.suffix.lower() == ".npy":
        chosen = {_require_one_member(inputs, str(path)): arrays[""]}
    else:
        chosen = _choose_arrays(arrays, path, inputs)
    columns = {place: as_rows(array, find_raw_form(config, place), place) for place, array in chosen.items()}
    count_rows(columns)
    samples.add_rows(str(path), columns)


def _choose_arrays(arrays: Mapping[str, Any], path: Path, inputs: StepInputs) -> dict[Place, Any]:
    """Choose the arrays of an NPZ by the members' names, or by those of the model's arguments."""
    names = inputs.arguments or tuple(map(str, inputs.places))
    if len(inputs.places) == 1 and len(arrays) == 1:
        return {inputs.places[0]: next(iter(arrays.values()))}
    found: dict[Place, Any] = {}
    for place, name in zip(inputs.places, names, strict=True):
        known = next((word for word in (str(place), name) if word in arrays), None)
        if known is None:
            rule = f"must hold an array {str(place)!r} (step.input), and holds {', '.join(map(repr, arrays))}"
            raise ConfigError([Mistake("INPUT", rule, str(path), f"argument `{path}`", kind="no-match")])
        found[place] = arrays[known]
    return found


def _list_dataset_nodes(config: Config) -> list[dict[str, Any]]:
    chosen = config.dataset
    nodes = (chosen.source, chosen.train, chosen.val, chosen.test)
    return [node for node in nodes if node is not None]


def _find_reader(config: Config, trust: Trust) -> tuple[Any, dict[str, Any]] | None:
    """Find the `read_inputs` of the run's dataset, with the node that it belongs to; None if it has none."""
    for node in _list_dataset_nodes(config):
        try:
            reader = getattr(import_object(node["_target_"], trust), "read_inputs", None)
        except TargetError:
            continue
        if callable(reader):
            return reader, node
    return None


def _add_table(
    samples: RawInputs, path: Path, config: Config, inputs: StepInputs, trust: Trust, columns: Sequence[str]
) -> None:
    """Add the rows of a table by the reader of the run's dataset, with the arguments that the dataset had."""
    place = _require_one_member(inputs, str(path))
    found = _find_reader(config, trust)
    reader, node = found if found is not None else (import_object(PLAIN_TABLE["_target_"]).read_inputs, PLAIN_TABLE)
    form = find_raw_form(config, place)
    if found is None and (form.mode or form.shape is None or len(form.shape) != 1):
        rule = "is a table, and the run was not trained on one: its dataset has no `read_inputs`"
        remedy = "give what a sample of its dataset is: images, or arrays as NPY"
        raise ConfigError([Mistake("INPUT", rule, str(path), f"argument `{path}`", remedy, kind="slot")])
    takes = inspect.signature(reader).parameters
    given = {
        name: build_argument(value, f"dataset.{name}", takes[name].annotation, trust)
        for name, value in node.items()
        if name in takes and name != "path"
    }
    if "inputs" in takes and given.get("inputs") is None and columns:
        given["inputs"] = list(columns)
    rows, names = reader(str(path), **given)
    if found is None and form.shape is not None and tuple(rows.shape[1:]) != form.shape:
        raise ValueError(f"has {rows.shape[1]} columns, and a sample of the run has {form.shape[0]} (dataset.sample)")
    samples.add_rows(str(path), {place: rows}, names)
