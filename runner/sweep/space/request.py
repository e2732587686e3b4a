"""Request for a sweep: its settings, base config and space, and its composed jobs."""

import re
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.check.check import Check
from runner.config.check.rules import sweep
from runner.config.composed import Composed
from runner.config.hydra_loader import ConfigLoader
from runner.config.schema import Sweep
from runner.core.errors import ConfigError, Mistake
from runner.sweep.launcher_settings import OURS, get_launcher_name, read_launcher
from runner.sweep.space.axes import AxisSetting, Point, Space
from runner.sweep.space.parse import make_space


@dataclass(frozen=True)
class ComposedJob:
    """Point and its composed config, equal to that of a run with the point's arguments."""

    point: Point
    composed: Composed


def collect_notes(jobs: Iterable[Composed]) -> list[str]:
    """Collect the distinct notes of jobs, from one job per set of choices and targets."""
    distinct: dict[Any, Composed] = {}
    for job in jobs:
        targets = tuple(text for text in job.overrides if "_target_" in text)
        distinct.setdefault((tuple(job.choices.items()), targets), job)
    return list(dict.fromkeys(note for job in distinct.values() for note in job.notes))


def make_request(overrides: Sequence[str], cwd: Path, trust: Sequence[str] = ()) -> "SweepRequest":
    """Make the request for a sweep from its command line.

    Args:
        overrides: the arguments of `-m`.
        cwd: where `conf/` and files of points are looked for.
        trust: patterns of names trusted on the command line.

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """
    loader = _CachedLoader(cwd)
    whole = loader.collect(list(overrides), RunMode.MULTIRUN)
    checked = Check(whole, tuple(trust), multirun=True)
    settings = checked.config.sweep  # a wrong key has its default
    of_no_job = {
        *sweep.OF_THE_SWEEP,
        *(["seed"] if settings.seeds else []),
    }  # keys that no job has as they are said here
    found = [*whole.mistakes, *checked.at_once]
    mistakes = [m for m in found if re.split("[./]", m.key)[0] in of_no_job]
    if whole.config.get("run") is not None:
        rule = "must not be set in a sweep: each job has a directory of its own, and the same line goes on"
        mistakes += whole.blame(
            [Mistake("run", rule, whole.config["run"], remedy="`sweep.id` names a sweep", kind="conflict")]
        )
    searched = whole.config.get("sweep", {}).get("search", {}).get("sampler") is not None
    try:
        space = make_space(
            loader.parse,
            _collect_arguments(loader, whole, overrides),
            settings,
            lambda key: whole.layers.blame(tuple(key.split("."))),
            cwd,
            seed=checked.config.seed,
            searched=searched,
        )
        if searched and not space.axes:
            remedy = "give it something: `optimizer.lr='tag(log, interval(0.001, 0.1))'`"
            rule = "has nothing to choose: no argument has several values"
            mistakes += whole.blame([Mistake("sweep.search.sampler", rule, remedy=remedy, kind="missing")])
    except ConfigError as error:
        mistakes += error.mistakes
    if searched:
        mistakes += checked.of_the_sweep()
    if get_launcher_name(whole) in OURS:
        try:
            read_launcher(whole)
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        said = {mistake.where for mistake in whole.mistakes}
        raise ConfigError([*whole.mistakes, *(m for m in mistakes if m.where not in said)])
    return SweepRequest(settings, whole, space, loader)


