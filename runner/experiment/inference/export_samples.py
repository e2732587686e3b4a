"""Samples to check an exported model on: real ones of the run's data, else random ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from runner.config.schema import Config
from runner.core import rng
from runner.core.errors import describe_error
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Place
from runner.data.raw_inputs import RawSample, as_input_tensor
from runner.data.samples import Pipeline
from runner.experiment.builders import data as data_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.inference.trained_model import StepInputs, find_raw_form

COUNT = 8


@dataclass(frozen=True)
class ExportSamples:
    """A few samples, raw and as the model gets them.

    Attributes:
        raw: whole samples, as the dataset gives them.
        inputs: tensors [N, ...], one for each member that the model gets.
        origin: where they are from, in words.
    """

    raw: Sequence[Any]
    inputs: tuple[Tensor, ...]
    origin: str

    def __len__(self) -> int:
        return len(self.raw)


def find_samples(
    config: Config, called: StepInputs, pipeline: Pipeline, trust: Trust = ()
) -> tuple[ExportSamples | None, str]:
    """Find samples for the check; None, and the reason, if neither data nor form is known."""
    why = ""
    try:
        with rng.fork_rng():
            split, raw = _read_raw(config, trust)
            return _transform(raw, called, pipeline, f"{{}} samples of {split}"), ""
    except Exception as error:  # noqa: BLE001  data that is gone raises anything
        why = describe_error(error).splitlines()[0]
    forms = {place: find_raw_form(config, place) for place in called.places}
    if any(not form.mode and form.shape is None for form in forms.values()):
        return None, f"the run's data cannot be had ({why}), and dataset.sample does not state its form"
    with rng.stream(rng.derive_key(config.seed, "export")):
        rows = [_make_random(forms, config) for _ in range(COUNT)]
        return _transform(rows, called, pipeline, f"{{}} random inputs, because the data cannot be had: {why}"), ""


def _read_raw(config: Config, trust: Trust) -> tuple[str, list[Any]]:
    """Read the first samples of val, or of test or train where there is none."""
    parts = data_builder.make_parts(config, trust)
    data_builder.fit_parts(config, parts)
    split = next((name for name in ("val", "test") if name in parts), next(iter(parts), ""))
    if not split:
        raise ValueError("the run has no data")
    dataset, indices = parts[split]
    with watch_reading():
        if isinstance(dataset, IterableDataset):
            return split, list(islice(iter(dataset), COUNT))
        rows = np.arange(len(dataset)) if indices is None else indices
        return split, [dataset[int(row)] for row in rows[:COUNT]]


def _make_random(forms: dict[Place, RawSample], config: Config) -> Any:
    members = {place: _make_random_member(form, config) for place, form in forms.items()}
    if any(isinstance(place, str) for place in members):
        return members
    return tuple(members.get(place, 0) for place in range(max(int(place) for place in members) + 1))


def _make_random_member(form: RawSample, config: Config) -> Any:
    if form.mode:
        from PIL import Image

        stated: Any = config.dataset.sample
        members = stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else [stated]
        width, height = next((member.size for member in members if member.size), [32, 32])
        shape = (height, width, len(form.mode)) if len(form.mode) > 1 else (height, width)
        return Image.fromarray(torch.randint(256, shape, dtype=torch.uint8).numpy())
    assert form.shape is not None
    dtype = form.dtype or torch.float32
    if dtype.is_floating_point:
        return torch.rand(form.shape).to(dtype)
    return torch.randint(2, form.shape).to(dtype)  # an index of an embedding may be no greater


def _transform(raw: list[Any], called: StepInputs, pipeline: Pipeline, origin: str) -> ExportSamples:
    """Transform raw samples one by one; those of another shape than the first are left out."""
    made: list[tuple[Any, list[Tensor]]] = []
    with watch_reading():
        for sample in raw:
            changed = pipeline.apply(sample)
            made.append((sample, [as_input_tensor(changed[place]) for place in called.places]))
    shapes = [tensor.shape for tensor in made[0][1]]
    kept = [(sample, row) for sample, row in made if [tensor.shape for tensor in row] == shapes]
    inputs = tuple(torch.stack(column) for column in zip(*(row for _, row in kept), strict=True))
    return ExportSamples([sample for sample, _ in kept], inputs, origin.format(len(kept)))


def iterate_raw_members(samples: ExportSamples, place: Place) -> Iterator[Any]:
    """Yield the raw member of each sample at a place."""
    for sample in samples.raw:
        yield sample[place]
