"""Make the batches of a split in one of three ways, and describe the reason for that way.

`InMemoryBatches` holds whole tensors on the device: one gather for many batches, then batched transforms.
`DataLoaderBatches` goes through torch's DataLoader, sample by sample. `StreamedBatches` does so with a dataset that
owns its order. All draw order and augmentation from keys (seed, epoch, index, transform name), so a batch depends
neither on workers nor on what ran before, and a resume skips straight to its batch.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from runner.core import rng
from runner.data.bad_samples import BadSamples
from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.steps import NotBatched
from runner.data.in_memory import InMemoryBatches
from runner.data.interfaces import DataPlan, Fingerprint, Indices, LoaderSettings, PlanKind, Split
from runner.data.keyed_samples import KeyedSamples, KeyedStream
from runner.data.per_sample import DataLoaderBatches, StreamedBatches
from runner.data.samples import EpochOrder, Pipeline, Placement, Stream
from runner.data.sharding import Shard, ShardedBatches, SlicedBatches
from runner.data.whole_dataset import DatasetTensors, find_dataset_tensors, stack_samples


class NoData:
    """Batches of a step that needs no data: None, `num_batches` times per epoch."""

    size, plan, fingerprint, sampler = 0, DataPlan(PlanKind.NO_DATA, "no data"), Fingerprint(), None

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[None]:
        """Yield None for each remaining step of the epoch."""
        return repeat(None, self.num_batches - start)

    def sample_indices(self, epoch: int, batch: int) -> None:
        """Give nothing: there is no dataset."""


class BatchTransforms:
    """Split with transforms of whole batches (MixUp, CutMix), drawn by (seed, epoch, batch, name)."""

    def __init__(self, split: Split, transforms: Mapping[str, Callable[[Any], Any]], stream: Stream) -> None:
        self.split, self.transforms, self.stream = split, transforms, stream
        self.size, self.num_batches, self.fingerprint = split.size, split.num_batches, split.fingerprint
        self.sampler = split.sampler
        self.plan = split.plan.extend(f"per batch: {', '.join(transforms)}")

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield an epoch's batches from `start` on, transformed on the device with draws from the CPU."""
        clock = self.stream.clock
        first = clock.find_first_step(epoch)
        for number, batch in enumerate(self.split.batches(epoch, start), start):
            changed = batch
            if clock.active:
                clock.set(clock.when(self.stream.split, epoch, first, number))
            for name, transform in self.transforms.items():
                with rng.stream(self.stream.key(epoch, number, name)):
                    changed = transform(changed)
            yield changed

    def sample_indices(self, epoch: int, batch: int) -> list[int] | None:
        """Give the dataset's indices of a batch of all processes; None where the dataset owns its order."""
        return self.split.sample_indices(epoch, batch)