def _collect_arguments(loader: "_CachedLoader", whole: Composed, overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Collect the jobs' arguments with their origins: the config's, then the command line's."""
    params = OmegaConf.select(whole.hydra, "sweeper.params") or {}
    places = {key: whole.layers.origin(("hydra", "sweeper", "params", key)) for key in params}
    given = [(f"{key}={value}", places[key]) for key, value in params.items()]
    return [*given, *((text, "") for text in overrides if not _is_of_the_sweep(loader, whole, text))]


def _is_of_the_sweep(loader: "_CachedLoader", whole: Composed, text: str) -> bool:
    """Return whether an argument configures the sweep as a whole and no job needs it."""
    try:
        override = loader.parse(text)
    except HydraException:
        return False
    key = override.key_or_group
    if key == "sweep" and not override.is_sweep_override():
        return whole.layers.sets_only("sweep", sweep.OF_THE_SWEEP)
    return key.partition(".")[0].partition("/")[0] in sweep.OF_THE_SWEEP and not override.is_sweep_override()


@dataclass
class SweepRequest:
    """Request for a sweep.

    Attributes:
        settings: how to sweep.
        base: what it is composed to with the swept arguments left aside.
        space: what it goes over.
    """

    settings: Sweep
    base: Composed
    space: Space
    _loader: "_CachedLoader"
    _composed: dict[tuple[str, ...], Composed] = field(default_factory=dict)
    _known: dict[tuple[str, ...], Point] = field(default_factory=dict)

    def points(self) -> Iterator[Point]:
        """Yield each point, in order."""
        for point in self.space.points():
            self._known.setdefault(point.own, point)  # of two rows that say the same the first has its place
            yield point

    def jobs(self) -> Iterator[ComposedJob]:
        """Yield each job, in order."""
        return map(self.job, self.points())

    def point(self, own: Sequence[str]) -> Point:
        """Return the point of its own arguments: a listed one, or one proposed by a search."""
        if tuple(own) in self._known:
            return self._known[tuple(own)]
        parsed = [(self._loader.parse(text), text) for text in own]
        return self.space.point(
            [AxisSetting(override.key_or_group, override.value(), text) for override, text in parsed]
        )

    @property
    def is_search(self) -> bool:
        """Whether a sampler chooses the points."""
        return self.settings.search.sampler is not None

    def to_be_checked(self) -> Iterator[ComposedJob]:
        """Yield the jobs to check before the first starts: all, or the corners of a search space."""
        points = self.space.corners(self._loader.chooses_group) if self.is_search else self.space.points()
        return map(self.job, points)

    def job(self, point: Point) -> ComposedJob:
        """Compose the job of a point.

        What all jobs share and the choices of groups are composed once; values are set in copies of that.
        """
        swept = [text for text in point.overrides if text not in self._fixed]
        values = [text for text in swept if not self._loader.chooses_group(text)]
        if any(self._needs_composition(text) for text in values):
            return self._finished(point, self._loader.collect(list(point.overrides), RunMode.RUN))
        shared = tuple(text for text in point.overrides if text not in values)
        if shared not in self._composed:
            self._composed[shared] = self._loader.collect(list(shared), RunMode.RUN)
        base = self._composed[shared]
        if base.mistakes and values:
            return self._finished(point, self._loader.collect(list(point.overrides), RunMode.RUN))
        config = base.unresolved.copy()
        overrides = [self._loader.parse(text) for text in values]
        try:
            for override in overrides:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        except OmegaConfBaseException:  # what Hydra would refuse too, and says why
            return self._finished(point, self._loader.collect(list(point.overrides), RunMode.RUN))
        layers = base.layers.with_arguments(overrides)
        return self._finished(point, replace(base, unresolved=config, overrides=list(point.overrides), layers=layers))

    @cached_property
    def _fixed(self) -> frozenset[str]:
        return frozenset(setting.text for setting in self.space.fixed)

    def _needs_composition(self, text: str) -> bool:
        """Return whether a value needs composition: deletion, mapping, interpolation or overlapping keys."""
        override = self._loader.parse(text)
        key = override.key_or_group
        return (
            override.is_delete()
            or isinstance(override.value(), dict)
            or "${" in text
            or any(_overlap(key, setting.key) for setting in self.space.fixed)
            or any(_overlap(key, other) for other in self.space.keys if other != key)
        )

    def _finished(self, point: Point, composed: Composed) -> ComposedJob:
        """Return the job without the sweep's own config, and with the origin of each argument."""
        composed.unresolved["sweep"] = {}
        composed.choices = composed.choices | {"sweep": "default"}
        return ComposedJob(point, composed.placed(point.places) if point.places else composed)


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


class _CachedLoader(ConfigLoader):
    """Loader that parses each argument once: a thousand points have few distinct ones."""

    def __init__(self, cwd: Path) -> None:
        super().__init__(cwd)
        self._read: dict[str, Override] = {}

    def parse(self, text: str) -> Override:
        if text not in self._read:
            self._read[text] = super().parse(text)
        return copy(self._read[text])  # whoever composes with it changes it

    def chooses_group(self, text: str) -> bool:
        """Return whether an argument chooses the option of a group."""
        override = self.parse(text)
        return self.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
