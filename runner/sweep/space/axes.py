"""Axes of a sweep: the values of each key, and their combination to points.

Hydra's grammar (`a,b`, `choice`, `range`, `glob`, `interval`, `tag`, `sort`, `shuffle`) says the values of a key;
`sweep.zip`, `sweep.points`, `sweep.random` and `sweep.seeds` say how keys are combined.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_CORNERS = 100


IN_VAIN = 20  # draws without a new point, for each point there is, after which there are no more: one in e^20 is missed


@dataclass(frozen=True)
class AxisSetting:
    """Key at one value, with its argument and its origin."""

    key: str
    value: Any
    text: str
    where: str = ""

    @property
    def element(self) -> str:
        """Part of the argument before the equals sign."""
        return self.text.partition("=")[0]


@dataclass(frozen=True)
class Axis:
    """Keys that change together, with one tuple of settings per member."""

    keys: tuple[str, ...]
    members: tuple[tuple[AxisSetting, ...], ...]
    log: bool = False
    where: str = ""

    @property
    def is_even(self) -> bool:
        """Whether the values are three or more numbers at equal distances, as `range` makes them."""
        values = [member[0].value for member in self.members]
        if len(self.keys) > 1 or len(values) < 3 or any(isinstance(v, bool) for v in values):
            return False
        if not all(isinstance(v, int | float) for v in values):
            return False
        step = (values[-1] - values[0]) / (len(values) - 1)
        return bool(step) and all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in itertools.pairwise(values))

    @property
    def extremes(self) -> tuple[tuple[AxisSetting, ...], ...]:
        """Both ends of evenly spaced or log-scaled numbers; else every member."""
        return (self.members[0], self.members[-1]) if self.is_even or self.log else self.members

    def draw(self, u: float) -> tuple[AxisSetting, ...]:
        """Return the member at `u` in [0, 1); on a log scale, the member nearest to that position."""
        if not self.log:
            return self.members[int(u * len(self.members))]
        values = [math.log(member[0].value) for member in self.members]
        at = min(values) + u * (max(values) - min(values))
        return min(zip(values, self.members, strict=True), key=lambda pair: abs(pair[0] - at))[1]


@dataclass(frozen=True)
class Interval:
    """Interval of numbers from `low`, included, to `high`, excluded."""

    key: str
    element: str
    low: float
    high: float
    where: str
    integer: bool = False
    log: bool = False

    @property
    def keys(self) -> tuple[str]:
        """Tuple of the one key."""
        return (self.key,)

    @property
    def extremes(self) -> tuple[tuple[AxisSetting], ...]:
        """Both ends; of integers, `high - 1` in place of `high`."""
        return (self.at(self.low),), (self.at(self.high - 1 if self.integer else self.high),)

    def at(self, value: float) -> AxisSetting:
        """Return the setting of the key at this value."""
        return AxisSetting(self.key, value, f"{self.element}={value}", self.where)

    def draw(self, u: float) -> tuple[AxisSetting]:
        """Return the setting at `u` in [0, 1), rounded to four digits of the interval's width."""
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
            places = 3 - math.floor(math.log10(min(value, value * math.log(self.high / self.low))))
        else:
            value = self.low + u * (self.high - self.low)
            places = 4 - math.floor(math.log10(self.high - self.low))
        return (self.at(math.floor(value)) if self.integer else self.at(max(self.low, round(value, places))),)


@dataclass(frozen=True)
class Point:
    """Point of a sweep: the arguments of one job.

    Attributes:
        overrides: its arguments in order, those that all jobs share included: a run with them is this job alone.
        values: the swept keys with their values.
        own: those of the arguments that not all jobs share.
        places: where an argument was said that does not stand on the command line as it is.
    """

    overrides: tuple[str, ...]
    values: Mapping[str, Any]
    own: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Space of a sweep: fixed settings, axes, seeds and the number of random draws.

    Attributes:
        fixed: what all jobs share.
        axes: what is combined, or drawn from.
        seeds: replicates of each point.
        random: how many points to draw; None for all combinations.
        random_seed: of the draws.
        order: element -> its position among the arguments.
    """

    fixed: tuple[AxisSetting, ...]
    axes: tuple[Axis | Interval, ...]
    seeds: Axis | None = None
    random: int | None = None
    random_seed: int = 0
    order: Mapping[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every swept key."""
        axes = [*self.axes, *([self.seeds] if self.seeds else [])]
        return tuple(dict.fromkeys(key for axis in axes for key in axis.keys))

    def points(self) -> Iterator[Point]:
        """Yield every point; in a grid the last axis changes fastest, as in Hydra's basic sweeper."""
        for chosen in self.combinations():
            for replicate in self.seeds.members if self.seeds else [()]:
                yield self.point([*itertools.chain(*chosen), *replicate])

    def corners(self, chooses_group: Callable[[str], bool]) -> Iterator[Point]:
        """Yield points that combine all group choices, and vary the extremes of values one at a time.

        Where groups have more than MAX_CORNERS combinations, they too one at a time.
        """
        extremes = [axis.extremes for axis in self.axes]
        first = [members[0] for members in extremes]
        groups = [i for i, members in enumerate(extremes) if any(chooses_group(s.text) for m in members for s in m)]
        if math.prod(len(extremes[i]) for i in groups) > MAX_CORNERS:
            groups = []
        for combination in itertools.product(*(extremes[i] for i in groups)):
            chosen = dict(zip(groups, combination, strict=True))
            yield self.point(itertools.chain(*(chosen.get(i, member) for i, member in enumerate(first))))
        for i, members in enumerate(extremes):
            for other in members[1:] if i not in groups else ():
                yield self.point(itertools.chain(*first[:i], other, *first[i + 1 :]))

    def point(self, settings: Iterable[AxisSetting]) -> Point:
        """Make the point of these settings and the fixed ones."""
        swept = list(settings)
        last = len(self.order)
        ordered = sorted([*self.fixed, *swept], key=lambda setting: self.order.get(setting.element, last))
        return Point(
            tuple(setting.text for setting in ordered),
            {setting.key: setting.value for setting in swept},
            tuple(setting.text for setting in swept),
            {setting.text: setting.where for setting in ordered if setting.where},
        )

    def combinations(self) -> Iterator[tuple[tuple[AxisSetting, ...], ...]]:
        """Yield a member per axis; random draws end early if there are no more distinct ones."""
        if self.random is None:
            yield from itertools.product(*(axis.members for axis in self.axes if isinstance(axis, Axis)))
            return
        seen: set[tuple[str, ...]] = set()
        in_vain = 0
        for number in itertools.count():
            if len(seen) == self.random or in_vain > IN_VAIN * (len(seen) + 100):
                return
            chosen = tuple(axis.draw(draw_uniform(self.random_seed, axis.keys, number)) for axis in self.axes)
            texts = tuple(setting.text for member in chosen for setting in member)
            in_vain += 1
            if texts not in seen:
                seen.add(texts)
                in_vain = 0
                yield chosen


def draw_uniform(seed: int, keys: Sequence[str], number: int) -> float:
    """Draw a number in [0, 1) from seed, keys and number alone, independent of all other draws."""
    digest = hashlib.blake2b(f"{seed} {' '.join(keys)} {number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