def choose_indices(dataset: Any, indices: Indices | None, split: str, limit: int | None) -> Indices:
    """Return a split's samples: all or `indices`, or a fixed random choice of `limit` of them.

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
    faults: BadSamples | None = None,
    share: Shard | None = None,
) -> Split:
    """Make the batches of samples `indices` (None: all), gathered from memory if possible and allowed.

    With a `share`, what this process of several has of them.

    Raises:
        ValueError: `in_memory: true` cannot be had, or the split is empty.
        RunError: the data is unsound.
    """
    faults = faults or BadSamples(stream.split)
    stream.clock.follow(dataset, timed=settings.timed or bool(pipeline.timed))
    share = share if share is not None and share.world > 1 else None
    whole = settings.batch_size is None
    sliced = share is not None and (bool(batch_transforms) or whole or isinstance(dataset, IterableDataset))
    if isinstance(dataset, IterableDataset):
        samples = KeyedStream(dataset, pipeline, stream, limit, faults)
        split: Split = StreamedBatches(
            samples,
            placement,
            batch_size=settings.batch_size,
            drop_last=settings.drop_last,
            num_workers=settings.num_workers,
            **settings.options,
        )
    else:
        indices = choose_indices(dataset, indices, stream.split, limit)
        split = _make_indexed_split(
            dataset, indices, pipeline, stream, placement, settings, faults, None if sliced else share
        )
    split = BatchTransforms(split, batch_transforms, stream) if batch_transforms else split
    if share is None:
        return split
    return SlicedBatches(split, share) if sliced else ShardedBatches(split, share)


def _make_indexed_split(
    dataset: Any,
    indices: Indices,
    pipeline: Pipeline,
    stream: Stream,
    placement: Placement,
    settings: LoaderSettings,
    faults: BadSamples,
    share: Shard | None,
) -> Split:
    order = EpochOrder(len(indices), stream, shuffle=settings.shuffle, sampler=settings.sampler)
    found = plan_in_memory(dataset, indices, pipeline, stream, settings, faults)
    if not isinstance(found, str):
        whole, chain = found
        assert settings.batch_size is not None
        return InMemoryBatches(
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
    return DataLoaderBatches(
        KeyedSamples(dataset, indices, pipeline, stream, faults),
        order,
        placement,
        batch_size=settings.batch_size,
        drop_last=settings.drop_last,
        batch_sampler=settings.batch_sampler,
        reason=found if settings.batch_size is not None else "",
        num_workers=settings.num_workers,
        share=share,
        **settings.options,
    )


def plan_in_memory(
    dataset: Any, indices: Indices, pipeline: Pipeline, stream: Stream, settings: LoaderSettings, faults: BadSamples
) -> tuple[DatasetTensors, BatchedTransforms | None] | str:
    """Return whole tensors and batched transforms for in-memory batches, or the reason against them.

    Raises:
        ValueError: they cannot, and `in_memory` is true.
        RunError: `in_memory` is true, and a sample cannot be had.
    """
    reason = explain_per_sample(pipeline, settings, collates=settings.options.get("collate_fn") is not None)
    if not reason and stream.clock.changes(dataset):
        reason = "the dataset has a `set_epoch`, so its samples may change"
    found: tuple[DatasetTensors, BatchedTransforms | None] | str = reason
    if not reason:
        whole = find_dataset_tensors(dataset)
        if whole is None and settings.in_memory is True:
            whole = stack_samples(dataset, indices, stream, faults)
        found = "the dataset's tensors are not known as a whole"
        if whole is not None:
            found = _build_transforms(whole, pipeline, settings, skip=faults.skip)
    if isinstance(found, str) and settings.in_memory is True:
        message = f"loader.in_memory: true cannot be had: {found}"
        raise ValueError(message)
    return found


def _build_transforms(
    whole: DatasetTensors, pipeline: Pipeline, settings: LoaderSettings, *, skip: bool
) -> tuple[DatasetTensors, BatchedTransforms | None] | str:
    """Return the whole tensors with their batched transforms, or the reason why there are none."""
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
        sample = whole.tensors[pipeline.place][0]
        chain = BatchedTransforms(pipeline.transforms, sample, pil=pil)
        if pipeline.timed:
            BatchedTransforms(pipeline.transforms, sample, pil=pil, always=True)
    except NotBatched as error:
        return str(error)
    if skip and chain.looped:
        return f"what {next(iter(chain.looped))} refuses is to be skipped"
    return whole, chain


def explain_per_sample(pipeline: Pipeline, settings: LoaderSettings, *, collates: bool) -> str:
    """Explain why samples must be made one by one for any dataset; empty if they need not be."""
    reasons = {
        "the dataset gives whole batches": settings.batch_size is None,
        "loader.in_memory is false": settings.in_memory is False,
        "workers are asked for": settings.num_workers > 0,
        "loader.batch_sampler is given": settings.batch_sampler is not None,
        "loader.collate_fn is given": collates,
        "the dataset looks at the progress of training": settings.timed,
        "transforms change whole samples": bool(pipeline.transforms) and pipeline.place is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
