"""Learning-rate schedule: any `torch.optim.lr_scheduler`, per step or per epoch, after a warmup."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ConstantLR:
    """Constant learning rates: every method is a no-op."""

    monitor: str | None = None  # the metric that it follows

    def step(self) -> None: ...

    def epoch(self) -> None: ...

    def evaluated(self, metrics: dict[str, float]) -> None: ...

    def scale(self, factor: float, owner: str = "") -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LRSchedule(ConstantLR):
    """Torch scheduler, stepped per optimizer step, per epoch, or by a metric per evaluation.

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
        """Advance by an optimizer step."""
        self.taken += 1
        if self.taken <= self.warmup:
            self._warm()
        elif self.interval == "step" and self.scheduler is not None and self.monitor is None:
            self.scheduler.step()

    def epoch(self) -> None:
        """Advance by an epoch; an epoch that ends within the warmup does not count."""
        if (
            self.interval == "epoch"
            and self.taken > self.warmup
            and self.scheduler is not None
            and self.monitor is None
        ):
            self.scheduler.step()

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Pass a monitored metric to the scheduler after an evaluation; during warmup it is ignored."""
        if self.monitor is not None and self.scheduler is not None and self.taken >= self.warmup:
            self.scheduler.step(metrics[self.monitor])

    def scale(self, factor: float, owner: str = "") -> None:
        """Multiply all future rates by `factor`, of one of several optimizers where `owner` names it.

        The caller scales those in the optimizer.
        """
        factors = [factor if is_of(group, owner) else 1.0 for group in self.optimizer.param_groups]
        self.targets = [target * one for target, one in zip(self.targets, factors, strict=True)]
        if self.scheduler is not None and hasattr(self.scheduler, "base_lrs"):
            self.scheduler.base_lrs = [rate * one for rate, one in zip(self.scheduler.base_lrs, factors, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state and the number of steps taken."""
        inner = {} if self.scheduler is None else _to_plain(self.scheduler.state_dict())
        return {"taken": self.taken, "targets": self.targets, "scheduler": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict; the optimizer's state holds the rates themselves."""
        self.taken, self.targets = state["taken"], state["targets"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


class SeveralSchedules(ConstantLR):
    """Schedules of several optimizers by name, each over the groups of its own."""

    def __init__(self, members: Mapping[str, ConstantLR]) -> None:
        self.members = dict(members)
        self.monitor = next((one.monitor for one in self.members.values() if one.monitor is not None), None)

    def step(self) -> None:
        for member in self.members.values():
            member.step()

    def epoch(self) -> None:
        for member in self.members.values():
            member.epoch()

    def evaluated(self, metrics: dict[str, float]) -> None:
        for member in self.members.values():
            member.evaluated(metrics)

    def scale(self, factor: float, owner: str = "") -> None:
        for member in self.members.values():
            member.scale(factor, owner)

    def state_dict(self) -> dict[str, Any]:
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, member in self.members.items():
            member.load_state_dict(state[name])


def is_of(group: Mapping[str, Any], owner: str) -> bool:
    """Return whether a param group is of one of several optimizers; with an empty name each is."""
    return not owner or str(group.get("name")).partition("/")[0] == owner


def trace_rates(
    schedule: ConstantLR, optimizer: Optimizer, start: int, end: int, steps_per_epoch: int
) -> list[list[float]]:
    """Step a schedule from `start` to `end` as training does; return the groups' rates at each step."""
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer was not stepped before
        for step in range(start, end):
            schedule.step()
            if steps_per_epoch and (step + 1) % steps_per_epoch == 0:
                schedule.epoch()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


def read_rates_and_momenta(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Read the current values that a schedule changes in each param group."""
    return [{name: _to_number(group[name]) for name in CHANGED if name in group} for group in optimizer.param_groups]


def put_rates_and_momenta(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Write the values from `read_rates_and_momenta` into the param groups."""
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        for name, value in values.items():
            if name == "lr":
                set_rate(group, value)
            else:
                group[name] = value


CHANGED = ("lr", "initial_lr", "momentum", "betas", "max_lr", "min_lr", "max_momentum", "base_momentum")


def _to_number(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a param group's rate; a tensor is filled in place, as a CUDA graph needs it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _to_plain(value: Any) -> Any:
    """Return a scheduler's state without values that no checkpoint can hold (functions, a Counter)."""
    if type(value) is dict:
        kept = (bool, int, float, str, type(None), list, tuple, dict, Tensor)
        return {name: _to_plain(member) for name, member in value.items() if type(member) in kept}
    return [_to_plain(member) for member in value] if type(value) in (list, tuple) else value
