"""All jobs of a sweep, composed before the first starts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from runner.config.blame import argument
from runner.config.compose import Composed, Loader
from runner.errors import ConfigError, Mistake


def jobs(overrides: Sequence[str], cwd: Path) -> Iterator[Composed]:
    """Compose each job of a sweep in the order of Hydra's basic sweeper (the last argument changes fastest).

    The config of a choice of groups is composed once; points that change values only are set in copies of it.

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """
    loader = Loader(cwd)
    whole = loader.collect(list(overrides), RunMode.MULTIRUN)
    axes = _axes(loader, whole, list(overrides))
    composed: dict[tuple[str, ...], Composed] = {}
    for point in itertools.product(*axes):
        groups = tuple(text for text in point if _is_group(loader, text))
        values = [text for text in point if text not in groups]
        if groups not in composed:
            composed[groups] = loader.collect(list(groups), RunMode.RUN)
        yield _with_values(loader, composed[groups], point, values)


def _axes(loader: Loader, whole: Composed, overrides: list[str]) -> list[list[str]]:
    """The values of each argument; later ones replace earlier ones of the same key, as in Hydra's basic sweeper."""
    params = OmegaConf.select(whole.hydra, "sweeper.params") or {}
    arguments = [f"{key}={value}" for key, value in params.items()] + overrides
    axes: dict[str, list[str]] = {}
    mistakes = []
    for text in arguments:
        try:
            override = loader.parse(text)
            if override.is_hydra_override() and not override.is_sweep_override() and text in overrides:
                continue
            axes[override.get_key_element()] = _points(override, text)
        except (HydraException, ValueError) as error:
            key, first = text.partition("=")[0], str(error).splitlines()[0]
            where = argument(text) if text in overrides else whole.layers.origin(("hydra", "sweeper", "params", key))
            mistakes.append(Mistake(key, f"cannot be enumerated: {first}", where=where))
    if mistakes:
        raise ConfigError([*whole.mistakes, *(m for m in mistakes if m.where not in {w.where for w in whole.mistakes})])
    return list(axes.values())


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


def _is_group(loader: Loader, text: str) -> bool:
    override = loader.parse(text)
    return override.is_delete() or (
        loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
    )


def _with_values(loader: Loader, base: Composed, point: Sequence[str], values: list[str]) -> Composed:
    """The job of a point: the groups' config with the values set."""
    if not values:
        return base
    overrides = [loader.parse(text) for text in point]
    if any(isinstance(override.value(), dict | list) for override in overrides) or base.mistakes:
        return loader.collect(list(point), RunMode.RUN)
    config = base.unresolved.copy()
    for override in overrides:
        if override.input_line in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    layers = base.layers.with_arguments([o for o in overrides if o.input_line in values])
    return replace(base, unresolved=config, overrides=list(point), layers=layers)
