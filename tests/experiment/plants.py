"""A small project of several modules, and changes that are planted in it, each with the step and the cause to be named.

A plant changes a file of the project, the recorded config, or the record, after the run and before its replay.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLES = 48  # 6 steps an epoch


FILES = {
    "plant_data.py": '''
import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset, get_worker_info


def points(file="points.npy", scale=1.0):
    """Points of three classes."""
    table = torch.from_numpy(np.load(file))
    return TensorDataset(table[:, :-1].float() * scale, table[:, -1].long())


class OneByOne(Dataset):
    """The same points, sample by sample."""

    def __init__(self, file="points.npy", moody=False, by_worker=False):
        self.points = points(file)
        self.moody, self.by_worker = moody, by_worker

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        import os
        point, label = self.points[index]
        if self.moody and index == 25:
            point = point + os.urandom(1)[0]
        worker = get_worker_info()
        if self.by_worker and worker is not None:
            point = point + worker.id + 1
        return point, label
''',
    "plant_transform.py": '''
import torch


class Jitter:
    """Adds noise of a size."""

    def __init__(self, size=0.1):
        self.size = size

    def __call__(self, point):
        return point + torch.randn(point.shape) * self.size


class Blend:
    """Blends a batch with its reverse."""

    def __init__(self, share=0.1):
        self.share = share

    def __call__(self, batch):
        points, labels = batch
        return points * (1 - self.share) + points.flip(0) * self.share, labels
''',
    "plant_model.py": '''
import torch
from torch import nn


CALLS = []  # a state of the process


class Net(nn.Module):
    """Two layers with dropout."""

    def __init__(self, width=8, rate=0.2):
        super().__init__()
        self.hidden = nn.Linear(4, width)
        self.dropout = nn.Dropout(rate)
        self.head = nn.Linear(width, 3)
        self.count = 0

    def forward(self, x):
        if self.training:
            self.count += 1
        hidden = torch.relu(self.hidden(x))
        hidden = self.dropout(hidden)
        output = self.head(hidden)
        return output
''',
    "plant_moody.py": '''
import os

import torch
from torch import nn


@torch.library.custom_op("plants::moody", mutates_args=())
def moody(x: torch.Tensor) -> torch.Tensor:
    """Something without a deterministic kernel."""
    return x * (1 + os.urandom(1)[0] / 256)


@moody.register_fake
def _(x):
    return torch.empty_like(x)


moody.register_autograd(lambda context, gradient: gradient)


class Shaky(torch.autograd.Function):
    """Nothing, with a gradient of its own mood."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.ops.plants.moody(gradient)


class Net(nn.Module):
    """Two layers with an operator that is never twice the same."""

    def __init__(self, how="forward"):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.how = how
        self.count = 0

    def forward(self, x):
        self.count += self.training
        hidden = torch.relu(self.hidden(x))
        if self.how == "forward" and self.count > 7:
            hidden = moody(hidden)
        if self.how == "backward":
            hidden = Shaky.apply(hidden)
        return self.head(hidden)
''',
    "plant_loss.py": '''
from torch.nn import functional


def entropy(output, target, smoothing=0.1):
    """Cross entropy."""
    return functional.cross_entropy(output, target, label_smoothing=smoothing)
''',
    "plant_optimizer.py": '''
import torch


class Steady(torch.optim.SGD):
    """SGD that counts its steps."""

    def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=0.001):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)
''',
    "plant_metric.py": '''
class Share:
    """Share of right answers."""

    def __init__(self):
        self.reset()

    def update(self, output, target):
        self.right += int((output.argmax(1) == target).sum())
        self.count += len(target)

    def compute(self):
        return self.right / self.count

    def reset(self):
        self.right = self.count = 0
