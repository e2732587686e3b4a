"""The live objects of a run, where it stands, and how both are saved and put back."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner import metrics as metric_state
from runner import rng
from runner.checkpoint import Checkpoints
from runner.data import Split
from runner.log import Log
from runner.optimizer import Constant
from runner.schedule import Duration


class Losses:
    """The losses since the last log line: kept on the device, read at once."""

    def __init__(self) -> None:
        self.on_device: list[Tensor] = []
        self.values: list[float] = []
        self.sizes: list[int] = []

    def add(self, outcome: Mapping[str, Any]) -> None:
        """Take the loss of a step, without waiting for it."""
        self.on_device.append(outcome["loss"].detach())
        self.sizes.append(outcome.get("size", 1))

    def read(self) -> list[float]:
        """The values, with one wait for the device."""
        if self.on_device:
            self.values += torch.stack(self.on_device).double().tolist()
            self.on_device.clear()
        return self.values

    def mean(self) -> float:
        """The mean over samples, NaN where there is none."""
        pairs = zip(self.read(), self.sizes, strict=True)
        return math.fsum(value * size for value, size in pairs) / sum(self.sizes) if self.sizes else math.nan

    def clear(self) -> None:
        """Forget them."""
        self.on_device.clear()
        self.values.clear()
        self.sizes.clear()


@dataclass
class Progress:
    """Where a run stands; all of it is saved."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done of this epoch
    best: dict[str, Any] | None = None  # step, objective, metrics
    last: dict[str, float] = field(default_factory=dict)  # the last value of each metric
    evaluated_at: int | None = None
    evaluation_pending: bool = False


@dataclass
class Clock:
    """Seconds of a run, by what they were spent on."""

    training: float = 0.0
    evaluating: float = 0.0
    saving: float = 0.0
    started: float | None = None
    first_epoch: tuple[int, float] | None = None  # step and seconds of training at its end: warm-up is not speed

    def start(self) -> None:
        """Training begins or goes on."""
        self.started = time.perf_counter()

    def pause(self) -> None:
        """Training stops for something else, or for good."""
        if self.started is not None:
            self.training += time.perf_counter() - self.started
            self.started = None


@dataclass
class Stop:
    """Set by a signal's handler; the step under way ends first."""

    signal: int | None = None


@dataclass
class Run:
    """The live objects of a run."""

    folder: Path
    seed: int
    device: torch.device
    model: nn.Module
    loss: Callable[..., Any]
    step: Callable[..., Mapping[str, Any]]
    optimizer: torch.optim.Optimizer
    schedule: Constant
    splits: dict[str, Split]  # train, val, test
    metrics: dict[str, dict[str, Any]]  # train and eval → name → metric
    checkpoints: Checkpoints
    total_steps: int
    steps_per_epoch: int  # 0 where the dataset does not know
    log_every: Duration
    evaluate_every: Duration | None
    checkpoint_every: Duration | None
    objective: str
    mode: str
    check_finite: str = "loss"
    config: dict[str, Any] = field(default_factory=dict)
    log: Log = field(init=False)  # opened when the step to begin at is known
    progress: Progress = field(default_factory=Progress)
    losses: Losses = field(default_factory=Losses)
    clock: Clock = field(default_factory=Clock)
    stop: Stop = field(default_factory=Stop)
    logged: tuple[int, float] = (0, 0.0)  # step and time of the last log line
    started_at: int = 0  # the step at which this process began


def state(run: Run) -> dict[str, Any]:
    """All that a resume needs: plain containers, numbers, strings and tensors."""
    parts: dict[str, Any] = {"step": run.step, "loss": run.loss, "sampler": getattr(run.splits["train"], "order", None)}
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.schedule.state_dict(),
        "scaler": None,
        "ema": None,
        "rng": rng.state(),
        "progress": vars(run.progress) | {"losses": list(run.losses.read()), "sizes": list(run.losses.sizes)},
        "metrics": {name: metric_state.accumulators(metric) for name, metric in run.metrics["train"].items()},
        "step": {name: part.state_dict() for name, part in parts.items() if hasattr(part, "state_dict")},
        "config": run.config,
    }


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Put a checkpoint's state back into the live objects."""
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.schedule.load_state_dict(saved["scheduler"])
    fields = dict(saved["progress"])
    run.losses.values, run.losses.sizes = fields.pop("losses"), fields.pop("sizes")
    for name, value in fields.items():
        setattr(run.progress, name, value)
    for name, metric in run.metrics["train"].items():
        metric_state.set_accumulators(metric, saved["metrics"].get(name, {}), run.device)
    parts: dict[str, Any] = {"step": run.step, "loss": run.loss}
    for name, part in parts.items():
        if name in saved["step"]:
            part.load_state_dict(saved["step"][name])
    rng.set_state(saved["rng"])
