"""Batches of a stack, taken from memory for several steps at once.

To stack the batches of each step by themselves costs more than the copy.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from runner.core.trees import iterate_tensors, map_in_kind
from runner.data.in_memory import InMemoryBatches, JoinedBatches
from runner.train.state import Run

MOST_BYTES = 2**20  # of the batches of all jobs that are stacked at once: what stays in the cache of a core
MOST_JOINED = 2**23  # of those that lie joined in memory already, which are copied in one go

StackedBatch = tuple[Any, Any]  # a batch whose tensors are [jobs, ...], and the dimensions of its jobs for vmap


class BatchesAhead:
    """Stacked batches of the next steps.

    Args:
        runs: of the stack. Where one of them makes its batches when they are due, none is taken ahead.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.device = runs[0].device
        self.can = all(map(is_in_memory, runs)) and runs[0].rhythm.accumulate == 1
        self.ready: deque[StackedBatch] = deque()
        splits = [split for run in runs if isinstance(split := run.splits["train"], InMemoryBatches)]
        self.joins = self.can and all(split.sound is None for split in splits)  # no sample is left out of a batch
        self.as_mapping = self.joins and splits[0].as_mapping
        self._verified = False  # tensors in memory keep their kind and their shapes

    def take(self, coming: Sequence[Iterator[Any]], left: int) -> list[Iterator[Any]]:
        """Take the next batches of all jobs, at most `left`; return what comes after them.

        Where they cannot be stacked at once none is taken, now or later.
        """
        if self.joins and self._take_joined(coming, left):
            return [*coming]
        first = [next(each, None) for each in coming]
        size = sum(tensor.nbytes for tensor in iterate_tensors(first))
        more = min(left, max(1, MOST_BYTES // max(1, size))) - 1
        taken = [[one, *islice(each, more)] for one, each in zip(first, coming, strict=True)]
        self._verified = self._verified or can_be_stacked(taken)
        if self._verified and all(one is not None for one in first) and len({*map(len, taken)}) == 1:
            whole = [own[:-1] for own in taken]  # the last batch of an epoch may be smaller
            for steps in (whole, [own[-1:] for own in taken]):
                self.ready += stack_steps(steps)
            return [*coming]
        self.can = False  # the next step says why, of the job that it is of
        return [chain((one for one in own if one is not None), rest) for own, rest in zip(taken, coming, strict=True)]

    def _take_joined(self, coming: Sequence[Iterator[Any]], left: int) -> bool:
        """Take the next batches of all jobs from where they lie joined; return whether that could be."""
        parts = [one.peek() if isinstance(one, JoinedBatches) else None for one in coming]
        members = [part[0] for part in parts if part is not None]
        if len(members) < len(parts) or not all(is_alike(members[0], own) for own in members[1:]):
            return False
        joined = [one for one in coming if isinstance(one, JoinedBatches)]
        size, samples = joined[0].size, len(next(iter(members[0].values())))
        if any(one.size != size for one in joined):
            return False
        each = size * len(members) * sum(member[:1].nbytes for member in members[0].values())
        steps = min(left, samples // size, max(1, MOST_JOINED // max(1, each)))
        taken = steps * size or samples  # the last batch of an epoch may be smaller
        shape = (max(1, steps), taken // max(1, steps))  # a step's batches of all jobs lie together
        columns = [torch.stack([own[place][:taken].unflatten(0, shape) for own in members], 1) for place in members[0]]
        for row in zip(*(column.to(self.device).unbind() for column in columns), strict=True):
            batch = dict(zip(members[0], row, strict=True)) if self.as_mapping else row
            self.ready.append((batch, map_in_kind(lambda _: 0, batch)))
        for one in joined:
            one.skip(max(1, steps))
        return True

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows."""
        which = torch.tensor(rows, dtype=torch.long, device=self.device)
        for number, (batch, dims) in enumerate(self.ready):
            self.ready[number] = map_in_kind(lambda tensor: tensor[which], batch), dims


def is_in_memory(run: Run) -> bool:
    """Return whether the batches of a run are views of tensors, whatever its training does meanwhile."""
    split = run.splits["train"]
    if not isinstance(split, InMemoryBatches) or split.timed or run.progress.left_out:
        return False
    return split.chain is None or not split.chain.looped  # one of several images may fail


def is_alike(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    """Return whether the samples of two jobs have the same members, shapes and dtypes, and are as many."""
    return one.keys() == other.keys() and all(
        mine.shape == theirs.shape and mine.dtype == theirs.dtype
        for mine, theirs in zip(one.values(), other.values(), strict=True)
    )


def can_be_stacked(taken: Sequence[Sequence[Any]]) -> bool:
    """Return whether the batches of several steps, given by job, are flat, and alike in all jobs."""
    lead = taken[0]
    for own in taken:
        if len(own) != len(lead) or any(type(one) is not type(lead[0]) for one in own):
            return False
        for one, other in zip((own[0], own[-1]), (lead[0], lead[-1]), strict=True):
            mine, theirs = list_members(one), list_members(other)
            if mine is None or theirs is None or len(mine) != len(theirs):
                return False
            if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(mine, theirs, strict=True)):
                return False
            if own is not lead and any(a is b for a, b in zip(mine, theirs, strict=True)):
                return False
    return True


def list_members(batch: Any) -> list[Tensor] | None:
    """List the tensors of a flat batch of tensors; None of another one."""
    members = [*batch.values()] if type(batch) is dict else [*batch] if isinstance(batch, tuple | list) else []
    return members if members and all(isinstance(member, Tensor) for member in members) else None


def stack_steps(taken: Sequence[Sequence[Any]]) -> Iterator[StackedBatch]:
    """Yield the stacked batches of several steps, which are alike, given by job: one copy for all of them."""
    if not taken[0]:
        return
    template = taken[0][0]
    steps = len(taken[0])
    columns = []
    for place in template if isinstance(template, dict) else range(len(template)):
        column = torch.stack([own[step][place] for step in range(steps) for own in taken])
        columns.append(column.unflatten(0, (steps, len(taken))).unbind())
    dims = map_in_kind(lambda _: 0, template)
    for members in zip(*columns, strict=True):
        yield put_members(template, members), dims


def put_members(template: Any, members: Sequence[Tensor]) -> Any:
    """Return a batch like another, of other tensors."""
    coming = iter(members)
    return map_in_kind(lambda _: next(coming), template)
