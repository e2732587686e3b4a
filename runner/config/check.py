"""Everything that can be known to be wrong with a configuration, all at once."""

from collections.abc import Sequence
from typing import Any

from runner.config.compose import Composed, compose_sweep
from runner.config.interpret import plain, read
from runner.config.schema import Config
from runner.errors import ConfigError


def parse(data: dict[str, Any]) -> Config:
    """Plain data, such as a run's recorded `config.yaml`, as a typed config.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of range.
    """
    config, reading = read(data)
    if config is None:
        raise ConfigError([mistake for _, mistake in reading.mistakes])
    return config


def resolved(config: Config) -> dict[str, Any]:
    """Plain data with every default filled in, for `config.yaml`; `parse(resolved(c)) == c`."""
    data: dict[str, Any] = plain(config)
    return data


def check(composed: Composed, trust: Sequence[str] = ()) -> Config:
    """The typed config of a composition.

    Raises:
        ConfigError: every mistake, each with the place that made it.
    """
    config, reading = read(composed.config)
    found = [*composed.mistakes, *composed.unresolvable]
    found += composed.blame(mistake for _, mistake in reading.mistakes)
    if found or config is None:
        raise ConfigError(found)
    return config


def check_sweep(overrides: Sequence[str], trust: Sequence[str] = ()) -> None:
    """Check every job of a sweep before the first starts. Raises ConfigError."""
    composed = compose_sweep(overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
