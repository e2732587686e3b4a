"""Mappings keyed by classes, and modules of torch.nn as transforms."""

import pytest
import torch
from torch import nn

from tests.experiment.test_progress import run
from tests.support import install_project

PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

TOLD = []


class Points(TensorDataset):
    def __init__(self, count=12):
        super().__init__(torch.arange(count * 16.0).view(count, 1, 4, 4), torch.zeros(count))


class Special(nn.Linear):
    pass


class Net(nn.Module):
    def __init__(self, rates: dict[type[nn.Module], float], bare=None, names=None, size=4):
        super().__init__()
        TOLD.append((rates, bare, names))
        self.fc = Special(size, 1)

    def forward(self, x):
        return self.fc(x.flatten(1))


SHAPES = []


def step(batch, model, loss):
    SHAPES.append((tuple(batch[0].shape), batch[0].requires_grad, batch[0].double().sum().item()))
    return {"loss": model(batch[0]).square().mean(), "size": len(batch[0])}
"""
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /step: null
  - override /metrics: none
  - override /loss: none
name: classes
dataset: {train: {_target_: class_parts.Points}}
model:
  _target_: class_parts.Net
  rates: {torch.nn.Conv2d: 0.5, class_parts.Special: 2}
  bare: {torch.nn.Linear: 1}
  names: {fc.weight: 3}
transform: {train: {pool: {_target_: torch.nn.AvgPool2d, kernel_size: 2}}}
step: {_target_: class_parts.step}
optimizer: {lr: 1e-9}
loader: {batch_size: 4, shuffle: false}
train: {duration: 1ep}
device: {type: cpu}
log: {every: 1st, progress: false, tensorboard: false, model_table: false}
"""
VERB = ("experiment=classes",)


@pytest.fixture
def parts(tmp_path):
    with install_project(tmp_path, "class_parts", PARTS, {"experiment/classes.yaml": EXPERIMENT}) as module:
        yield module


def test_the_keys_are_classes_where_the_annotation_says_so_or_all_are_of_torch(parts):
    run(verb=VERB)
    assert parts.TOLD[-1] == ({nn.Conv2d: 0.5, parts.Special: 2}, {nn.Linear: 1}, {"fc.weight": 3})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.rates={torch.nn.Conv2dd: 1}", "did you mean"),
        ("model.rates={torch.nn.functional.relu: 1}", "model.rates.torch.nn.functional.relu"),
        ("model.rates={os.system: 1}", "os.system"),
        ("model.rates={torch.load: 1}", "torch.load"),
    ],
)
def test_a_key_that_is_no_class_is_named(parts, capsys, override, said):
    run(override, verb=VERB, status=2)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("memory", ["true", "false"])
def test_a_module_of_torch_is_a_transform(parts, memory):
    """In memory and sample by sample, without a graph; one that draws, too."""
    run(f"loader.in_memory={memory}", verb=VERB)
    pooled = nn.functional.avg_pool2d(parts.Points().tensors[0], 2)
    assert parts.SHAPES[-3:] == [((4, 1, 2, 2), False, part.double().sum().item()) for part in pooled.split(4)]
    layer = "layer: {_target_: torch.nn.Linear, in_features: 4, out_features: 1}"
    more = f"transform.train={{pool: null, {layer}, drop: {{_target_: torch.nn.Dropout}}}}"
    run(f"loader.in_memory={memory}", more, verb=VERB)
    assert [shape[:2] for shape in parts.SHAPES[-3:]] == [((4, 1, 4, 1), False)] * 3


def test_weights_of_such_a_module_are_those_of_its_stream(parts):
    more = "transform.train={pool: null, layer: {_target_: torch.nn.Linear, in_features: 4, out_features: 1}}"
    sums = []
    for seed in (0, 0, 1):
        run(more, f"seed={seed}", verb=VERB)
        sums.append(parts.SHAPES[-1][2])
    assert (sums[0] == sums[1], sums[0] == sums[2]) == (True, False)
    assert torch.is_grad_enabled()
