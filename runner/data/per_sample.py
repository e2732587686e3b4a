"""Batches through torch's DataLoader: sample by sample, any dataset, any number of workers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate, default_convert

from runner.core.copies import copy_owned
from runner.core.errors import RunError
from runner.core.trees import iterate_tensors, mark_samples
from runner.data.bad_samples import BadSample, find_unjoinable
from runner.data.fingerprint import compute_fingerprint
from runner.data.interfaces import STREAMED_FINGERPRINT, DataPlan, PlanKind
from runner.data.keyed_samples import KeyedSamples, KeyedStream
from runner.data.prefetch import prefetch_to_device
from runner.data.samples import EpochOrder, Placement
from runner.data.sharding import Shard
from runner.data.workers import WorkerInit, iterate_sound_batches


class _EpochBatchSampler:
    """Batch sampler of the DataLoader: (epoch, position) for the coming epoch, with the time if asked."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[Any, ...]]] = []

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Collate:
    """Collate function: a batch of the sound samples (None if there is none), and the bad samples.

    A user's function gets copies: it may change them, and they may be the dataset's own. Lists that it makes, of one
    thing a sample, are marked as such: from their tensors alone nobody can tell an image's channels from samples.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self.collate_fn = collate_fn or default_collate
        self.copies = collate_fn is not None

    def __call__(self, samples: list[Any]) -> tuple[Any, list[BadSample]]:
        """Collate the sound samples; return the batch and the bad samples."""
        faults = [sample for sample in samples if isinstance(sample, BadSample)]
        good = [sample for sample in samples if not isinstance(sample, BadSample)] if faults else samples
        if self.copies:
            good = [copy_owned(sample) for sample in good]
        if not good:
            return None, faults
        try:
            given = [*iterate_tensors(good)] if self.copies else []
            count, batch = len(good), self.collate_fn(good)
            return (mark_samples(batch, count, given) if self.copies else batch), faults
        except RuntimeError as error:
            if not self.copies and (rule := find_unjoinable(good[0])):
                raise RunError(rule) from error
            raise


class TakeWhole:
    """Collate function of samples that are whole batches: one of them, its arrays as tensors."""

    collate_fn = None

    def __call__(self, samples: list[Any]) -> tuple[Any, list[BadSample]]:
        """Return the batch, or the bad sample in its place."""
        (sample,) = samples
        return (None, [sample]) if isinstance(sample, BadSample) else (default_convert(sample), [])


def _make_collate(collate_fn: Callable[[list[Any]], Any] | None, batch_size: int | None) -> Collate | TakeWhole:
    return TakeWhole() if batch_size is None else Collate(collate_fn)


class DataLoaderBatches:
    """Batches of a DataLoader: any dataset with `__len__` and `__getitem__`, any collate, any workers."""

    def __init__(
        self,
        samples: KeyedSamples,
        order: EpochOrder,
        placement: Placement,
        *,
        batch_size: int | None,
        drop_last: bool = False,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        reason: str = "",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        share: Shard | None = None,
        **settings: Any,
    ) -> None:
        self.share = share or Shard()
        self.order, self.placement, self.batch_size, self.drop_last = order, placement, batch_size or 1, drop_last
        self.batch_sampler, self.samples, self.sampler = batch_sampler, samples, order.sampler
        self.size = len(samples)
        self.fingerprint = compute_fingerprint(samples.dataset, samples.indices)
        self.rows = _EpochBatchSampler()
        samples.takes_none = collate_fn is not None
        whole = batch_size is None
        self.clock, self.split = samples.stream.clock, samples.stream.split
        if collate_fn is None and self.batch_size > 1 and not self.clock.active:
            samples.probe()
        if num_workers:
            samples.at = torch.full((num_workers,), -1, dtype=torch.int64).share_memory_()
        # A generator of its own: every iter(DataLoader) draws a seed, from the global one unless told.
        self.loader = DataLoader(
            samples,
            batch_sampler=self.rows,
            generator=torch.Generator(),
            collate_fn=_make_collate(collate_fn, batch_size),
            num_workers=num_workers,
            worker_init_fn=WorkerInit(worker_init_fn) if num_workers else None,
            **settings,
        )
        self.num_batches = len(self._positions(0))
        self.sizes: list[int] = []  # of the batches of the epoch under way, of all processes together
        where = f"by {num_workers} worker{'s' * (num_workers != 1)}" if num_workers else "in this process"
        kind = PlanKind.WHOLE_BATCHES if whole else PlanKind.PER_SAMPLE
        self.plan = DataPlan(kind, f"{kind}, {where}" + (f" ({reason})" if reason else ""))

    def _positions(self, epoch: int) -> list[list[int]]:
        if self.batch_sampler is not None:
            drawn = self.order.draw(self.batch_sampler, epoch, "loader.batch_sampler", "batches")
            return [list(batch) for batch in drawn]
        order = self.order(epoch).tolist()
        rows = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        return rows[:-1] if self.drop_last and rows and len(rows[-1]) < self.batch_size else rows

    def whole(self, number: int) -> int:
        """Count the samples of batch `number` of the epoch under way, over all processes."""
        return self.sizes[number] if number < len(self.sizes) else 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over an epoch's collated batches from number `start` on, without reading earlier ones.

        Raises:
            RunError: a sample cannot be had (and is not to be skipped), a worker died or hangs.
        """
        first = self.clock.begin(self.split, epoch, start)
        positions = self._positions(epoch)
        self.sizes = [len(row) for row in positions]
        rows: list[list[tuple[Any, ...]]] = []
        for number, row in enumerate(self.share.rows(positions)[start:], start):
            when = (self.clock.when(self.split, epoch, first, number),) if self.clock.active else ()
            rows.append([(epoch, position, *when) for position in row])
        self.rows.rows = rows
        yield from prefetch_to_device(iterate_sound_batches(self.loader, self.samples), self.placement)

    def sample_indices(self, epoch: int, batch: int) -> list[int]:
        """Give the dataset's indices of a batch of all processes."""
        return [int(index) for index in self.samples.indices[self._positions(epoch)[batch]]]


