"""Batches of a stack: those taken ahead are those of each job alone, to the bit."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from datasets.transforms import RandomShift
from runner.data.batches import make_split
from runner.data.in_memory import InMemoryBatches, JoinedBatches
from runner.data.interfaces import LoaderSettings
from runner.data.samples import Pipeline, Placement, Stream
from runner.train.vectorized import batches_ahead
from runner.train.vectorized.evaluation import StackEvaluation, adjust_strides
from runner.train.vectorized.stack import Stack

CPU = torch.device("cpu")
STEPS = 6  # of 23 samples by four; the last has three


def make_run(seed: int, *, shifted: bool = False) -> Any:
    """What the batches of a stack ask of a run."""
    dataset = TensorDataset(torch.rand(23, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(23))
    pipeline = Pipeline({"shift": RandomShift(1)} if shifted else {})
    settings = LoaderSettings(batch_size=4, shuffle=True)
    split = make_split(dataset, None, pipeline, Stream(seed, "train"), Placement(CPU), settings)
    assert isinstance(split, InMemoryBatches)
    return SimpleNamespace(
        device=CPU, splits={"train": split}, rhythm=SimpleNamespace(accumulate=1), progress=SimpleNamespace(left_out=[])
    )


def take_epoch(ahead: batches_ahead.BatchesAhead, runs: list[Any], epoch: int, start: int = 0) -> list[list[Tensor]]:
    """Take an epoch for a stack, as its loop does."""
    coming: list[Any] = [run.splits["train"].batches(epoch, start) for run in runs]
    taken = []
    while start + len(taken) < STEPS:
        if not ahead.ready:
            coming = ahead.take(coming, STEPS - start - len(taken))
        batch, dims = ahead.ready.popleft()
        assert dims == (0, 0)
        taken.append([*batch])
    return taken


def take_alone(seeds: list[int], epoch: int, start: int = 0, *, shifted: bool = False) -> list[list[Tensor]]:
    """Take the same batches job by job."""
    each = [make_run(seed, shifted=shifted).splits["train"].batches(epoch, start) for seed in seeds]
    return [[torch.stack(members) for members in zip(*row, strict=True)] for row in zip(*each, strict=True)]


def is_equal(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> bool:
    """Return whether all batches have the same numbers."""
    rows = [pair for own, other in zip(ours, theirs, strict=True) for pair in zip(own, other, strict=True)]
    return all(torch.equal(one, two) for one, two in rows)


@pytest.mark.parametrize("most", [2**23, 2 * 4 * 3 * 72])
@pytest.mark.parametrize("shifted", [False, True])
def test_batches_taken_ahead_are_those_of_each_job(monkeypatch, most, shifted):
    """Several epochs, at once or two steps at a time, one of them from a batch on: order, pixels and labels."""
    monkeypatch.setattr(batches_ahead, "MOST_JOINED", most)
    seeds = [1, 2, 3]
    runs = [make_run(seed, shifted=shifted) for seed in seeds]
    ahead = batches_ahead.BatchesAhead(runs)

    for epoch, start in ((0, 0), (1, 2), (2, 5), (9, 0)):
        assert is_equal(take_epoch(ahead, runs, epoch, start), take_alone(seeds, epoch, start, shifted=shifted))
    assert not ahead._verified


def test_a_job_that_leaves_takes_its_batches_along():
    """Those that were taken for the others are still theirs."""
    runs = [make_run(seed) for seed in (1, 2, 3)]
    ahead = batches_ahead.BatchesAhead(runs)
    ahead.take([run.splits["train"].batches(0) for run in runs], STEPS)

    ahead.keep([0, 2])

    assert is_equal([[*batch] for batch, _ in ahead.ready], take_alone([1, 3], 0)[: len(ahead.ready)])


def test_what_is_cut_already_goes_on_batch_by_batch():
    """Jobs of which one has begun its epoch by itself are stacked from the batches that are left."""
    runs = [make_run(seed) for seed in (1, 2)]
    coming = [run.splits["train"].batches(0) for run in runs]
    for one in coming:
        next(one)
    ahead = batches_ahead.BatchesAhead(runs)
    ahead.take(coming, STEPS - 1)

    assert is_equal([[*batch] for batch, _ in ahead.ready], take_alone([1, 2], 0)[1:])


def test_joined_batches_are_cut_as_they_are_asked_for():
    """A part is seen whole before its first batch, and not within it."""
    batches = make_run(1).splits["train"].batches(0)
    assert isinstance(batches, JoinedBatches)
    whole = batches.peek()
    assert whole is not None
    batches.skip(4)

    rest = [*batches]

    assert torch.equal(torch.cat([row[1] for row in rest]), whole[0][1][16:])
    assert batches.peek() is None


def test_images_of_one_channel_are_laid_out_for_convolutions():
    """They have the strides of channels_last, and their numbers; other tensors stay as they are."""
    images, others = torch.rand(5, 1, 8, 8), [torch.rand(5, 3, 8, 8), torch.rand(5, 8), torch.arange(5)]

    laid_out = adjust_strides(images)

    assert laid_out.stride() == (64, 1, 8, 1)
    assert torch.equal(laid_out.clone(), images)
    assert all(adjust_strides(other) is other for other in others)
    assert adjust_strides(torch.rand(5, 1, 2, 2, 2)).stride() == (8, 1, 4, 2, 1)


def test_an_evaluation_lays_out_the_images_that_all_jobs_share():
    """What a convolution gets has the strides of channels_last, at each evaluation."""
    images = torch.rand(5, 1, 8, 8)
    split = SimpleNamespace(unchanging=[(images, torch.arange(5))])
    runs = [SimpleNamespace(splits={"val": split}) for _ in range(2)]
    evaluation = StackEvaluation(cast("Stack", SimpleNamespace(runs=runs, direct=True)))

    seen = [batch[0] for _ in range(2) for batch, _ in evaluation._iterate_batches("val")]

    assert [one.stride() for one in seen] == [(64, 1, 8, 1)] * 2
    assert all(torch.equal(one, images) for one in seen)
