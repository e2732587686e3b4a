"""Augmentation is drawn as it should be: evenly, independently, and in memory as sample by sample."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from datasets.transforms import RandomShift
from runner.data import batches as data_batches
from runner.data import interfaces
from runner.data.batched.chain import BatchedTransforms
from runner.data.samples import Pipeline, Placement, Stream

CPU = Placement(torch.device("cpu"))
LEAST = 1e-4  # of a p-value: one honest test in ten thousand is below


def chi_square(counts: Any, expected: Any) -> float:
    """The p-value of counts against expected ones (Wilson and Hilferty 1931: the cube root is nearly normal)."""
    counts, expected = np.asarray(counts, float).ravel(), np.asarray(expected, float).ravel()
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    return float(1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(z)))


def places(count: int = 40, size: int = 9) -> TensorDataset:
    """Images whose pixels say where they are: channel 0 the row, 1 the column, 2 the sample."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = torch.stack([rows, columns, rows * 0]).repeat(count, 1, 1, 1)
    images[:, 2] = torch.arange(count)[:, None, None]
    return TensorDataset(images.to(torch.uint8), torch.arange(count))


def seen(transform: Any, seed: int, epochs: int, *, memory: bool) -> Tensor:
    """All images of some epochs, [epochs, 40, 3, H, W], in the order of the samples."""
    settings = interfaces.LoaderSettings(batch_size=16, shuffle=True, in_memory=memory)
    made = data_batches.make_split(places(), None, Pipeline({"it": transform}), Stream(seed, "train"), CPU, settings)
    found = []
    for epoch in range(epochs):
        batches = list(made.batches(epoch))
        order = torch.cat([batch[1] for batch in batches]).argsort()
        found.append(torch.cat([batch[0] for batch in batches])[order])
    return torch.stack(found)


def corner(images: Tensor) -> Tensor:
    """Row and column of the pixel in the middle of each image, int64 [..., 2]."""
    middle = images.shape[-1] // 2
    return images[..., :2, middle, middle].long()


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(
    ("transform", "moves"), [(v2.RandomCrop(7), 3), (RandomShift(2), 5), (v2.RandomCrop(9, padding=1), 3)]
)
def test_each_place_is_as_likely(transform: Any, moves: int, memory: bool, seed: int) -> None:
    """Rows and columns are uniform and independent, and so are epochs and neighbours."""
    found = corner(seen(transform, seed, 60, memory=memory))
    found = found - found.amin((0, 1))
    counts = torch.zeros(moves, moves)
    for row, column in found.flatten(0, 1).tolist():
        counts[row, column] += 1
    assert chi_square(counts, torch.full((moves, moves), 60 * 40 / moves**2)) > LEAST
    number = found[..., 0] * moves + found[..., 1]
    pairs = {"epochs": (number[:-1], number[1:]), "samples": (number[:, :-1], number[:, 1:])}
    for one, two in pairs.values():
        equal = int((one == two).sum())
        chance = one.numel() / moves**2
        assert chi_square([equal, one.numel() - equal], [chance, one.numel() - chance]) > LEAST


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("p", [0.5, 0.1])
def test_flips_are_as_likely_as_said(p: float, memory: bool, seed: int) -> None:
    """Of all samples and epochs, of each sample, of each epoch; and not in step with a crop."""
    flipped = seen(v2.RandomHorizontalFlip(p), seed, 80, memory=memory)[..., 1, 0, 0] != 0
    for counts in (flipped.sum()[None], flipped.sum(0), flipped.sum(1)):
        total = flipped.numel() / len(counts)
        rows = torch.stack([counts, total - counts], 1)
        assert chi_square(rows, torch.tensor([p * total, (1 - p) * total]).expand(len(counts), 2)) > LEAST


def test_in_memory_and_sample_by_sample_draw_alike(seed: int) -> None:
    """The areas of a resized crop, the boxes that are erased, the factors of a jitter have the same distribution."""
    crop = v2.RandomResizedCrop(9, scale=(0.1, 1.0), interpolation=v2.InterpolationMode.NEAREST)
    measures: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
        (crop, lambda images: images[..., 0, -1, 0].long() - images[..., 0, 0, 0].long()),
        (v2.RandomErasing(0.6, value=255), lambda images: (images[..., 0, :, :] == 255).sum((-1, -2))),
    ]
    for transform, measure in measures:
        one, two = (measure(seen(transform, seed + memory, 60, memory=memory)).flatten() for memory in (True, False))
        edges = torch.quantile(torch.cat([one, two]).double(), torch.linspace(0, 1, 7)[1:-1].double()).unique()
        table = torch.stack([torch.bincount(torch.bucketize(x.double(), edges), minlength=7) for x in (one, two)])
        table = table[:, table.sum(0) > 10]
        both = table.sum(0).double() / 2
        statistic = float(((table - both) ** 2 / both).sum())
        freedom = table.shape[1] - 1
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_the_numbers_of_a_chain_are_uniform(seed: int) -> None:
    """Each column of each transform, over samples and over epochs; no two columns alike."""
    jitter = {"one": v2.ColorJitter(0.1, 0.1, 0.1, 0.1), "two": v2.RandomResizedCrop(5)}
    chain = BatchedTransforms(jitter, torch.zeros(3, 9, 9, dtype=torch.uint8), pil=False)
    from runner.core import rng

    columns = []
    for name, draws in chain.draws.items():
        by_sample = rng.draw_uniforms(rng.derive_key(seed, 0, name), np.arange(2000), draws)
        by_epoch = torch.cat(
            [rng.draw_uniforms(rng.derive_key(seed, epoch, name), np.array([5]), draws) for epoch in range(2000)]
        )
        for numbers in (by_sample, by_epoch):
            for column in numbers.T:
                assert chi_square(torch.histc(column, 20, 0, 1), torch.full((20,), 100.0)) > LEAST / 10
                columns.append(column)
    for one, two in pairwise(columns):
        assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.12  # five standard deviations
