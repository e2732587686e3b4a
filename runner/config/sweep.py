"""All jobs of a sweep, composed before the first starts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.blame import argument
from runner.config.compose import Composed, Loader
from runner.errors import ConfigError, Mistake

Point = tuple[str, ...]  # the arguments of one job, all of them


def jobs(overrides: Sequence[str], cwd: Path) -> Iterator[Composed]:
    """Compose each job of a sweep in the order of Hydra's basic sweeper (the last argument changes fastest).

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """
    sweep = Sweep(overrides, cwd)
    for point in sweep.grid():
        yield sweep.compose(point)


class Sweep:
    """A command line with several values for some keys: what its jobs share, and each of them.

    The config of a choice of groups is composed once; points that change values only are set in copies of it.

    Attributes:
        base: what is composed without the swept arguments.
        axes: for each key that the command line or `hydra.sweeper.params` sets, its arguments, one a value.
        swept: the keys that are swept over, group names among them.

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """

    def __init__(self, overrides: Sequence[str], cwd: Path) -> None:
        self._loader = Loader(cwd)
        self.base = self._loader.collect(list(overrides), RunMode.MULTIRUN)
        self.axes, self.swept = _axes(self._loader, self.base, list(overrides))
        self._composed: dict[Point, Composed] = {}
        self._groups: dict[str, bool] = {}

    @property
    def fixed(self) -> Point:
        """The arguments that every job has."""
        return tuple(values[0] for key, values in self.axes.items() if key not in self.swept)

    def grid(self) -> Iterator[Point]:
        """Each combination of the values, the last argument changing fastest."""
        return itertools.product(*self.axes.values())

    def compose(self, point: Point) -> Composed:
        """The job of a point: what `compose.compose` gives for its arguments."""
        groups = tuple(text for text in point if self._is_group(text))
        values = [text for text in point if text not in groups]
        if groups not in self._composed:
            self._composed[groups] = self._loader.collect(list(groups), RunMode.RUN)
        return self._with_values(self._composed[groups], point, values)

    def _is_group(self, text: str) -> bool:
        if text not in self._groups:
            override = self._loader.parse(text)
            self._groups[text] = override.is_delete() or (
                self._loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
            )
        return self._groups[text]

    def _with_values(self, base: Composed, point: Point, values: list[str]) -> Composed:
        """The config of the groups with the values set in it."""
        if not values:
            return replace(base, overrides=list(point))
        overrides = [self._loader.parse(text) for text in values]
        # A mapping is merged; an interpolation may point to a default that is not written out in the base.
        if base.mistakes or any(isinstance(o.value(), dict | list) or "${" in str(o.value()) for o in overrides):
            return self._loader.collect(list(point), RunMode.RUN)
        config = base.unresolved.copy()
        try:
            for override in overrides:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        except OmegaConfBaseException:  # what Hydra would refuse too, and says why
            return self._loader.collect(list(point), RunMode.RUN)
        layers = base.layers.with_arguments(overrides)
        return replace(base, unresolved=config, overrides=list(point), layers=layers)


def _axes(loader: Loader, whole: Composed, overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each argument, and the keys that are swept over.

    Later arguments replace earlier ones of the same key, as in Hydra's basic sweeper.
    """
    params = OmegaConf.select(whole.hydra, "sweeper.params") or {}
    arguments = [f"{key}={value}" for key, value in params.items()] + overrides
    axes: dict[str, list[str]] = {}
    swept: dict[str, bool] = {}
    mistakes = []
    for text in arguments:
        try:
            override = loader.parse(text)
            if override.is_hydra_override() and not override.is_sweep_override() and text in overrides:
                continue
            axes[override.get_key_element()] = _points(override, text)
            swept[override.get_key_element()] = override.is_sweep_override()
        except (HydraException, ValueError) as error:
            key, first = text.partition("=")[0], str(error).splitlines()[0]
            where = argument(text) if text in overrides else whole.layers.origin(("hydra", "sweeper", "params", key))
            mistakes.append(Mistake(key, f"cannot be enumerated: {first}", where=where))
    if mistakes:
        raise ConfigError([*whole.mistakes, *(m for m in mistakes if m.where not in {w.where for w in whole.mistakes})])
    return axes, [key for key, several in swept.items() if several]


def _points(override: Override, text: str) -> list[str]:
    """The values of one argument, as arguments. Raises ValueError or HydraException where they cannot be listed."""
    if override.is_hydra_override():
        message = "Hydra's own settings cannot be swept over"
        raise ValueError(message)
    if not override.is_sweep_override():
        return [text]
    points = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not points:
        message = "it has no value at all"
        raise ValueError(message)
    return points
