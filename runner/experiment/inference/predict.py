"""Predictions of a recorded run: on files, or on the run's own splits, in batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.config.schema import Config
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import rng
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.trees import count_samples, map_tensors, mark_samples
from runner.data import batches
from runner.data.bad_samples import BadSample, BadSamples, find_file
from runner.data.keyed_samples import KeyedSamples
from runner.data.raw_inputs import RawInputs, as_input_tensor
from runner.data.samples import Placement, Stream
from runner.experiment import diagnosis
from runner.experiment.builders import data as data_builder
from runner.experiment.builders import run as run_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.builders.train import make_views
from runner.experiment.evaluate import find_checkpoint
from runner.experiment.inference.inputs import check_paths, open_inputs
from runner.experiment.inference.interpretation import Interpretation, interpret
from runner.experiment.inference.trained_model import (
    StepInputs,
    TrainedModel,
    choose_device,
    find_step_inputs,
    give_learnt,
    load_trained_model,
    make_eval_pipeline,
    print_note,
    read_names,
    require_checkpoints,
)
from runner.experiment.record.recorded import load_recorded_config
from runner.train import evaluation
from runner.train.state import Run
from runner.train.state_dict import put_weights
from runner.train.views import AverageOverViews


@dataclass(frozen=True)
class PredictedBatch:
    """Predictions of a batch, on the CPU.

    Attributes:
        names: of the samples: a file, `val[12]`, a row of a table.
        output: of the model, tensors [N, ...] in mappings and lists; of a detector a SampleList, one record a sample.
        explained: `class` and `probability` where the outputs are classes, see `Interpretation`.
        target: as the data has it; None for files.
    """

    names: Sequence[str]
    output: Any
    explained: Mapping[str, Tensor]
    target: Any = None


@dataclass
class Predictions:
    """Predictions of a checkpoint, made while they are read.

    Attributes:
        folder: the run directory.
        step: optimizer steps that the weights have taken.
        weights: `raw` or `ema`.
        interpretation: what the outputs mean.
        classes: names of the classes by index; empty where none are known.
        batches: read once.
        refused: inputs that are left out, each with what is wrong with it; complete after the last batch.
        notes: what is not as it was in training.
    """

    folder: Path
    step: int
    weights: str
    interpretation: Interpretation
    classes: list[str]
    batches: Iterator[PredictedBatch]
    refused: list[str] = field(default_factory=list)
    notes: Sequence[str] = ()

    def get_label(self, index: int) -> str:
        """Return the name of a class; its index where it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)


def predict(
    folder: Path,
    inputs: Sequence[str] = (),
    overrides: Sequence[str] = (),
    trust: Trust = (),
    *,
    split: str = "",
    checkpoint: str = "last",
    weights: str = "",
    batch_size: int | None = None,
) -> Predictions:
    """Predict with a checkpoint of a run, on files or on one of the run's own splits.

    Files go through the run's evaluation transforms, and the run's data is not needed. A bad one is left out and named
    in `refused`; the others are predicted.

    Args:
        folder: the run directory.
        inputs: images, folders of images, NPY, NPZ, tables.
        overrides: changes of the run's config.
        trust: patterns of trusted names.
        split: in place of inputs: `val`, `test`, `train` (in its own order, with the evaluation transforms).
        checkpoint: `last`, `best`, a path, or a file in the run's folder.
        weights: `raw` or `ema`; empty for those that training evaluated.
        batch_size: samples of a batch; the run's own for evaluation where it is None.

    Raises:
        ConfigError: there is no such run, checkpoint, input or split, or the model cannot be given such an input.
        RunError: the data, the checkpoint or the model cannot be had, or the model refuses a batch.
    """
    config, _ = load_recorded_config(folder, overrides, trust, verb="predict")
    mistakes = check_paths(inputs)
    if bool(inputs) == bool(split):
        rule = "must be left out with `--split`" if inputs else "must be given, or `--split` in its place"
        remedy = f"python -m runner predict {folder} image.png; or python -m runner predict {folder} --split val"
        mistakes.append(Mistake("INPUT", rule, remedy=remedy, kind="conflict" if inputs else "missing"))
    if mistakes:
        raise ConfigError(mistakes)
    size = batch_size or config.loader.eval.batch_size or config.loader.batch_size or 1
    if split:
        if batch_size is not None:
            config = replace(config, loader=replace(config.loader, eval=replace(config.loader.eval, batch_size=size)))
        return predict_split(folder, config, split, trust, checkpoint=checkpoint, weights=weights)
    called = find_step_inputs(config, trust)
    _refuse_collate(config)
    trained = load_trained_model(folder, config, trust, checkpoint=checkpoint, weights=weights)
    with diagnosis.convert_record_errors(folder):
        columns = trained.names.get("inputs")
        samples, refused = open_inputs(inputs, config, called, trust, columns if isinstance(columns, list) else ())
        predictor = FilePredictor(trained, called, interpret(config, trust), samples, trust, size, refused)
    return Predictions(
        folder,
        trained.step,
        trained.weights,
        predictor.interpretation,
        trained.classes,
        predictor.predict_batches(),
        refused,
        trained.notes,
    )


