"""From datasets to batches, in one of three ways, and why that one.

`Gathered` holds whole tensors on the device, takes one gather for many batches and runs batched transforms; `Loaded`
goes through torch's DataLoader, sample by sample; `Streamed` does so with a dataset that owns its order. All draw order
and augmentation from keys (seed, epoch, index, transform name), so a batch depends neither on workers nor on what ran
before, and a resume skips straight to its batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from runner import rng
from runner.batched import Chain, NotBatched
from runner.gathered import Gathered
from runner.loaded import KeyedSamples, KeyedStream, Loaded, Streamed
from runner.samples import (
    Fault,
    Faults,
    Indices,
    Order,
    Pipeline,
    Place,
    Placement,
    Stream,
    file_of,
    to_image,
)
from runner.splitting import Whole, whole_data


class Split(Protocol):
    """Batches of one split, on the device."""

    @property
    def size(self) -> int:
        """Samples of an epoch; 0 where the dataset does not know."""
        ...

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None where the dataset does not know."""
        ...

    @property
    def plan(self) -> str:
        """How its batches are made, in words."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the data; empty where only reading all of it would tell."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        ...


class Mixed:
    """A split whose batches go through further transforms (MixUp, CutMix), drawn by (seed, epoch, batch, name)."""

    def __init__(self, split: Split, transforms: Mapping[str, Callable[[Any], Any]], stream: Stream) -> None:
        self.split, self.transforms, self.stream = split, transforms, stream
        self.size, self.num_batches, self.fingerprint = split.size, split.num_batches, split.fingerprint
        self.order = getattr(split, "order", None)
        self.plan = f"{split.plan}; per batch: {', '.join(transforms)}"

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on, transformed on the device; draws are made on the CPU."""
        for number, batch in enumerate(self.split.batches(epoch, start), start):
            changed = batch
            for name, transform in self.transforms.items():
                with rng.stream(self.stream.key(epoch, number, name)):
                    changed = transform(changed)
            yield changed