class StreamedBatches:
    """Batches of an iterable dataset, which owns its order: a resume within an epoch reads what it skips."""

    sampler = None

    def __init__(
        self,
        samples: KeyedStream,
        placement: Placement,
        *,
        batch_size: int | None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> None:
        self.samples, self.placement = samples, placement
        samples.takes_none = collate_fn is not None
        samples.of_one_shape = collate_fn is None and (batch_size or 1) > 1
        samples.batch_size = batch_size or 1
        if num_workers:
            samples.epoch.share_memory_()
            samples.first.share_memory_()
            samples.at = torch.full((num_workers,), -1, dtype=torch.int64).share_memory_()
        self.loader = DataLoader(
            samples,
            batch_size=batch_size or 1,
            generator=torch.Generator(),
            collate_fn=_make_collate(collate_fn, batch_size),
            num_workers=num_workers,
            worker_init_fn=WorkerInit(worker_init_fn) if num_workers else None,
            **settings,
        )
        self.size = len(samples.dataset) if hasattr(samples.dataset, "__len__") else 0
        self.num_batches = None
        self.fingerprint = STREAMED_FINGERPRINT
        where = f", by {num_workers} worker{'s' * (num_workers != 1)}" if num_workers else ""
        whole = ", each sample a whole batch" * (batch_size is None)
        self.plan = DataPlan(PlanKind.STREAMED, f"{PlanKind.STREAMED}{where}{whole}")

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch; read and drop the first `start`.

        Raises:
            RunError: a sample cannot be had (and cannot or is not to be skipped), a worker died or hangs.
        """
        clock, split = self.samples.clock, self.samples.stream.split
        first = clock.begin(split, epoch)
        self.samples.first.copy_(torch.tensor(clock.when(split, epoch, first, 0)))
        self.samples.epoch.fill_(epoch)
        coming = iterate_sound_batches(self.loader, self.samples)
        yield from prefetch_to_device(itertools.islice(coming, start, None), self.placement)

    def sample_indices(self, epoch: int, batch: int) -> None:
        """Give nothing: the dataset owns its order."""