''',
    "conf/experiment/plants.yaml": """# @package _global_
defaults:
  - override /dataset: null
  - override /transform: null
  - override /model: null
  - override /optimizer: null
  - override /scheduler: null
  - override /loss: null
  - override /metrics: null
  - override /log: quiet
name: plants
dataset:
  train: {_target_: plant_data.points}
  val: {_target_: plant_data.points, file: val.npy}
transform:
  train: {jitter: {_target_: plant_transform.Jitter, size: 0.1}}
loader: {batch_size: 8}
model: {_target_: plant_model.Net}
init: {rules: {head: {name: head, bias: 0}}}
optimizer: {_target_: plant_optimizer.Steady, lr: 0.1}
scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 10, gamma: 0.9}
loss: {_target_: plant_loss.entropy}
metrics: {share: {_target_: plant_metric.Share}}
device: {type: cpu}
train: {duration: 40st, evaluate_every: 1ep, objective: val/share, mode: max}
log: {every: 5st}
""",
}


@dataclass(frozen=True)
class Plant:
    """A change, and what a replay has to say.

    Attributes:
        name: of the plant.
        step: the first step that differs; None where none does.
        phase: what of the step does.
        said: what the cause must name.
        files: texts that are replaced in the project's files, (file, before, after).
        config: keys that the recorded config has otherwise.
        overrides: what the run is started with.
        change: another change of the project or of the run directory.
        everyday: whether it is tried every day.
    """

    name: str
    step: int | None
    phase: str
    said: str
    files: tuple[tuple[str, str, str], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    change: Callable[[Path], object] | None = None
    everyday: bool = False


def edit_points(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change the table of points."""

    def edit(_: Path) -> None:
        import numpy as np

        table = np.load("points.npy")
        change(table)
        np.save("points.npy", table)

    return edit


def find_step_of(position: int) -> int:
    """Find the first step that has a training sample, by its number in the file."""
    from runner.core import rng

    order = rng.draw_permutation(rng.derive_key(0, 0, "order"), SAMPLES).tolist()
    return order.index(position) // 8 + 1


def edit_record(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change a JSON file of the run directory."""

    def edit(run: Path) -> None:
        import json

        record = json.loads((run / name).read_text())
        change(record)
        (run / name).write_text(json.dumps(record))

    return edit


def _alter(row: int) -> Callable[[Path], object]:
    return edit_points(lambda table: table.__setitem__((row, 0), table[row, 0] + 1))


def _swap(one: int, other: int) -> Callable[[Path], object]:
    def swap(table: Any) -> None:
        assert table[one, -1] != table[other, -1]
        table[[one, other], -1] = table[[other, one], -1]

    return edit_points(swap)


ONE_BY_ONE = ("dataset.train._target_=plant_data.OneByOne",)
AT_37 = "        if self.count == 37:\n            self.param_groups[0]['momentum'] = 0.5\n        return super()"
DRAW_AT_10 = "        if self.count == 10:\n            torch.rand(1)\n        hidden = self.dropout(hidden)"
DRAW_AFTER_10 = "        if self.count == 10:\n            torch.rand(1)\n        return output"
COUNTED = "        CALLS.append(self.training)\n        output = self.head(hidden) * (1 + (sum(CALLS) == 20))"
HOOK = "hidden.register_hook(lambda gradient: gradient * 1.5)"
HOOKED = f"        if hidden.requires_grad:\n            {HOOK}\n        hidden = self.dropout(hidden)"
ONES = "        self.count = 0\n        nn.init.ones_(self.head.weight)"


PLANTS = [
    # ---- nothing, or nothing that changes a number
    Plant("nothing", None, "", "", everyday=True),
    Plant("package version in the record", None, "", "torch was 1.0",
          change=edit_record("provenance.json", lambda r: r["versions"].update(torch="1.0")), everyday=True),
    Plant("another processor in the record", None, "", "cpu was Z80",
          change=edit_record("provenance.json", lambda r: r["hardware"].update(cpu="Z80"))),
    Plant("thread count in the record", None, "", "threads was 7, is 1",
          change=edit_record("provenance.json", lambda r: r.update(threads=7))),
    Plant("a comment in the model", None, "", "plant_model has another source",
          files=(("plant_model.py", "        output = ", "        # a comment\n        output = "),)),
    # ---- initial weights
    Plant("another seed", 0, "initial weights", "seed was 0, is 1", config={"seed": 1}),
    Plant("a wider model", 0, "initial weights", "model.width", config={"model.width": 9}),
    Plant("a line of the model's init", 0, "initial weights", "plant_model",
          files=(("plant_model.py", "        self.count = 0", ONES),)),
    Plant("a rule of init", 0, "initial weights", "init.rules.head.bias", config={"init.rules.head.bias": 1}),
    # ---- order
    Plant("no shuffling", 1, "order", "loader.shuffle", config={"loader.shuffle": False}),
    Plant("larger batches", 1, "order", "loader.batch_size", config={"loader.batch_size": 16}),
    # ---- data and augmentation
    Plant("an augmentation parameter", 1, "data or augmentation", "transform.train.jitter.size",
          config={"transform.train.jitter.size": 0.2}, everyday=True),
    Plant("a line of the augmentation", 1, "data or augmentation", "plant_transform",
          files=(("plant_transform.py", "* self.size", "* self.size * 2"),)),
    Plant("a line of the dataset", 1, "data or augmentation", "plant_data",
          files=(("plant_data.py", ".float() * scale", ".float() * scale + 1"),)),
    Plant("one sample altered", find_step_of(5), "data or augmentation", "data: train",
          change=_alter(5), everyday=True),
    Plant("two labels swapped", min(find_step_of(3), find_step_of(4)), "data or augmentation", "data: train",
          change=_swap(3, 4), everyday=True),
    Plant("two labels swapped before the split", 2, "data or augmentation", "data: train",
          overrides=("dataset.train=null", "dataset.val=null", "dataset.val_fraction=0.2",
                     "dataset.source={_target_: plant_data.points}"), change=_swap(3, 4)),
    Plant("one sample altered that no fingerprint sees", find_step_of(25), "data or augmentation", "",
          overrides=ONE_BY_ONE, change=_alter(25)),
    Plant("a blend of batches", 1, "data or augmentation", "transform.batch.blend.share",
          overrides=("+transform.batch.blend={_target_: plant_transform.Blend}",),
          config={"transform.batch.blend.share": 0.2}),
    Plant("a dataset that depends on its worker", 1, "data or augmentation", "loader.num_workers",
          overrides=(*ONE_BY_ONE, "dataset.train.by_worker=true"), config={"loader.num_workers": 1}),
    Plant("a dataset of its own mood", find_step_of(25), "data or augmentation", "two replays",
          overrides=(*ONE_BY_ONE, "dataset.train.moody=true")),
    # ---- forward
    Plant("a line of the model", 1, "forward", "plant_model",
          files=(("plant_model.py", "torch.relu", "torch.tanh"),), everyday=True),
    Plant("a line of the loss", 1, "forward", "plant_loss",
          files=(("plant_loss.py", "label_smoothing=smoothing)", "label_smoothing=smoothing) * 2"),)),
    Plant("an argument of the loss", 1, "forward", "loss.smoothing", config={"loss.smoothing": 0.2}),
    Plant("dropout of another rate", 1, "forward", "model.rate", config={"model.rate": 0.3}),
    Plant("a model that changes at step 20", 20, "forward", "plant_model",
          files=(("plant_model.py", "        output = self.head(hidden)",
                  "        output = self.head(hidden) * (2 if self.count >= 20 else 1)"),)),
    Plant("a state of the module that counts to 20", 20, "forward", "plant_model",
          files=(("plant_model.py", "        output = self.head(hidden)", COUNTED),)),
    Plant("another precision", 1, "forward", "device.precision", config={"device.precision": "bf16"}),
    # ---- gradient
    Plant("clipping", 1, "gradient", "train.clip_norm", config={"train.clip_norm": 0.01}),
    Plant("a hook on a gradient", 1, "gradient", "plant_model",
          files=(("plant_model.py", "        hidden = self.dropout(hidden)", HOOKED),)),
    # ---- optimizer
    Plant("another rate", 1, "optimizer", "optimizer.lr", config={"optimizer.lr": 0.2}),
    Plant("another weight decay", 1, "optimizer", "optimizer.weight_decay", config={"optimizer.weight_decay": 0.1}),
    Plant("another schedule", 11, "optimizer", "scheduler.gamma", config={"scheduler.gamma": 0.5}),
    Plant("another momentum at step 37", 37, "optimizer", "plant_optimizer",
          files=(("plant_optimizer.py", "        return super()", AT_37),), everyday=True),
    Plant("a frozen layer", 1, "optimizer", "freeze.params", config={"freeze.params": ["hidden.*"]}),
    Plant("another average", 6, "optimizer", "train.ema", overrides=("train.ema=0.9",), config={"train.ema": 0.99}),
    # ---- a generator
    Plant("a draw more at step 10", 10, "generator", "plant_model",
          files=(("plant_model.py", "        hidden = self.dropout(hidden)", DRAW_AT_10),)),
    Plant("a draw more at the end of step 10", 10, "generator", "plant_model",
          files=(("plant_model.py", "        return output", DRAW_AFTER_10),)),
    # ---- what is not deterministic by itself
    Plant("a nondeterministic operator", 8, "forward", "moody", overrides=("model._target_=plant_moody.Net",),
          everyday=True),
    Plant("a nondeterministic gradient", 1, "gradient", "moody",
          overrides=("model._target_=plant_moody.Net", "+model.how=backward")),
    # ---- evaluation
    Plant("a line of the metric", 5, "evaluation", "plant_metric",
          files=(("plant_metric.py", "self.right / self.count", "self.right / self.count / 2"),)),
    Plant("a sample of val altered", 6, "evaluation", "data: val",
          change=lambda _: _shift_val()),
]  # fmt: skip


def _shift_val() -> None:
    import numpy as np

    table = np.load("val.npy")
    table[:, 0] += 1
    np.save("val.npy", table)
