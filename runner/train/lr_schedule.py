"""The learning-rate schedule: any `torch.optim.lr_scheduler`, per step or per epoch, with a warmup before it."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Constant:
    """No schedule: the rates stay as the optimizer has them."""

    monitor: str | None = None  # the metric that it follows

    def step(self) -> None:
        """Nothing to do after a step."""

    def epoch(self) -> None:
        """Nothing to do after an epoch."""

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Nothing to do after an evaluation."""

    def scale(self, factor: float) -> None:
        """Nothing to do where the optimizer's rates change."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Schedule(Constant):
    """A scheduler of torch, stepped after each optimizer step or each epoch, or by a metric after each evaluation.

    During `warmup` steps the rates rise linearly, step t (from 0) having (t + 1) / warmup of the scheduler's first
    rates; the scheduler starts when they are reached.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make: Callable[[Optimizer], Any] | None,
        *,
        interval: str = "step",
        warmup: int = 0,
        monitor: str | None = None,
    ) -> None:
        self.optimizer, self.interval, self.warmup, self.monitor = optimizer, interval, warmup, monitor
        self.scheduler = None if make is None else make(optimizer)
        self.taken = 0  # optimizer steps
        self.targets = [float(group["lr"]) for group in optimizer.param_groups]
        self._warm()

    def _warm(self) -> None:
        if self.taken < self.warmup:
            for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
                set_rate(group, target * (self.taken + 1) / self.warmup)

    def step(self) -> None:
        """After an optimizer step."""
        self.taken += 1
        if self.taken <= self.warmup:
            self._warm()
        elif self.interval == "step" and self.scheduler is not None and self.monitor is None:
            self.scheduler.step()

    def epoch(self) -> None:
        """After an epoch; one that ends within the warmup does not count."""
        if (
            self.interval == "epoch"
            and self.taken > self.warmup
            and self.scheduler is not None
            and self.monitor is None
        ):
            self.scheduler.step()

    def evaluated(self, metrics: dict[str, float]) -> None:
        """After an evaluation, for a scheduler that follows a metric; one during the warmup does not count."""
        if self.monitor is not None and self.scheduler is not None and self.taken >= self.warmup:
            self.scheduler.step(metrics[self.monitor])

    def scale(self, factor: float) -> None:
        """Go on with all rates times `factor`; those in the optimizer are the caller's."""
        self.targets = [target * factor for target in self.targets]
        if self.scheduler is not None and hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [rate * factor for rate in self.scheduler.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state and the steps taken."""
        inner = {} if self.scheduler is None else _plain(self.scheduler.state_dict())
        return {"taken": self.taken, "targets": self.targets, "scheduler": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave (the rates themselves are in the optimizer's state)."""
        self.taken, self.targets = state["taken"], state["targets"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def course(schedule: Constant, optimizer: Optimizer, start: int, end: int, steps_per_epoch: int) -> list[list[float]]:
    """Step a schedule as training does from step `start` to `end`; the rates of the groups at each, both included."""
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer was not stepped before
        for step in range(start, end):
            schedule.step()
            if steps_per_epoch and (step + 1) % steps_per_epoch == 0:
                schedule.epoch()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


def rates_and_momenta(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What a schedule changes of each group, as it is now."""
    return [{name: _now(group[name]) for name in CHANGED if name in group} for group in optimizer.param_groups]


def put_rates_and_momenta(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Put back what `rates_and_momenta` gave."""
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        for name, value in values.items():
            if name == "lr":
                set_rate(group, value)
            else:
                group[name] = value


CHANGED = ("lr", "initial_lr", "momentum", "betas", "max_lr", "min_lr", "max_momentum", "base_momentum")


def _now(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a parameter group another rate; one that is a tensor stays the same tensor, as a CUDA graph needs it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _plain(value: Any) -> Any:
    """A scheduler's state without what its arguments say anyway and no checkpoint can hold (functions, a Counter)."""
    if type(value) is dict:
        kept = (bool, int, float, str, type(None), list, tuple, dict, Tensor)
        return {name: _plain(member) for name, member in value.items() if type(member) in kept}
    return [_plain(member) for member in value] if type(value) in (list, tuple) else value
