"""From datasets to batches, in one of three ways, and why that one.

`Gathered` holds whole tensors on the device, takes one gather for many batches and runs batched transforms; `Loaded`
goes through torch's DataLoader, sample by sample; `Streamed` does so with a dataset that owns its order. All draw order
and augmentation from keys (seed, epoch, index, transform name), so a batch depends neither on workers nor on what ran
before, and a resume skips straight to its batch.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from runner import rng
from runner.batched import Chain, NotBatched
from runner.errors import in_words
from runner.gathered import Gathered
from runner.loaded import KeyedSamples, KeyedStream, Loaded, Streamed
from runner.samples import (
    Fault,
    Faults,
    Indices,
    Order,
    Part,
    Pipeline,
    Place,
    Placement,
    Share,
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


class Nothing:
    """The batches of a step that needs no data: None, so many an epoch."""

    size, plan, fingerprint = 0, "no data", ""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[None]:
        """None for each step that is left of the epoch."""
        return repeat(None, self.num_batches - start)


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


class Shared:
    """A split of which this process has a share of the batches.

    Attributes:
        given: the batches that nobody has asked about yet, each with how many of its samples count here, and how many
            it has for all processes together.
    """

    def __init__(self, split: Any, share: Share) -> None:
        self.split, self.share = split, share
        self.size, self.num_batches, self.fingerprint = split.size, split.num_batches, split.fingerprint
        self.order = getattr(split, "order", None)
        self.plan = f"{split.plan}; shared by {share.world} processes"
        self.given: deque[tuple[Any, tuple[int, int]]] = deque()
        self.last = (1, 1)

    def counts(self, batch: Any) -> tuple[int, int]:
        """How many samples of a batch count here, and how many it has for all processes together.

        Asked once for each batch, in order; a piece of a batch counts as that.
        """
        if self.given and self.given[0][0] is batch:
            self.last = self.given.popleft()[1]
        return self.last

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """What this process has of the batches of an epoch from number `start` on."""
        self.given.clear()
        for batch, counts in self._counted(epoch, start):
            self.given.append((batch, counts))
            yield batch

    def _counted(self, epoch: int, start: int) -> Iterator[tuple[Any, tuple[int, int]]]:
        for number, batch in enumerate(self.split.batches(epoch, start), start):
            yield batch, self.share.counts(number, self.split.whole)


class Sliced(Shared):
    """The same where every process makes every batch: its transforms are of the whole one, or the dataset streams."""

    def __init__(self, split: Split, share: Share) -> None:
        super().__init__(split, share)
        self.plan = f"{split.plan}; made by each of {share.world} processes, which takes its share"

    def _counted(self, epoch: int, start: int) -> Iterator[tuple[Any, tuple[int, int]]]:
        batches = self.split.batches(epoch, start)
        yield from self._parts(batches, self.share) if isinstance(self.share, Part) else self._turns(batches)

    def _parts(self, batches: Iterator[Any], share: Part) -> Iterator[tuple[Any, tuple[int, int]]]:
        for batch in batches:
            whole = _length(batch)
            own = share.part(whole)
            count = own.stop - own.start
            yield _sliced(batch, own if count else slice(0, 1)), (count, whole)

    def _turns(self, batches: Iterator[Any]) -> Iterator[tuple[Any, tuple[int, int]]]:
        while turn := list(itertools.islice(batches, self.share.world)):
            own = self.share.rank < len(turn)
            batch = turn[self.share.rank if own else -1]
            count = _length(batch) * own
            yield batch, (count, count)


def _length(batch: Any) -> int:
    """Samples of a collated batch: the length of the first tensor or list in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    members = list(batch.values() if isinstance(batch, Mapping) else batch)
    return _length(members[0]) if isinstance(members[0], Tensor | Mapping | list | tuple) else len(members)


def _sliced(batch: Any, rows: slice) -> Any:
    """These samples of a collated batch (tensors, and lists of other things, in any nesting)."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {name: _sliced(member, rows) for name, member in batch.items()}
    if isinstance(batch, list | tuple):
        nested = bool(batch) and isinstance(batch[0], Tensor | Mapping | list | tuple)
        return [_sliced(member, rows) for member in batch] if nested else batch[rows]
    return batch


@dataclass(frozen=True)
class LoaderSettings:
    """What the config says about making batches of one split."""

    batch_size: int  # of all processes together
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
    share: Share | None = None,
) -> Split:
    """Batches of a dataset's samples `indices` (None: all), gathered from memory where that is possible and allowed.

    With a `share`, what this process of several has of them.

    Raises:
        ValueError: `in_memory: true` cannot be had, or the split is empty.
        RunError: the data is unsound.
    """
    faults = faults or Faults(stream.split)
    share = share if share is not None and share.world > 1 else None
    sliced = share is not None and (bool(batch_transforms) or isinstance(dataset, IterableDataset))
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
        split = _indexed(dataset, indices, pipeline, stream, placement, settings, faults, None if sliced else share)
    split = Mixed(split, batch_transforms, stream) if batch_transforms else split
    if share is None:
        return split
    return Sliced(split, share) if sliced else Shared(split, share)


def _indexed(
    dataset: Any,
    indices: Indices,
    pipeline: Pipeline,
    stream: Stream,
    placement: Placement,
    settings: LoaderSettings,
    faults: Faults,
    share: Share | None,
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
            share=share,
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
        share=share,
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
        found = "the dataset's tensors are not known as a whole"
        if whole is not None:
            found = _chained(whole, pipeline, settings, skip=faults.skip)
    if isinstance(found, str) and settings.in_memory is True:
        message = f"loader.in_memory: true cannot be had: {found}"
        raise ValueError(message)
    return found


def _chained(
    whole: Whole, pipeline: Pipeline, settings: LoaderSettings, *, skip: bool
) -> tuple[Whole, Chain | None] | str:
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
        chain = Chain(pipeline.transforms, whole.tensors[pipeline.place][0], pil=pil)
    except NotBatched as error:
        return str(error)
    if skip and chain.looped:
        return f"what {next(iter(chain.looped))} refuses is to be skipped"
    return whole, chain


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
            faults.note(Fault(index, in_words(error), file_of(dataset, index)))
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
