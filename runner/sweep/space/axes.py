"""What a sweep goes over: the values of each key, and the points that they make together.

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
class Setting:
    """One key at one value: the argument that says so, and where it was said."""

    key: str
    value: Any
    text: str
    where: str = ""

    @property
    def element(self) -> str:
        """What stands before the equals sign."""
        return self.text.partition("=")[0]


@dataclass(frozen=True)
class Axis:
    """Keys that change together, and their values: one tuple of settings a member."""

    keys: tuple[str, ...]
    members: tuple[tuple[Setting, ...], ...]
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
    def extremes(self) -> tuple[tuple[Setting, ...], ...]:
        """What stands for all of it: both ends of numbers on a scale, else each member."""
        return (self.members[0], self.members[-1]) if self.is_even or self.log else self.members

    def draw(self, u: float) -> tuple[Setting, ...]:
        """The member at `u` in [0, 1); of numbers on a logarithmic scale the one that is nearest there."""
        if not self.log:
            return self.members[int(u * len(self.members))]
        values = [math.log(member[0].value) for member in self.members]
        at = min(values) + u * (max(values) - min(values))
        return min(zip(values, self.members, strict=True), key=lambda pair: abs(pair[0] - at))[1]


@dataclass(frozen=True)
class Interval:
    """A number from `low` up to, and without, `high`."""

    key: str
    element: str
    low: float
    high: float
    where: str
    integer: bool = False
    log: bool = False

    @property
    def keys(self) -> tuple[str]:
        """The one key."""
        return (self.key,)

    @property
    def extremes(self) -> tuple[tuple[Setting], ...]:
        """Both ends; of integers those that are drawn."""
        return (self.at(self.low),), (self.at(self.high - 1 if self.integer else self.high),)

    def at(self, value: float) -> Setting:
        """The key at this value."""
        return Setting(self.key, value, f"{self.element}={value}", self.where)

    def draw(self, u: float) -> tuple[Setting]:
        """The value at `u` in [0, 1), to four digits of the interval's width, so that it can be read and typed."""
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
            places = 3 - math.floor(math.log10(min(value, value * math.log(self.high / self.low))))
        else:
            value = self.low + u * (self.high - self.low)
            places = 4 - math.floor(math.log10(self.high - self.low))
        return (self.at(math.floor(value)) if self.integer else self.at(max(self.low, round(value, places))),)


@dataclass(frozen=True)
class Point:
    """One job of a sweep.

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
    """All that a sweep goes over.

    Attributes:
        fixed: what all jobs share.
        axes: what is combined, or drawn from.
        seeds: replicates of each point.
        random: how many points to draw; None for all combinations.
        random_seed: of the draws.
        order: element -> its position among the arguments.
    """

    fixed: tuple[Setting, ...]
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
        """Every point; of a grid in the order of Hydra's basic sweeper: the last axis changes fastest."""
        for chosen in self.combinations():
            for replicate in self.seeds.members if self.seeds else [()]:
                yield self.point([*itertools.chain(*chosen), *replicate])

    def corners(self, chooses_group: Callable[[str], bool]) -> Iterator[Point]:
        """Points in which every choice and every end occurs: choices of groups with each other, values one at a time.

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

    def point(self, settings: Iterable[Setting]) -> Point:
        """The point of these settings, with what all jobs share."""
        swept = list(settings)
        last = len(self.order)
        ordered = sorted([*self.fixed, *swept], key=lambda setting: self.order.get(setting.element, last))
        return Point(
            tuple(setting.text for setting in ordered),
            {setting.key: setting.value for setting in swept},
            tuple(setting.text for setting in swept),
            {setting.text: setting.where for setting in ordered if setting.where},
        )

    def combinations(self) -> Iterator[tuple[tuple[Setting, ...], ...]]:
        """A member of each axis; of drawn ones fewer than `random` where there are no more different ones."""
        if self.random is None:
            yield from itertools.product(*(axis.members for axis in self.axes if isinstance(axis, Axis)))
            return
        seen: set[tuple[str, ...]] = set()
        in_vain = 0
        for number in itertools.count():
            if len(seen) == self.random or in_vain > IN_VAIN * (len(seen) + 100):
                return
            chosen = tuple(axis.draw(uniform(self.random_seed, axis.keys, number)) for axis in self.axes)
            texts = tuple(setting.text for member in chosen for setting in member)
            in_vain += 1
            if texts not in seen:
                seen.add(texts)
                in_vain = 0
                yield chosen


def uniform(seed: int, keys: Sequence[str], number: int) -> float:
    """A number in [0, 1) that depends on nothing else: more points, or another key, leave the others as they are."""
    digest = hashlib.blake2b(f"{seed} {' '.join(keys)} {number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
