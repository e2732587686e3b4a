"""Batches of a stack, taken from memory for several steps at once.

To stack the batches of each step by themselves costs more than the copy.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from runner.core.trees import iterate_tensors, map_in_kind
from runner.data.in_memory import InMemoryBatches
from runner.train.state import Run

MOST_BYTES = 2**20  # of the batches of all jobs that are stacked at once: what stays in the cache of a core

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
        self._verified = False  # tensors in memory keep their kind and their shapes

    def take(self, coming: Sequence[Iterator[Any]], left: int) -> list[Iterator[Any]]:
        """Take the next batches of all jobs, at most `left`; return what comes after them.

        Where they cannot be stacked at once none is taken, now or later.
        """
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
