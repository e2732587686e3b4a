"""The config of an existing run, with overrides applied where they belong: before the interpolations are resolved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import parse
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake


def recorded(folder: Path, overrides: Sequence[str] = ()) -> tuple[Config, str]:
    """The config of the run in `folder` and its YAML with interpolations kept.

    Args:
        folder: a run directory.
        overrides: `key=value`, values in YAML; a leading `+` or `++` is allowed.

    Raises:
        ConfigError: the folder is no run, an override is wrong, or the config with it.
    """
    if not (folder / "config.yaml").is_file():
        rule = "must be a run directory (one with a config.yaml)" if folder.is_dir() else "must be a run directory"
        raise ConfigError([Mistake("RUN", rule, str(folder))])
    if not overrides:
        data: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return parse(data), (folder / ".hydra" / "config.yaml").read_text()
    unresolved: Any = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for override in overrides:
        key, separator, _ = override.lstrip("+").partition("=")
        if not separator:
            raise ConfigError([Mistake(override, "must be `key=value`", where=f"argument `{override}`")])
        try:
            unresolved = OmegaConf.merge(unresolved, OmegaConf.from_dotlist([override.lstrip("+")]))
        except OmegaConfBaseException as error:
            raise ConfigError([Mistake(key, str(error), where=f"argument `{override}`")]) from error
    try:
        data = OmegaConf.to_container(unresolved, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Mistake(str(error.full_key), str(error.msg))]) from error
    return parse(data), OmegaConf.to_yaml(unresolved)
