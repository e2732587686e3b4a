"""Jobs of a stack with equal optimizers, which share a schedule and an update.

Sixteen seeds of one learning rate have one rate at every step. So the first of them leads, and the others take over its
schedule and its rates where somebody looks at them, at a pause.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch.optim import lr_scheduler

from runner.train.lr_schedule import ConstantLR, LRSchedule, put_rates_and_momenta, read_rates_and_momenta
from runner.train.state import Run

# Schedules whose whole state is in their `state_dict`, and which depend on nothing but the steps that they count.
SCHEDULERS = frozenset(
    {
        *(lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ConstantLR, lr_scheduler.LinearLR),
        *(lr_scheduler.ExponentialLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.PolynomialLR),
        *(lr_scheduler.CosineAnnealingWarmRestarts, lr_scheduler.OneCycleLR, type(None)),
    }
)


def describe_optimizer(run: Run) -> str:
    """Describe what the optimizer of a run does from now on; of two that are alike, the same."""
    train = run.config["train"]
    settings = [run.config["optimizer"], run.config["param_groups"], run.config["scheduler"], train["duration"]]
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in run.optimizer.param_groups
    ]
    return json.dumps([*settings, groups, run.schedule.state_dict()], default=repr, sort_keys=True)


def is_predictable(run: Run) -> bool:
    """Return whether the rates of a run depend on its config and its steps alone."""
    schedule = run.schedule
    known = type(schedule) is ConstantLR or (
        type(schedule) is LRSchedule and schedule.monitor is None and type(schedule.scheduler) in SCHEDULERS
    )
    return known and not run.actions and run.rhythm.accumulate == 1


def describe_all(runs: Sequence[Run]) -> list[str]:
    """Describe the optimizers of runs; one that nobody can predict is like no other."""
    return [describe_optimizer(run) if is_predictable(run) else str(row) for row, run in enumerate(runs)]


def sort_alike(runs: Sequence[Run]) -> list[int]:
    """Return the order of runs in which those whose optimizers are alike stand together."""
    first: dict[str, int] = {}
    places = [first.setdefault(own, row) for row, own in enumerate(describe_all(runs))]
    return sorted(range(len(runs)), key=lambda row: (places[row], row))


class AlikeJobs:
    """Jobs of a stack in groups whose optimizers are alike.

    Attributes:
        spans: rows from, and up to, of each group; the first one leads.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        described = describe_all(runs)
        starts = [row for row, own in enumerate(described) if row == 0 or own != described[row - 1]]
        self.spans = [*zip(starts, [*starts[1:], len(described)], strict=True)]
        self.leaders = [self.runs[start] for start, _ in self.spans]
        self.taken = False

    def step(self) -> None:
        """Advance the schedules by an optimizer step."""
        self.taken = True
        for run in self.leaders:
            run.schedule.step()

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """Return a value for each job, of one for each group."""
        return [value for value, (start, stop) in zip(values, self.spans, strict=True) for _ in range(start, stop)]

    def follow(self) -> None:
        """Let each job take over the schedule and the rates of the one that leads it."""
        if not self.taken:
            return
        self.taken = False
        for leader, (start, stop) in zip(self.leaders, self.spans, strict=True):
            if stop - start == 1:
                continue
            state, rates = leader.schedule.state_dict(), read_rates_and_momenta(leader.optimizer)
            for run in self.runs[start + 1 : stop]:
                run.schedule.load_state_dict(deepcopy(state))
                put_rates_and_momenta(run.optimizer, rates)
