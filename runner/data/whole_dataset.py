"""A dataset as a whole: stacked tensors and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from runner.core import rng
from runner.core.errors import describe_error
from runner.core.layouts import is_strided
from runner.data.bad_samples import BadSample, BadSamples, find_file, find_none
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Indices, Place
from runner.data.samples import Stream, to_image


@dataclass(frozen=True)
class DatasetTensors:
    """All samples of a dataset as tensors [N, ...] by place.

    Attributes:
        tensors: the members.
        pil: those of them that are given as PIL images one by one.
        bad: indices of samples that could not be had, and were noted.
        dataset: where they come from.
    """

    tensors: Mapping[Place, Tensor]
    pil: frozenset[Place] = frozenset()
    bad: frozenset[int] = frozenset()
    dataset: Any = None

    def file(self, index: int) -> str:
        """Return the file of a sample; empty if the dataset does not list files."""
        return find_file(self.dataset, index)


def stack_samples(dataset: Any, indices: Indices, stream: Stream, faults: BadSamples) -> DatasetTensors:
    """Stack a split's samples into whole tensors, each read once under the keys of its first epoch.

    Members are tensors, arrays, numbers or PIL images; rows of other splits are zeros that no memory is spent on.

    Raises:
        ValueError: samples are no tuples or mappings of such members, or differ in their shapes.
        RunError: a sample cannot be had, and is not to be skipped.
    """
    tensors: dict[Place, Tensor] = {}
    pil: set[Place] = set()
    bad: set[int] = set()
    for index in indices.tolist():
        try:
            with rng.stream(stream.key(0, index, "dataset")), watch_reading():
                sample = dataset[index]
                _load_images(sample)
        except Exception as error:  # noqa: BLE001  a user's dataset may raise anything
            faults.note(BadSample(index, describe_error(error), find_file(dataset, index)))
            bad.add(index)
            continue
        if absent := find_none(sample):
            faults.note(BadSample(index, absent, find_file(dataset, index)))
            bad.add(index)
            continue
        for place, member in _get_members(sample, index).items():
            if hasattr(member, "convert"):
                pil.add(place)
            row = _as_tensor(member, place, index)
            if place not in tensors:
                tensors[place] = torch.zeros(len(dataset), *row.shape, dtype=row.dtype)
            if tensors[place].shape[1:] != row.shape:
                shapes = f"{list(row.shape)}, not {list(tensors[place].shape[1:])} as the first"
                message = f"loader.in_memory: true needs samples of one shape, and sample {index} has {shapes}"
                raise ValueError(message)
            tensors[place][index] = row
    return DatasetTensors(tensors, frozenset(pil), frozenset(bad), dataset)


def _load_images(sample: Any) -> None:
    """Read the pixels of Pillow's images, which are else read when they are first used."""
    members = sample.values() if isinstance(sample, Mapping) else sample if isinstance(sample, tuple | list) else ()
    for member in members:
        if hasattr(member, "convert") and hasattr(member, "load"):
            member.load()


def _get_members(sample: Any, index: int) -> Mapping[Place, Any]:
    if isinstance(sample, Mapping):
        return sample
    if isinstance(sample, tuple | list):
        return dict(enumerate(sample))
    message = f"loader.in_memory: true needs samples of several members, and sample {index} is {type(sample).__name__}"
    raise ValueError(message)


def _as_tensor(member: Any, place: Place, index: int) -> Tensor:
    try:
        tensor = to_image(member) if hasattr(member, "convert") else torch.as_tensor(member)
        if is_strided(tensor):
            return tensor
        error: Exception = TypeError(f"its layout is {tensor.layout}")
    except (TypeError, ValueError, RuntimeError) as refused:
        error = refused
    message = f"loader.in_memory: true needs numbers, and member {place!r} of sample {index} is no number ({error})"
    raise ValueError(message) from error


def read_labels(dataset: Any, place: Place = 1) -> Tensor:
    """Read the class of every sample, int64: from `targets`, whole tensors, or sample by sample."""
    if isinstance(dataset, Subset):
        return read_labels(dataset.dataset, place)[torch.as_tensor(dataset.indices)]
    if hasattr(dataset, "targets"):
        return torch.as_tensor(dataset.targets)
    whole = find_dataset_tensors(dataset)
    if whole is not None and place in whole.tensors:
        return whole.tensors[place]
    with watch_reading():
        return torch.tensor([int(dataset[i][place]) for i in range(len(dataset))])


class SplitSubset(Subset[Any]):
    """Subset of a dataset that knows its `targets`: a sampler's `data_source`."""

    def __init__(self, dataset: Dataset[Any], indices: Indices, place: Place = 1) -> None:
        super().__init__(dataset, indices.tolist())
        self.place = place

    @property
    def targets(self) -> Tensor:
        """Return the class of every sample, int64 [len(self)]."""
        return read_labels(self.dataset, self.place)[torch.as_tensor(self.indices)]


def find_dataset_tensors(dataset: Any) -> DatasetTensors | None:
    """Return the tensors whose rows are a dataset's samples; None if no such tensors are known.

    A TensorDataset, torchvision's MNIST and CIFAR families without transforms of their own, a Subset of one of these.
    """
    if type(dataset) in (Subset, SplitSubset):
        inner = find_dataset_tensors(dataset.dataset)
        if inner is None:
            return None
        rows = torch.as_tensor(dataset.indices)
        tensors = {place: tensor[rows] for place, tensor in inner.tensors.items()}
        return DatasetTensors(tensors, inner.pil, dataset=dataset)
    own = type(dataset).__getitem__ if hasattr(type(dataset), "__getitem__") else None
    if isinstance(dataset, TensorDataset):
        plain = own is TensorDataset.__getitem__ and all(map(is_strided, dataset.tensors))
        return DatasetTensors(dict(enumerate(dataset.tensors)), dataset=dataset) if plain else None
    if getattr(dataset, "transforms", None) is not None:
        return None
    reads = f"{getattr(own, '__module__', '')}.{getattr(own, '__qualname__', '')}"
    if reads == "torchvision.datasets.cifar.CIFAR10.__getitem__":
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return DatasetTensors({0: images, 1: torch.tensor(dataset.targets)}, frozenset({0}), dataset=dataset)
    if reads == "torchvision.datasets.mnist.MNIST.__getitem__":
        members: dict[Place, Tensor] = {0: dataset.data[:, None], 1: torch.as_tensor(dataset.targets)}
        return DatasetTensors(members, frozenset({0}), dataset=dataset)
    return None
