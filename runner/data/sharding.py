"""Shards of a batch or an epoch: one process's part of the samples that all processes train on."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.core.trees import count_samples, slice_samples
from runner.data.interfaces import Indices, Split


@dataclass(frozen=True)
class Shard:
    """Shard of a single process: all samples of each batch.

    Attributes:
        rank: the number of this process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        """Return this process's rows of an epoch's batches, each a row of positions, in order."""
        return list(rows)

    def positions(self, order: Indices, batch_size: int) -> Indices:
        """Return this process's positions of an epoch in batches of `batch_size`, concatenated."""
        return order

    def size(self, batch_size: int) -> int:
        """Return this process's number of samples of a full batch."""
        return batch_size

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        """Count the valid samples of this process's batch `number`, and those of all processes.

        `sizes(k)` is the number of samples of batch k, 0 beyond the last.
        """
        return sizes(number), sizes(number)


class ShardedBatches:
    """Split whose batches are sharded: this process makes only its own share.

    Attributes:
        given: the batches that nobody has asked about yet, each with how many of its samples count here, and how many
            it has for all processes together.
    """

    def __init__(self, split: Any, share: Shard) -> None:
        self.split, self.share = split, share
        self.size, self.num_batches, self.fingerprint = split.size, split.num_batches, split.fingerprint
        self.sampler = split.sampler
        self.plan = split.plan.extend(f"shared by {share.world} processes")
        self.given: deque[tuple[Any, tuple[int, int]]] = deque()
        self.last = (1, 1)

    def counts(self, batch: Any) -> tuple[int, int]:
        """Count the valid samples of a batch in this process, and those of all processes.

        Asked once for each batch, in order; a piece of a batch counts as that.
        """
        if self.given and self.given[0][0] is batch:
            self.last = self.given.popleft()[1]
        return self.last

    def count_next(self) -> tuple[int, int]:
        """Give the counts of the oldest batch that nobody has asked about."""
        return self.counts(self.given[0][0])

    def count_coming(self, batches: Sequence[Any]) -> list[int]:
        """Count the samples of batches that nobody has asked about yet, over all processes."""
        coming = {id(batch): whole for batch, (_, whole) in self.given}
        return [coming[id(batch)] for batch in batches]

    def sample_indices(self, epoch: int, batch: int) -> list[int] | None:
        """Give the dataset's indices of a batch of all processes; None where the dataset owns its order."""
        indices: list[int] | None = self.split.sample_indices(epoch, batch)
        return indices

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over this process's share of an epoch's batches from number `start` on."""
        self.given.clear()
        for batch, counts in self._counted(epoch, start):
            self.given.append((batch, counts))
            yield batch

    def iterate_aside(self, epoch: int) -> Iterator[Any]:
        """Iterate over this process's share of an epoch; nobody asks for the counts of these batches."""
        return (batch for batch, _ in self._counted(epoch, 0))

    def _counted(self, epoch: int, start: int) -> Iterator[tuple[Any, tuple[int, int]]]:
        for number, batch in enumerate(self.split.batches(epoch, start), start):
            yield batch, self.share.counts(number, self.split.whole)


class _RankShard(Shard):
    def positions(self, order: Indices, batch_size: int) -> Indices:
        rows = self.rows([order[first : first + batch_size] for first in range(0, len(order), batch_size)])
        return np.concatenate(rows) if rows else order[:0]


class EvenShard(_RankShard):
    """Even shard of every batch, for training; the first ranks take one more of a remainder.

    Where there are fewer samples than processes, those without get some that do not count: all of them take part in
    every step.
    """

    def part(self, length: int) -> slice:
        """Return the slice of this process's samples in a batch of `length` samples; may be empty."""
        base, more = divmod(length, self.world)
        start = self.rank * base + min(self.rank, more)
        return slice(start, start + base + (self.rank < more))

    def taken(self, row: Any) -> Any:
        """Return this process's part of a row, or the first sample of the row if that is empty."""
        own = row[self.part(len(row))]
        return own if len(own) else row[:1]

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        return [self.taken(row) for row in rows]

    def size(self, batch_size: int) -> int:
        return batch_size // self.world

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        whole = sizes(number)
        part = self.part(whole)
        return part.stop - part.start, whole


class SlicedBatches(ShardedBatches):
    """Split whose whole batches every process makes and then slices: batch transforms, iterable datasets."""

    def __init__(self, split: Split, share: Shard) -> None:
        super().__init__(split, share)
        self.plan = split.plan.extend(f"made by each of {share.world} processes, which takes its share")

    def _counted(self, epoch: int, start: int) -> Iterator[tuple[Any, tuple[int, int]]]:
        batches = self.split.batches(epoch, start)
        yield from self._parts(batches, self.share) if isinstance(self.share, EvenShard) else self._turns(batches)

    def _parts(self, batches: Iterator[Any], share: EvenShard) -> Iterator[tuple[Any, tuple[int, int]]]:
        for batch in batches:
            whole = count_samples(batch)
            own = share.part(whole)
            count = own.stop - own.start
            yield slice_samples(batch, whole, own if count else slice(0, 1)), (count, whole)

    def _turns(self, batches: Iterator[Any]) -> Iterator[tuple[Any, tuple[int, int]]]:
        while turn := list(itertools.islice(batches, self.share.world)):
            own = self.share.rank < len(turn)
            batch = turn[self.share.rank if own else -1]
            count = count_samples(batch) * own
            yield batch, (count, count)


class RoundRobinShard(_RankShard):
    """Round-robin shard of whole batches, for evaluation on the very batches of a single process.

    In the last turn, those for whom none is left do the last one too, and it does not count.
    """

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        own = list(rows[self.rank :: self.world])
        return own if len(own) * self.world >= len(rows) else [*own, rows[-1]]

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        size = sizes(number * self.world + self.rank)
        return size, size
