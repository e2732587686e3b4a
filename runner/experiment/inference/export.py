"""Export of a run's model for elsewhere: weights or a graph, checked on samples, with a card."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.files import sync_folder, write_json, write_text
from runner.data.samples import Pipeline
from runner.experiment import diagnosis
from runner.experiment.builders.instantiate import Trust
from runner.experiment.inference import export_formats, model_card
from runner.experiment.inference.export_formats import GraphModel, Written
from runner.experiment.inference.export_samples import ExportSamples, find_samples
from runner.experiment.inference.preprocessing import (
    NoCode,
    check_preprocessing,
    describe_raw,
    list_places,
    trace_preprocessing,
    write_preprocessing,
)
from runner.experiment.inference.trained_model import (
    StepInputs,
    TrainedModel,
    find_step_inputs,
    give_learnt,
    load_trained_model,
    make_eval_pipeline,
)
from runner.experiment.record.recorded import load_recorded_config

MARK = "export.json"  # a folder with it is an export, which another one of the same run replaces


@dataclass
class Export:
    """Exported model: its folder, and what the check found.

    Attributes:
        folder: with the model, its card, and `preprocess.py` where the transforms are not in the graph.
        to: the format.
        file: name of the model's file.
        trained: the model that was exported.
        inputs: name, shape without the batch and dtype of each input; empty where they are not known.
        outputs: names of the outputs; empty for weights alone.
        preprocessing: `graph`, `preprocess.py`, `none`, or why there is none.
        checked: the samples that it was compared on, in words; empty where only the tensors were.
        difference: the largest, see `measure_difference`; None where nothing was computed.
    """

    folder: Path
    to: str
    file: str
    trained: TrainedModel
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    preprocessing: str = "none"
    checked: str = ""
    difference: float | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json` and `export.json`."""
        return {
            "run": str(self.trained.folder),
            "format": self.to,
            "file": self.file,
            "step": self.trained.step,
            "weights": self.trained.weights,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "classes": self.trained.classes,
            "preprocessing": self.preprocessing,
            "checked": self.checked,
            "largest_difference": self.difference,
            "notes": self.notes,
        }


