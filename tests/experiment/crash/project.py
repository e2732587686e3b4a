"""A user's project with everything that makes an exact resume hard, and what is compared."""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.support import read_metrics, read_result, write_files

PARTS = '''
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

READ = []  # the indices that this process read


class Grids(Dataset):
    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 1, 6, 6, generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        READ.append(index)
        return self.images[index], self.labels[index], index


class Jitter:
    def __call__(self, image):
        return image + torch.rand(image.shape) * random.random() * float(np.random.rand())


class Drop:
    def __init__(self, share):
        self.share = share

    def __call__(self, image):
        if random.random() < 0.5:
            image = image.flip(-1)
        return image * torch.from_numpy(np.random.rand(6, 6) > self.share) + 0.1 * torch.randn(1, 6, 6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.conv(x))).flatten(1)))


class Turning:
    """A sampler whose order depends on how often it was asked."""

    def __init__(self, data_source):
        self.count, self.turns = len(data_source), 0

    def state_dict(self):
        return {"turns": self.turns}

    def load_state_dict(self, state):
        self.turns = state["turns"]

    def __len__(self):
        return self.count

    def __iter__(self):
        self.turns += 1
        return iter((torch.randperm(self.count) * 7 + 5 * self.turns).remainder(self.count).tolist())


def decay(step):
    return 1 / (1 + step)


class Counting:
    """A step with a state of its own, which puts a bad number into one place, at one step or with one sample."""

    def __init__(self, at=0, sample=-1, place="", value="nan"):
        self.at, self.sample, self.place, self.value, self.count = at, sample, place, float(value), 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def __call__(self, batch, model, loss):
        if model.training:
            self.count += 1
        now = model.training and (self.count == self.at or self.sample in batch[2].tolist())
        if now and self.place == "parameter":
            with torch.no_grad():
                model.norm.weight[1] = self.value
        if now and self.place == "gradient":
            model.conv.bias.register_hook(lambda gradient: gradient * self.value)
        if now and self.place == "input":
            batch[0][3, 0, 2] = self.value
        output = model(batch[0])
        if now and self.place == "buffer":
            model.norm.running_var.data[2] = self.value
        value = loss(output, batch[1])
        if now and self.place == "loss":
            value = value * self.value
        return {"loss": value, "output": output, "target": batch[1], "size": len(batch[1])}
'''
CONF = {
    "dataset/grids.yaml": """
train: {_target_: parts.Grids, count: 44}
val: {_target_: parts.Grids, count: 12, seed: 1}
sample: [{shape: [1, 6, 6], dtype: float32}, {shape: [], dtype: int64}, {shape: [], dtype: int64}]
""",
    "transform/jitter.yaml": """
train:
  jitter: {_target_: parts.Jitter}
  drop: {_target_: parts.Drop, share: 0.2}
""",
    "model/net.yaml": "_target_: parts.Net",
    "step/counting.yaml": "{_target_: parts.Counting, at: 0, sample: -1, place: none, value: nan}",
    "experiment/hard.yaml": """
# @package _global_
defaults:
  - override /dataset: grids
  - override /transform: jitter
  - override /optimizer: adamw
  - override /scheduler: step
  - override /model: net
  - override /step: counting
name: hard
scheduler: {step_size: 3, gamma: 0.7, interval: step}
loader: {batch_size: 12}
train: {duration: 3ep, objective: val/loss, mode: min, evaluate_every: 5st, checkpoint_every: 4st}
log: {every: 3st, model_table: false, progress: false}
device: {type: cpu}
""",
}
CONF["experiment/turning.yaml"] = (
    CONF["experiment/hard.yaml"]
    .replace("override /scheduler: step", "override /scheduler: none")
    .replace(
        "{step_size: 3, gamma: 0.7, interval: step}",
        "{_target_: torch.optim.lr_scheduler.LambdaLR, lr_lambda: {_target_: parts.decay}}",
    )
    .replace("batch_size: 12", "batch_size: 12, shuffle: false, sampler: {_target_: parts.Turning}")
)
HARD = "experiment=hard"
STEPS = 12  # of 3 epochs


def write(folder: Path) -> None:
    """Put the project's files into a folder."""
    write_files(folder, {"parts.py": PARTS} | {f"conf/{name}": text for name, text in CONF.items()})


def ending(run: Path) -> dict[str, Any]:
    """All that a run ended with: the checkpoint but for its config, the log lines, the result's metrics."""
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    del saved["config"]
    result = read_result(run)
    best = {name: result[name] for name in ("metrics", "best", "objective", "status", "steps", "weights_sha256")}
    return {"checkpoint": saved, "lines": read_metrics(run), "result": best}


def events(run: Path) -> list[tuple[int, str, bytes]]:
    """TensorBoard's events as it shows them: what a later start took back is not among them."""
    found: list[tuple[int, str, bytes]] = []
    for file in sorted(file for file in (run / "tb").glob("events.*") if file.suffix != ".hparams"):
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                found = [entry for entry in found if entry[0] < event.step]
            found += [(event.step, value.tag, value.tensor.SerializeToString()) for value in event.summary.value]
    return sorted(found)


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two endings differ, in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [at]
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        return [d for n in names for d in differences(one.get(n, "absent"), other.get(n, "absent"), f"{at}.{n}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{at}[{i}]")]
    return [] if type(one) is type(other) and repr(one) == repr(other) else [at]