def _refuse_collate(config: Config) -> None:
    """Refuse files where a function of the run's own joins samples to batches. Raises ConfigError."""
    node = config.loader.collate_fn
    if node is not None:
        rule = f"joins input and target by {node['_target_']}, and a file has no target"
        remedy = "the run's own data is joined as in training: `--split val`"
        raise ConfigError([Mistake("loader.collate_fn", rule, remedy=remedy, kind="unavailable")])


@dataclass
class FilePredictor:
    """Predictor on raw samples: transforms, batches of one shape, the model."""

    trained: TrainedModel
    called: StepInputs
    interpretation: Interpretation
    samples: RawInputs
    trust: Trust
    batch_size: int
    refused: list[str]

    @cached_property
    def model(self) -> Any:
        """The model, with the mean of its outputs over the views of an evaluation where there are any."""
        views = make_views(self.trained.config, self.trust)
        return self.trained.model if views is None else AverageOverViews(self.trained.model, views)

    def predict_batches(self) -> Iterator[PredictedBatch]:
        """Yield the predictions of each batch of sound samples."""
        config, device = self.trained.config, self.trained.device
        with give_learnt(self.trained.learnt) as loan:
            pipeline = make_eval_pipeline(config, loan, self.trust)
        if pipeline.place is not None and pipeline.place not in self.called.places:
            pipeline = replace(pipeline, transforms={})  # they change the target
        indices = np.arange(len(self.samples))
        stream = Stream(config.seed, "predict")
        keyed = KeyedSamples(self.samples, indices, pipeline, stream, BadSamples("predict"))
        image_format = (
            torch.channels_last if config.device.memory_format == "channels_last" else torch.contiguous_format
        )
        placement = Placement(device, image_format)
        for number, first in enumerate(range(0, len(indices), self.batch_size)):
            made = keyed.__getitems__([(0, at) for at in range(first, min(first + self.batch_size, len(indices)))])
            sound = list(self._take_sound(first, made))
            for _, some in groupby(sound, key=lambda one: [tensor.shape for tensor in one[1]]):
                rows = list(some)
                joined = [torch.stack(column) for column in zip(*(row for _, row in rows), strict=True)]
                with rng.fork_rng():
                    rng.seed_all(rng.derive_key(config.seed, "predict", number))
                    output = self._call([placement.put(tensor) for tensor in joined], [name for name, _ in rows])
                yield make_batch([name for name, _ in rows], output, self.interpretation)

    def _take_sound(self, first: int, made: Sequence[Any]) -> Iterator[tuple[str, list[Tensor]]]:
        for at, sample in enumerate(made, first):
            name = self.samples.names[at]
            if isinstance(sample, BadSample):
                self.refused.append(f"{name}: {sample.error.removeprefix('ValueError: ')}")
                continue
            try:
                yield name, [as_input_tensor(sample[place]) for place in self.called.places]
            except RunError as error:
                raise RunError(f"{name}: {error}; {_explain_left_image(self.trained.config)}") from error

    def _call(self, members: list[Tensor], names: Sequence[str]) -> Any:
        try:
            with torch.no_grad(), self.trained.autocast():
                return self.called.select(self.called.call(self.model, members))
        except Exception as error:
            shapes = ", ".join(f"{list(member.shape)} {member.dtype}" for member in members)
            which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"the model refuses a batch of {shapes} ({which}): {said}") from error


def _explain_left_image(config: Config) -> str:
    """Explain where the step from an image to a tensor must stand for `predict` to know it."""
    nodes = [node for node in (config.dataset.source, config.dataset.val, config.dataset.train) if node is not None]
    named = f" ({nodes[0]['_target_']})" if nodes else ""
    return (
        f"what the dataset{named} does to a file by itself is not known here: say it in `transform.eval`, or give "
        "the model's inputs as NPY"
    )


def make_batch(names: Sequence[str], output: Any, interpretation: Interpretation, target: Any = None) -> PredictedBatch:
    """Make the predictions of a batch from an output, moved to the CPU; half precision becomes single.

    Raises:
        RunError: the output is not one row a sample.
    """
    plain = mark_samples(map_tensors(_to_plain, output), len(names))
    if count_samples(plain) != len(names):
        raise RunError(f"the model gives {count_samples(plain)} rows for a batch of {len(names)} samples")
    target = mark_samples(map_tensors(_to_plain, target), len(names))
    return PredictedBatch(names, plain, interpretation.explain(plain), target)


def _to_plain(tensor: Tensor) -> Tensor:
    plain = tensor.detach().cpu()
    return plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain


# ---- the run's own data