@dataclass(frozen=True)
class LoaderSettings:
    """What the config says about making batches of one split."""

    batch_size: int
    shuffle: bool
    drop_last: bool = False
    num_workers: int = 0
    in_memory: bool | str = "auto"
    in_memory_limit: int = 4 * 2**30  # bytes
    sampler: Iterable[int] | None = None
    batch_sampler: Iterable[Sequence[int]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # DataLoader's own: collate_fn, pin_memory, timeout, …


def chosen_indices(dataset: Any, indices: Indices | None, split: str, limit: int | None) -> Indices:
    """The samples of a split: all or `indices`, of which `limit` are a fixed random choice.

    Raises:
        ValueError: there is none.
    """
    indices = np.arange(len(dataset)) if indices is None else indices
    if limit is not None and limit < len(indices):
        indices = np.sort(indices[rng.permutation(rng.key(0, "limit", split), len(indices))[:limit]])
    if not len(indices):
        message = f"the {split} split is empty"
        raise ValueError(message)
    return indices


def make_split(
    dataset: Any,
    indices: Indices | None,
    pipeline: Pipeline,
    stream: Stream,
    placement: Placement,
    settings: LoaderSettings,
    *,
    limit: int | None = None,
    batch_transforms: Mapping[str, Callable[[Any], Any]] | None = None,
    faults: Faults | None = None,
) -> Split:
    """Batches of a dataset's samples `indices` (None: all), gathered from memory where that is possible and allowed.

    Raises:
        ValueError: `in_memory: true` cannot be had, or the split is empty.
        RunError: the data is unsound.
    """
    faults = faults or Faults(stream.split)
    if isinstance(dataset, IterableDataset):
        samples = KeyedStream(dataset, pipeline, stream, limit, faults)
        split: Split = Streamed(
            samples,
            placement,
            batch_size=settings.batch_size,
            drop_last=settings.drop_last,
            num_workers=settings.num_workers,
            **settings.options,
        )
    else:
        indices = chosen_indices(dataset, indices, stream.split, limit)
        split = _indexed(dataset, indices, pipeline, stream, placement, settings, faults)
    return Mixed(split, batch_transforms, stream) if batch_transforms else split


def _indexed(
    dataset: Any,
    indices: Indices,
    pipeline: Pipeline,
    stream: Stream,
    placement: Placement,
    settings: LoaderSettings,
    faults: Faults,
) -> Split:
    order = Order(len(indices), stream, shuffle=settings.shuffle, sampler=settings.sampler)
    found = for_gathering(dataset, indices, pipeline, stream, settings, faults)
    if not isinstance(found, str):
        whole, chain = found
        return Gathered(
            whole,
            indices,
            pipeline,
            chain,
            order,
            placement,
            batch_size=settings.batch_size,
            drop_last=settings.drop_last,
            limit=settings.in_memory_limit,
            faults=faults,
        )
    return Loaded(
        KeyedSamples(dataset, indices, pipeline, stream, faults),
        order,
        placement,
        batch_size=settings.batch_size,
        drop_last=settings.drop_last,
        batch_sampler=settings.batch_sampler,
        reason=found,
        num_workers=settings.num_workers,
        **settings.options,
    )


def for_gathering(
    dataset: Any, indices: Indices, pipeline: Pipeline, stream: Stream, settings: LoaderSettings, faults: Faults
) -> tuple[Whole, Chain | None] | str:
    """The whole data and the batched transforms where batches can be gathered, else the reason why not.

    Raises:
        ValueError: they cannot, and `in_memory` is true.
        RunError: `in_memory` is true, and a sample cannot be had.
    """
    reason = why_single(pipeline, settings, collates=settings.options.get("collate_fn") is not None)
    found: tuple[Whole, Chain | None] | str = reason
    if not reason:
        whole = whole_data(dataset)
        if whole is None and settings.in_memory is True:
            whole = stacked(dataset, indices, stream, faults)
        found = (
            "the dataset's tensors are not known as a whole" if whole is None else _chained(whole, pipeline, settings)
        )
    if isinstance(found, str) and settings.in_memory is True:
        message = f"loader.in_memory: true cannot be had: {found}"
        raise ValueError(message)
    return found


def _chained(whole: Whole, pipeline: Pipeline, settings: LoaderSettings) -> tuple[Whole, Chain | None] | str:
    """The whole data with the batched form of its transforms, or why that cannot be had."""
    size = sum(tensor.nbytes for tensor in whole.tensors.values())
    if settings.in_memory == "auto" and size > settings.in_memory_limit:
        return f"{size / 2**30:.1f} GiB are over loader.in_memory_limit"
    if not pipeline.transforms and not whole.pil:
        return whole, None
    assert pipeline.place is not None
    if pipeline.place not in whole.tensors:
        return f"a sample has no member {pipeline.place!r}"
    try:
        pil = pipeline.place in whole.pil
        return whole, Chain(pipeline.transforms, whole.tensors[pipeline.place][0], pil=pil)
    except NotBatched as error:
        return str(error)


def why_single(pipeline: Pipeline, settings: LoaderSettings, *, collates: bool) -> str:
    """Why samples have to be made one by one, whatever the dataset; empty where nothing says so."""
    reasons = {
        "loader.in_memory is false": settings.in_memory is False,
        "workers are asked for": settings.num_workers > 0,
        "loader.batch_sampler is given": settings.batch_sampler is not None,
        "loader.collate_fn is given": collates,
        "transforms change whole samples": bool(pipeline.transforms) and pipeline.place is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def stacked(dataset: Any, indices: Indices, stream: Stream, faults: Faults) -> Whole:
    """A split's samples as whole tensors, each read once, with the random numbers of its first epoch.

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
            with rng.stream(stream.key(0, index, "dataset")):
                sample = dataset[index]
        except Exception as error:  # noqa: BLE001  a user's dataset may raise anything
            faults.note(Fault(index, f"{type(error).__name__}: {error}", file_of(dataset, index)))
            bad.add(index)
            continue
        for place, member in _members_of(sample, index).items():
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
    return Whole(tensors, frozenset(pil), frozenset(bad), dataset)


def _members_of(sample: Any, index: int) -> Mapping[Place, Any]:
    if isinstance(sample, Mapping):
        return sample
    if isinstance(sample, tuple | list):
        return dict(enumerate(sample))
    message = f"loader.in_memory: true needs samples of several members, and sample {index} is {type(sample).__name__}"
    raise ValueError(message)


def _as_tensor(member: Any, place: Place, index: int) -> Tensor:
    try:
        return to_image(member) if hasattr(member, "convert") else torch.as_tensor(member)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"loader.in_memory: true needs numbers, and member {place!r} of sample {index} is no number ({error})"
        raise ValueError(message) from error