def export_run(
    run: Path,
    to: str,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    trust: Trust = (),
    *,
    checkpoint: str = "last",
    weights: str = "",
    licence: str = "",
    intervals: Sequence[str] = (),
) -> Export:
    """Export a checkpoint of a run into a folder of its own, which appears whole or not at all.

    Args:
        run: the run directory.
        to: `safetensors`, `state_dict`, `torch_export` or `onnx`.
        out: the folder; None for one below `outputs/exports/`.
        overrides: changes of the run's config.
        trust: patterns of trusted names.
        checkpoint: `last`, `best`, a path, or a file in the run's folder.
        weights: `raw` or `ema`; empty for those that training evaluated.
        licence: of the weights, for the card; empty to name the project's LICENSE file.
        intervals: lines of the card about replicates of this run.

    Raises:
        ConfigError: there is no such run, checkpoint or format, the folder is taken, or the step does not say what the
            model gets.
        RunError: the model cannot be exported so, or the exported one does not agree with it.
    """
    config, _ = load_recorded_config(run, overrides, trust, verb="export")
    folder = Path("outputs") / "exports" / f"{config.name}_{run.resolve().name}_{to}" if out is None else out
    mistakes = [*export_formats.check_format(to), *check_folder(folder)]
    called = None
    try:
        called = find_step_inputs(config, trust, verb="export")
    except ConfigError as error:
        if to in export_formats.GRAPHS:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    on_cpu = replace(
        config.device, type="cpu", precision="fp32", weights="fp32", memory_format="contiguous", compile=False
    )
    trained = load_trained_model(
        run, replace(config, device=on_cpu), trust, checkpoint=checkpoint, weights=weights, verb="export"
    )
    trained = replace(trained, config=config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        with diagnosis.convert_record_errors(run):
            with give_learnt(trained.learnt) as loan:
                pipeline = make_eval_pipeline(config, loan, trust)
                made = write_export(temporary, to, trained, called, pipeline, trust)
            made.folder = folder
            card = model_card.write_card(made, trust, licence=licence or model_card.find_licence(), intervals=intervals)
            write_text(temporary / "README.md", card)
            write_json(temporary / MARK, made.as_json())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def check_folder(folder: Path) -> list[Mistake]:
    """Find what is in the way of the folder of an export; an earlier export or an empty folder is not."""
    where = f"argument `--out {folder}`"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return [Mistake("--out", "must be a folder, and is another file", str(folder), where, kind="file")]
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        rule = f"must be a new folder, or an earlier export (one with {MARK})"
        return [Mistake("--out", rule, str(folder), where, kind="file")]
    return []


def write_export(
    folder: Path, to: str, trained: TrainedModel, called: StepInputs | None, pipeline: Pipeline, trust: Trust = ()
) -> Export:
    """Write model and preprocessing into a folder, and check both.

    Raises:
        RunError: the model cannot be exported so, or disagrees.
    """
    made = Export(folder, to, export_formats.FILES[to], trained, notes=list(trained.notes))
    if trained.config.transform.views is not None:
        made.notes.append("the run's evaluations averaged several views of an input (transform.views); this gives one")
    if called is None or not list_places(called, pipeline):
        pipeline = replace(pipeline, transforms={})
    samples, why = None, "the step does not say what the model gets"
    if called is not None:
        samples, why = find_samples(trained.config, called, pipeline, trust)
    if samples is None:
        if to in export_formats.GRAPHS:
            raise RunError(f"a graph is traced on an example, and there is none: {why}")
        made.notes.append(f"only the tensors were compared, no output: {why}")
    if to in export_formats.GRAPHS:
        assert called is not None
        assert samples is not None
        export_graph(made, called, samples, pipeline)
    else:
        written = export_formats.write_weights(trained.model, folder / made.file, to, called)
        if called is not None and samples is not None:
            describe_inputs(made, called, samples.inputs)
            compare(made, written, called, samples, samples.inputs)
    if made.preprocessing != "graph" and pipeline.transforms:
        made.preprocessing = write_code(made, pipeline, called, samples, trust)
    return made


def export_graph(made: Export, called: StepInputs, samples: ExportSamples, pipeline: Pipeline) -> None:
    """Write the graph, with the transforms in it where they can be traced, and check it.

    Raises:
        RunError: the model cannot be traced, or the graph disagrees.
    """
    inputs, traced, at = samples.inputs, None, 0
    if pipeline.transforms:
        found = trace_preprocessing(pipeline, samples, called)
        if isinstance(found, str):
            made.notes.append(f"the transforms are not in the graph: {found}")
        else:
            traced, raw = found
            at = called.places.index(pipeline.place)
            inputs = (*inputs[:at], raw, *inputs[at + 1 :])
            made.preprocessing = "graph"
    graph = GraphModel(made.trained.model, called, traced, at).eval()
    names = describe_inputs(made, called, inputs)
    with torch.no_grad():
        made.outputs = export_formats.name_outputs(graph(*inputs))
        if len(samples) == 1:  # torch takes a batch of one for a fixed size
            inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
        path = made.folder / made.file
        written = export_formats.write_graph(graph, inputs, path, made.to, names, made.outputs)
    made.outputs = list(written.outputs)
    compare(made, written, called, samples, inputs)


def describe_inputs(made: Export, called: StepInputs, inputs: Sequence[Tensor]) -> list[str]:
    """Record names, shapes and dtypes of the inputs; return the names."""
    if called.arguments:
        names = list(called.arguments)
    elif len(called.places) == 1:
        names = ["input"]
    else:
        names = [str(place) if isinstance(place, str) else f"input_{place}" for place in called.places]
    made.inputs = [
        {"name": name, "shape": ["batch", *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in zip(names, inputs, strict=True)
    ]
    return names


def compare(
    made: Export, written: Written, called: StepInputs, samples: ExportSamples, inputs: Sequence[Tensor]
) -> None:
    """Compare the exported model, read back, with the run's model on batches of several sizes.

    Raises:
        RunError: they do not agree.
    """
    count = len(inputs[0])
    worst = 0.0
    for size in sorted({1, max(1, count - 1), count}):
        wanted = [torch.cat([tensor, tensor])[:size] for tensor in samples.inputs]
        with torch.no_grad():
            expected = called.call(made.trained.model, wanted)
            found = written.call([tensor[:size] for tensor in inputs])
        worst = max(worst, export_formats.measure_difference(expected, found))
    made.checked, made.difference = samples.origin, worst
    limit = export_formats.LIMIT
    if worst > limit:
        raise RunError(
            f"the exported model does not agree with the run's: the largest difference is {worst:.3g}, over {limit:g} "
            f"(on {samples.origin}); nothing was written"
        )


def write_code(
    made: Export, pipeline: Pipeline, called: StepInputs | None, samples: ExportSamples | None, trust: Trust
) -> str:
    """Write `preprocess.py` and check it; return what to say about the preprocessing."""
    place = None if pipeline.place is None else pipeline.place
    raw = "a sample as the dataset gives it"
    if samples is not None and place is not None:
        raw = describe_raw(samples.raw[0][place])
    try:
        code = write_preprocessing(made.trained.config, pipeline, raw, trust)
        if samples is not None and called is not None:
            check_preprocessing(code, samples, called, pipeline)
    except NoCode as error:
        made.notes.append(f"the transforms cannot be written as code: {error}; they stand in the card's config")
        return "none: see the config"
    except RunError as error:
        made.notes.append(str(error))
        return "none: see the config"
    if code.modules:
        made.notes.append(f"preprocess.py imports {', '.join(code.modules)}, the project's own code")
    write_text(made.folder / "preprocess.py", code.text)
    return "preprocess.py"