def predict_split(
    folder: Path, config: Config, split: str, trust: Trust = (), *, checkpoint: str = "last", weights: str = ""
) -> Predictions:
    """Predict a split of the run's own data, batch by batch as `evaluate` does.

    Raises:
        ConfigError: there is no such split or checkpoint.
        RunError: the data cannot be had.
    """
    file, notes = find_checkpoint(folder, checkpoint, "predict"), list[str]()
    if choose_device(config, notes).type == "cpu":
        config = replace(config, device=replace(config.device, type="cpu"))
    with diagnosis.convert_record_errors(folder):
        run = run_builder.build(config, folder, {}, trust)
        run.checkpoints.warn = print_note
        require_checkpoints(folder, run.checkpoints, file)
        saved = run.checkpoints.load(file)
        put_weights(run, saved, weights)
        run.progress.step, run.progress.epoch = saved["progress"]["step"], saved["progress"]["epoch"]
        if split not in run.splits:
            near = find_nearest(split, run.splits)
            rule = f"must be one of {', '.join(run.splits)}"
            where = f"argument `--split {split}`"
            raise ConfigError([Mistake("--split", rule, split, where, format_suggestion(near), near, "no-match")])
        if split == "train":
            run.splits["train"] = make_train_in_order(config, run, saved["step"].get("fitted", {}), trust)
        names = dict(run.names) or read_names(folder)
        classes = [str(name) for name in names.get("classes", [])]
        which = "raw" if weights == "raw" or saved["ema"] is None else "ema"
        meaning = interpret(config, trust)
    refused: list[str] = []
    made = predict_split_batches(run, config, split, meaning, refused)
    return Predictions(folder, saved["progress"]["step"], which, meaning, classes, made, refused, notes)


def make_train_in_order(config: Config, run: Run, learnt: Mapping[str, Any], trust: Trust) -> Any:
    """Make the train split in the dataset's order, with the transforms of an evaluation.

    Raises:
        RunError: the run has no data.
    """
    with give_learnt(learnt):
        parts = data_builder.make_parts(config, trust)
        if "train" not in parts:
            raise RunError("the run has no data")
        dataset, indices = parts["train"]
        rows = indices
        if hasattr(dataset, "__len__"):
            rows = batches.choose_indices(dataset, indices, "train", config.dataset.limit)
        parts = {"train": (dataset, indices), "val": (dataset, rows)}  # as if it were evaluated
        return data_builder.make_splits(config, parts, run.device, trust)["val"]


def predict_split_batches(
    run: Run, config: Config, name: str, meaning: Interpretation, refused: list[str]
) -> Iterator[PredictedBatch]:
    """Yield the predictions of each batch of a split, under the names of its samples."""
    split: Any = run.splits[name]
    run.model.eval()
    counted = 0
    outcomes = evaluation.evaluate_batches(run, name)
    for number in range(2**62):
        with torch.no_grad(), rng.fork_rng():
            try:
                outcome = next(outcomes)
            except StopIteration:
                break
            except Exception as error:
                raise RunError(diagnosis.explain_failure(error, run, config, None, None)) from error
        if "output" not in outcome:
            rule = f"gives no `output`, so that there is nothing to predict: {config.step['_target_']}"
            raise ConfigError([Mistake("step", rule, kind="unavailable")])
        count = count_outputs(outcome, split.sample_indices(0, number))
        names, bad = name_samples(split, name, number, counted, count)
        refused += [text for text in bad if text not in refused]
        counted += count
        yield make_batch(names, outcome["output"], meaning, outcome.get("target"))


def count_outputs(outcome: Mapping[str, Any], indices: Sequence[int] | None) -> int:
    """Count the samples of an outcome: rows of its output, or a detector's records of them."""
    output, size = outcome["output"], outcome.get("size")
    known = [len(indices)] if indices is not None else []
    known += [size] if isinstance(size, int) else []
    if isinstance(output, list | tuple) and len(output) in known:
        output = mark_samples(output, len(output))
    return count_samples(output)


def name_samples(split: Any, name: str, number: int, counted: int, count: int) -> tuple[list[str], list[str]]:
    """Name the samples of a batch: by their files, or by their numbers in the dataset; and those left out."""
    indices = split.sample_indices(0, number)
    if indices is None:
        return [f"{name}[{counted + at}]" for at in range(count)], []
    dataset = getattr(getattr(split, "samples", None), "dataset", None)
    faults = getattr(split, "faults", None) or getattr(getattr(split, "samples", None), "faults", None)
    left_out = set() if faults is None else faults.found

    def say(index: int) -> str:
        return (find_file(dataset, index) if dataset is not None else split.file(index)) or f"{name}[{index}]"

    kept = [say(index) for index in indices if index not in left_out]
    bad = [f"{say(index)}: left out as a bad sample (loader.bad_samples)" for index in indices if index in left_out]
    return (kept if len(kept) == count else [f"{name}[{counted + at}]" for at in range(count)]), bad
