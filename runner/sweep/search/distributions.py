"""Conversion of an axis of the space to an Optuna distribution."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from runner.sweep.space.axes import Axis, AxisSetting, Interval


@dataclass(frozen=True)
class Dimension:
    """Axis of the space for Optuna: a distribution, and the settings behind its values."""

    name: str
    distribution: BaseDistribution
    settings: Callable[[Any], tuple[AxisSetting, ...]]


def make_dimension(axis: Axis | Interval) -> Dimension:
    """Make a numeric distribution of an interval, even or log-scaled numbers; else a categorical one."""
    name = " ".join(axis.keys)
    if isinstance(axis, Interval):
        single = axis
        if axis.integer:
            whole = IntDistribution(int(axis.low), int(axis.high) - 1, log=axis.log)
            return Dimension(name, whole, lambda value: (single.at(int(value)),))
        scale = math.log if axis.log else float
        low, width = scale(axis.low), scale(axis.high) - scale(axis.low)
        number = FloatDistribution(axis.low, axis.high, log=axis.log)
        return Dimension(name, number, lambda value: single.draw((scale(value) - low) / width))
    numbers = [member[0].value for member in axis.members]
    if axis.log or axis.is_even:
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        distribution: BaseDistribution = FloatDistribution(min(numbers), max(numbers), log=axis.log)
        if not axis.log and isinstance(step, int):
            distribution = IntDistribution(min(numbers), max(numbers), step=abs(step))
        of = math.log if axis.log else float
        members = dict(zip(map(of, numbers), axis.members, strict=True))
        return Dimension(name, distribution, lambda value: members[min(members, key=lambda n: abs(n - of(value)))])
    named = {" ".join(setting.text for setting in member): member for member in axis.members}
    return Dimension(name, CategoricalDistribution(tuple(named)), named.__getitem__)
