"""Metrics give what a plain computation over all samples gives."""

import math
from typing import Any

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from runner.train.metrics import WAITING, Accuracy, MeanSquaredError, get_accumulators, set_accumulators

CPU = torch.device("cpu")


def batches(count: int = 5, size: int = 7, *shape: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random logits of ten classes and targets."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 10, *shape, generator=generator), torch.randint(10, (size, *shape), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("shape", [(), (3, 2), (100, 100)])
@pytest.mark.parametrize("top_k", [1, 3])
def test_accuracy(shape: tuple[int, ...], top_k: int) -> None:
    """The share over all samples, however they came in batches."""
    metric, given = Accuracy(top_k), batches(5, 7, *shape)
    for output, target in given:
        metric.update(output, target)
    outputs, targets = torch.cat([o for o, _ in given]), torch.cat([t for _, t in given])
    right = (outputs.topk(top_k, 1).indices == targets.unsqueeze(1)).any(1)

    assert float(right.double().mean()) == pytest.approx(metric.compute(), abs=1e-12)
    assert metric.compute() == metric.compute(), "asking changes nothing"


def test_accuracy_of_unlike_batches_and_of_shares() -> None:
    """Images of different sizes, and the soft labels of MixUp, count like any other."""
    metric = Accuracy()
    metric.update(torch.eye(10)[None, :, :, None], torch.arange(10)[None, :, None])
    metric.update(torch.eye(10)[None, :, :5, None], torch.zeros(1, 5, 1, dtype=torch.int64))
    metric.update(torch.eye(10), 0.6 * torch.eye(10) + 0.04)

    assert (10 + 1 + 10) / 25 == metric.compute()


def test_accuracy_keeps_little() -> None:
    """What waits to be counted is bounded."""
    metric = Accuracy()
    for output, target in batches(20, 500, 8):
        metric.update(output, target)
        assert sum(o.numel() for o, _ in metric._waiting) < WAITING


def test_nothing_seen_is_nan() -> None:
    """No sample, no number."""
    assert math.isnan(Accuracy().compute())
    assert math.isnan(MeanSquaredError().compute())


def test_squared_error() -> None:
    """The mean over all elements, and its root."""
    output, target = torch.randn(6, 3), torch.randn(6, 3)
    plain, root = MeanSquaredError(), MeanSquaredError(root=True)
    for metric in (plain, root):
        metric.update(output[:2], target[:2])
        metric.update(output[2:], target[2:])
    expected = float((output.double() - target.double()).square().mean())

    assert expected == pytest.approx(plain.compute(), rel=1e-6)
    assert math.sqrt(expected) == pytest.approx(root.compute(), rel=1e-6)


@pytest.mark.parametrize("make", [Accuracy, MeanSquaredError, lambda: MulticlassAccuracy(10)])
def test_what_was_seen_can_be_saved(make: Any) -> None:
    """Saved between two updates and put into a fresh metric, it goes on as if nothing had been."""
    given = batches() if make is not MeanSquaredError else [(torch.randn(4, 2), torch.randn(4, 2)) for _ in range(5)]
    whole, first, second = make(), make(), make()
    for output, target in given[:3]:
        whole.update(output, target)
        first.update(output, target)
    set_accumulators(second, get_accumulators(first), CPU)
    for output, target in given[3:]:
        whole.update(output, target)
        second.update(output, target)

    assert float(whole.compute()) == float(second.compute())
