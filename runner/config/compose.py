"""Entry points of composition: a run, the base of a sweep, Hydra's own questions.

Hydra stops at the first mistake. Here a failing override or file is noted, left out or replaced by its nearest option,
and the rest is composed again, so that one report can name everything.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from runner.config.composed import Composed
from runner.config.hydra_loader import ConfigLoader


def compose(overrides: Sequence[str], cwd: Path | None = None) -> Composed:
    """Compose one run from `conf/` and the arguments; mistakes are collected, never raised."""
    return ConfigLoader(cwd or Path.cwd()).collect(list(overrides), RunMode.RUN)


def compose_sweep(overrides: Sequence[str], cwd: Path | None = None) -> Composed:
    """Compose the base config of a sweep, without the arguments that have several values."""
    return ConfigLoader(cwd or Path.cwd()).collect(list(overrides), RunMode.MULTIRUN)


def create_hydra(cwd: Path | None = None) -> Hydra:
    """Create Hydra on the runner's loader, for `--cfg`, `--info`, `--hydra-help` and sweeps.

    Its loader raises `ConfigError` where composition finds mistakes. The caller clears `GlobalHydra` when done.
    """
    GlobalHydra.instance().clear()
    loader = ConfigLoader(cwd or Path.cwd())
    hydra = Hydra(task_name="runner", config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    return hydra
