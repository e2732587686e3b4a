"""Hydra's composition, driven by us: every override arrives, every mistake is collected, every file is remembered.

Hydra stops at the first mistake. Here a failing override or file is noted, left out or replaced by its nearest option,
and the rest is composed again, so that one report can name everything.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from runner.config.hydra_loader import Composed, Loader


def compose(overrides: Sequence[str], cwd: Path | None = None) -> Composed:
    """Compose one run from `conf/` and the arguments; what is wrong is in `mistakes`, never raised."""
    return Loader(cwd or Path.cwd()).collect(list(overrides), RunMode.RUN)


def compose_sweep(overrides: Sequence[str], cwd: Path | None = None) -> Composed:
    """The same for a sweep: arguments with several values are left aside."""
    return Loader(cwd or Path.cwd()).collect(list(overrides), RunMode.MULTIRUN)


def hydra_with_search_path(cwd: Path | None = None) -> Hydra:
    """Hydra itself, for `--cfg`, `--info`, `--help`, completion and sweeps, on the runner's search path and loader.

    Its loader raises `ConfigError` where composition finds mistakes. The caller clears `GlobalHydra` when done.
    """
    GlobalHydra.instance().clear()
    loader = Loader(cwd or Path.cwd())
    hydra = Hydra(task_name="runner", config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    return hydra
