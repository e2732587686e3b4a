"""From datasets to batches, in one of three ways, and why that one.

`Gathered` holds whole tensors on the device, takes one gather for many batches and runs batched transforms; `Loaded`
goes through torch's DataLoader, sample by sample; `Streamed` does so with a dataset that owns its order. All draw order
and augmentation from keys (seed, epoch, index, transform name), so a batch depends neither on workers nor on what ran
before, and a resume skips straight to its batch.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from runner.core import rng
from runner.data.bad_samples import Faults
from runner.data.batched.chain import Chain
from runner.data.batched.steps import NotBatched
from runner.data.in_memory import Gathered
from runner.data.interfaces import Indices, LoaderSettings, Split
from runner.data.keyed_samples import KeyedSamples, KeyedStream
from runner.data.per_sample import Loaded, Streamed
from runner.data.samples import Order, Pipeline, Placement, Stream
from runner.data.sharding import Share, Shared, Sliced
from runner.data.whole_dataset import Whole, stacked, whole_data


class Nothing:
    """The batches of a step that needs no data: None, so many an epoch."""

    size, plan, fingerprint, sampler = 0, "no data", "", None

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[None]:
        """None for each step that is left of the epoch."""
        return repeat(None, self.num_batches - start)

    def sample_indices(self, epoch: int, batch: int) -> None:
        """Give nothing: there is no dataset."""


class Mixed:
    """A split whose batches go through further transforms (MixUp, CutMix), drawn by (seed, epoch, batch, name)."""

    def __init__(self, split: Split, transforms: Mapping[str, Callable[[Any], Any]], stream: Stream) -> None:
        self.split, self.transforms, self.stream = split, transforms, stream
        self.size, self.num_batches, self.fingerprint = split.size, split.num_batches, split.fingerprint
        self.sampler = split.sampler
        self.plan = f"{split.plan}; per batch: {', '.join(transforms)}"

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on, transformed on the device; draws are made on the CPU."""
        for number, batch in enumerate(self.split.batches(epoch, start), start):
            changed = batch
            for name, transform in self.transforms.items():
                with rng.stream(self.stream.key(epoch, number, name)):
                    changed = transform(changed)
            yield changed

    def sample_indices(self, epoch: int, batch: int) -> list[int] | None:
        """Give the dataset's indices of a batch of all processes; None where the dataset owns its order."""
        return self.split.sample_indices(epoch, batch)


def chosen_indices(dataset: Any, indices: Indices | None, split: str, limit: int | None) -> Indices:
    """The samples of a split: all or `indices`, of which `limit` are a fixed random choice.

    Raises:
        ValueError: there is none.
    """
    indices = np.arange(len(dataset)) if indices is None else indices
    if limit is not None and limit < len(indices):
        indices = np.sort(indices[rng.draw_permutation(rng.derive_key(0, "limit", split), len(indices))[:limit]])
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
