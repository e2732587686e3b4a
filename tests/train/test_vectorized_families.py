"""Families of models in a stack: each has the losses of the jobs alone, or stays apart with the right reason."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from models.cnn import SmallCNN
from models.dynamic_net import DynamicNet
from models.lenet import LeNet
from models.mlp import MLP
from models.pixels import PixelEmbedding
from runner.core import rng
from runner.train.steps import supervised
from runner.train.vectorized.stack import Stack, stack_batches, suppress_rule_warnings
from runner.train.vectorized.trial import ApartError, try_stack

JOBS = 3


class Recurrent(nn.Module):
    """A recurrent layer over the rows of an image."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x[:, 0])[0][:, -1])
        return logits


class Shared(nn.Module):
    """One layer used twice, beside two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last, self.tied = (
            nn.Linear(64, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 10),
            nn.Linear(16, 10),
        )
        self.tied.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.body(torch.relu(self.body(self.first(x.flatten(1))))))
        logits: Tensor = self.last(hidden) + self.tied(hidden)
        return logits


class Functional(nn.Module):
    """Dropout by the function, and a hidden size that a number of its own divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.dropout(torch.relu(self.first(x.flatten(1))), 0.3, self.training))
        return logits


class Looking(nn.Module):
    """Looks into its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits * 2 if logits.sum() > 0 else logits


class Noisy(nn.Module):
    """Adds noise of torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits + torch.randn_like(logits)


class Tokens(nn.Module):
    """A transformer encoder over the rows of an image."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x[:, 0]).mean(1))
        return logits


def make_torchvision(name: str, **settings: Any) -> nn.Module:
    """Make a model of torchvision, for ten classes."""
    torchvision = pytest.importorskip("torchvision")
    model: nn.Module = getattr(torchvision.models, name)(num_classes=10, **settings)
    return model


def make_small_vit() -> nn.Module:
    """Make a small vision transformer of torchvision."""
    torchvision = pytest.importorskip("torchvision")
    model: nn.Module = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)
    return model


def chain(*layers: nn.Module) -> nn.Module:
    """Make a small network of layers between a convolution and a linear layer."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(10))


GREY, COLOUR, LARGE = (4, 1, 8, 8), (4, 3, 32, 32), (2, 3, 64, 64)
JOINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP([64, 16, 10]), GREY),
    "CNN": (SmallCNN, GREY),
    "LeNet": (LeNet, (4, 1, 32, 32)),
    "embedding": (PixelEmbedding, GREY),
    "batch norm": (lambda: chain(nn.BatchNorm2d(4), nn.ReLU()), GREY),
    "group norm": (lambda: chain(nn.GroupNorm(2, 4), nn.GELU()), GREY),
    "layer norm": (lambda: chain(nn.LayerNorm([4, 8, 8]), nn.SiLU()), GREY),
    "instance norm": (lambda: chain(nn.InstanceNorm2d(4, affine=True)), GREY),
    "shared layers": (Shared, GREY),
    "functional dropout": (Functional, GREY),
    "weight norm": (lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10))), GREY),
    "transformer encoder": (lambda: Tokens(0.0), GREY),
    "ResNet-18": (lambda: make_torchvision("resnet18"), LARGE),
    "ShuffleNet": (lambda: make_torchvision("shufflenet_v2_x0_5"), (8, 3, 64, 64)),
    "MobileNet": (lambda: make_torchvision("mobilenet_v3_small", dropout=0.0), LARGE),
    "ViT": (make_small_vit, COLOUR),
}
STAYS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM": (lambda: Recurrent(nn.LSTM), "cell"),
    "GRU": (lambda: Recurrent(nn.GRU), "cell"),
    "control flow": (Looking, "the step|cannot be mapped"),
    "noise": (Noisy, "random"),
    "attention with dropout": (lambda: Tokens(0.1), "self_attn|random"),
    "DynamicNet": (lambda: nn.Sequential(nn.Flatten(), DynamicNet(64, 16, 10)), "Python's generator"),
}


def make_stack(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> tuple[Stack, list[Any], list[Any], list[nn.Module]]:
    """Make a stack of three jobs, their batches, the states of their generators, and copies of their models."""
    runs, batches, streams, copies = [], [], [], []
    for seed in range(JOBS):
        torch.manual_seed(seed)
        model = make()
        batch = (torch.rand(shape), torch.randint(10, shape[:1]))
        if any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters()):
            model(batch[0])
        config = {"device": {"precision": "fp32", "memory_format": "contiguous"}}
        step, loss = partial(supervised, input=0, target=1), nn.CrossEntropyLoss()
        runs.append(
            SimpleNamespace(
                model=model, loss=loss, step=step, optimizer=None, device=torch.device("cpu"), config=config
            )
        )
        copies.append(deepcopy(model))
        rng.seed_all(seed)
        streams.append(rng.get_state())
        batches.append(batch)
    stack = Stack(runs)  # type: ignore[arg-type]
    for generator, stream in zip(stack.generators, streams, strict=True):
        generator.set_state(stream["torch"])
    return stack, batches, streams, copies


@pytest.mark.parametrize("family", JOINS)
def test_a_family_joins_with_equal_losses(family):
    """The loss of each job is that of its model alone, with the same masks of dropout."""
    stack, batches, streams, copies = make_stack(*JOINS[family])
    try_stack(stack, batches, streams, timed=False)
    with suppress_rule_warnings():
        losses = stack(*stack_batches(batches, stack.device))[0]["loss"].tolist()
    alone = []
    for copy, batch, stream in zip(copies, batches, streams, strict=True):
        rng.set_state(stream)
        alone.append(float(F.cross_entropy(copy(batch[0]), batch[1]).detach()))

    assert losses == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("family", STAYS)
def test_a_family_stays_apart_with_its_reason(family):
    """No weights were changed by the trial, and the message names the module or what it draws."""
    make, words = STAYS[family]
    stack, batches, streams, _ = make_stack(make, GREY)
    with pytest.raises(ApartError, match=words):
        try_stack(stack, batches, streams, timed=False)
