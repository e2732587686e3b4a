"""Metrics give what a plain computation over all samples gives."""

import math
import random
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper, MinMaxMetric, Running

from runner.core.errors import RunError
from runner.train.accumulators import get_accumulators, set_accumulators
from runner.train.metrics import WAITING, Accuracy, MeanSquaredError

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
        assert sum(o.numel() for o, _ in metric.waiting) < WAITING


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


class Wrapping:
    """A metric that keeps what it knows in every kind of place."""

    def __init__(self) -> None:
        self.inner = Accuracy()
        self.several = [Accuracy(top_k=3), MulticlassAccuracy(10)]
        self.named = {"own": MeanSquaredError(), "module": Module()}
        self.box = Box()
        self.owner = self
        self.generators = (torch.Generator(), np.random.default_rng(0), random.Random(0))
        self.reset()

    def reset(self) -> None:
        self.seen: dict[Any, Any] = {"n": (0, np.float64(0)), 3: {1, 2}}
        self.counts, self.last = Counter[int](), deque[float](maxlen=2)
        self.table, self.lists = np.zeros(10, np.int32), defaultdict[str, list[Any]](list)
        self.nothing: Any = None
        self.complex, self.raw = 0j, b""

    def update(self, output: Any, target: Any) -> None:
        for metric in (self.inner, *self.several):
            metric.update(output, target)
        self.named["own"].update(output, output + 1)
        self.named["module"].update(output, target)
        self.box.deeper.total += float(output.sum())
        count, total = self.seen["n"]
        self.seen = {"n": (count + 1, total + np.float64(output[0, 0].item())), 3: {*self.seen[3], len(target)}}
        self.counts.update(target.flatten().tolist())
        self.last.append(float(output[0, 0]))
        np.add.at(self.table, target.numpy(), 1)
        self.lists["a"].append(output[0].clone())
        self.nothing, self.complex, self.raw = torch.Size([1, 2]), self.complex + 1j, self.raw + b"a"
        torch.rand((), generator=self.generators[0])

    def compute(self) -> list[Any]:
        torch_, numpy_, python_ = self.generators
        drawn = [float(torch.rand((), generator=torch_)), float(numpy_.random()), python_.random()]
        own = [float(metric.compute()) for metric in (self.inner, *self.several, *self.named.values())]
        kept = [self.seen, self.counts, self.last, self.table.tolist(), self.nothing, self.complex, self.raw]
        return [*own, self.box.deeper.total, repr(kept), {name: repr(kept) for name, kept in self.lists.items()}, drawn]


class Box:
    def __init__(self) -> None:
        self.deeper = Deeper()


class Deeper:
    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0


class Module(torch.nn.Module):
    """A metric that is a module: a buffer, a parameter, a number and a metric of a library."""

    def __init__(self) -> None:
        super().__init__()
        self.total: torch.Tensor
        self.register_buffer("total", torch.zeros(()), persistent=False)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.count, self.inner = 0, MulticlassAccuracy(10)

    def reset(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def update(self, output: Any, target: Any) -> None:
        self.total += output.sum()
        self.weight.data += 1
        self.count += 1
        self.inner.update(output, target)

    def compute(self) -> float:
        return float(self.total + self.weight.detach() + self.inner.compute()) + self.count


def make_collection() -> Any:
    """Make a collection whose members share one state, so that only the first is updated."""
    return MetricCollection({"micro": MulticlassAccuracy(10, average="micro"), "macro": MulticlassAccuracy(10)})


def read(value: Any) -> str:
    return repr({name: float(part) for name, part in value.items()} if isinstance(value, dict) else value)


@pytest.mark.parametrize(
    "make",
    [
        Wrapping,
        Module,
        make_collection,
        lambda: MinMaxMetric(MulticlassAccuracy(10)),
        lambda: ClasswiseWrapper(MulticlassAccuracy(10, average=None)),
        lambda: Running(MeanMetric(), window=2),
        lambda: MulticlassAccuracy(10) + MulticlassAccuracy(10, average="micro"),
        lambda: BootStrapper(MulticlassAccuracy(10), num_bootstraps=3, sampling_strategy="multinomial"),
    ],
)
def test_a_metric_that_wraps_metrics_goes_on(make: Any, tmp_path: Path) -> None:
    """Saved in a checkpoint between two updates and put into a fresh one, it ends as if nothing had been."""
    given = batches()
    whole, first, second = make(), make(), make()
    width = 1 if isinstance(whole, Running) else 2

    def update(metric: Any, part: list[Any], seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        for pair in part:
            metric.update(*pair[:width])

    update(whole, given[:3], 0)
    update(first, given[:3], 0)
    if not isinstance(whole, Wrapping):  # whose compute draws
        assert read(whole.compute()) == read(first.compute())
    torch.save(get_accumulators(first), tmp_path / "saved.pt")
    set_accumulators(second, torch.load(tmp_path / "saved.pt", weights_only=True), CPU)
    update(whole, given[3:], 1)
    update(second, given[3:], 1)

    assert read(whole.compute()) == read(second.compute())


def test_what_cannot_be_saved_is_refused_by_name() -> None:
    wrapping = Wrapping()
    wrapping.box.deeper.total = iter([1])  # type: ignore[assignment]
    grown = Wrapping()
    grown.lists["a"].append(Deeper())

    with pytest.raises(
        RunError, match=r"`Wrapping.box.deeper.total` is of the type list_iterator, which no checkpoint"
    ):
        get_accumulators(wrapping)
    with pytest.raises(
        RunError, match=r"`Wrapping.lists\[0\]\[0\]` holds an object that the constructor does not make"
    ):
        set_accumulators(Wrapping(), get_accumulators(grown), CPU)


@pytest.mark.parametrize(("top_k", "ignore_index"), [(1, None), (2, None), (1, 3)])
def test_metrics_that_count_together_come_to_the_same(top_k: int, ignore_index: int | None) -> None:
    """The accuracies of several jobs, counted at once, are those that each counts alone; also in parts."""
    given = [batches(4 + job, 7)[job:] + batches(6 + job, 4)[-1:] for job in range(3)]
    together, alone = ([Accuracy(top_k, ignore_index) for _ in given] for _ in range(2))
    for start in (0, 3):
        for metrics in (together, alone):
            for metric, own in zip(metrics, given, strict=True):
                for output, target in own[start : start + 3]:
                    metric.update(output, target)
        Accuracy.count_together(together)
        assert not any(metric.waiting for metric in together), "nothing is left for later"

    assert [metric.state_dict() for metric in alone] == [metric.state_dict() for metric in together]
    assert len({metric.compute() for metric in alone}) > 1, "the jobs differ"


def test_metrics_that_cannot_count_together_count_alone() -> None:
    """Batches of other sizes, or other settings, are left to each metric."""
    metrics = [Accuracy(), Accuracy(), Accuracy(top_k=2)]
    for metric, own in zip(metrics, (batches(2, 7), batches(2, 5), batches(2, 7)), strict=True):
        for output, target in own:
            metric.update(output, target)
    for pair in (metrics[:2], metrics[::2]):
        Accuracy.count_together(pair)

    assert [2, 2, 2] == [len(metric.waiting) for metric in metrics]
