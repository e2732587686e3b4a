"""Launchers (`hydra/launcher`) of a sweep's jobs: submitit, SLURM and Ray with typed settings."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from runner.config import launchers
from runner.config.check.imports import EXTRAS, describe_install
from runner.config.composed import Composed
from runner.config.parsing import read_part
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake

GROUP = "hydra/launcher"


OURS: dict[str, type] = {
    "submitit_slurm": launchers.SubmititLauncher,
    "submitit_local": launchers.SubmititLauncher,
    "ray": launchers.RayLauncher,
}


def get_launcher_name(composed: Composed) -> str:
    """Return the launcher's name; `basic` (local slots) if the command line chooses none."""
    return composed.choices.get(GROUP) or "basic"


def uses_hydra_launcher(overrides: Sequence[str]) -> bool:
    """Return whether the command line names a launcher or sweeper of Hydra or of a plugin."""
    named = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    return "hydra/sweeper" in named or named.get(GROUP, "ray") not in OURS


def read_launcher(composed: Composed) -> Any:
    """Read the settings of the chosen launcher, one of `OURS`.

    Raises:
        ConfigError: a key of it is wrong, or its extra is not installed.
    """
    import importlib.util

    name = get_launcher_name(composed)
    data: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    settings, reading = read_part(OURS[name], data, ("hydra", "launcher"))
    mistakes = composed.blame(mistake for _, mistake in reading.mistakes)
    package = name.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        rule = f"needs `{package}`, which is not installed"
        mistakes += composed.blame(
            [
                Mistake(
                    GROUP,
                    rule,
                    name,
                    f"argument `{GROUP}={name}`",
                    describe_install(EXTRAS[package]),
                    kind="unavailable",
                )
            ]
        )
    elif isinstance(settings, launchers.RayLauncher):
        mistakes += composed.blame(_check_ray_options(settings.ray))
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def import_ray() -> Any:
    """Import Ray with token authentication, so that running code through a port needs a token.

    Without one anybody can (CVE-2023-48022).
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    return ray


def _check_ray_options(options: launchers.RayOptions) -> Iterator[Mistake]:
    """Yield the mistakes in Ray's options; `ray.init` itself accepts any name."""
    import inspect

    ray = import_ray()
    known = [name for name, p in inspect.signature(ray.init).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options.init:
        if name not in ("address", *known) and not name.startswith("_"):
            right = find_nearest(name, ["address", *known])
            right = f"hydra.launcher.ray.init.{right}" if right else ""
            key = f"hydra.launcher.ray.init.{name}"
            yield Mistake(
                key,
                "is no argument of ray.init",
                remedy=format_suggestion(right),
                suggestion=right,
                kind="unknown-argument",
            )
    try:
        ray.remote(**options.remote)(_check_ray_options) if options.remote else None
    except (ValueError, TypeError) as error:
        yield Mistake("hydra.launcher.ray.remote", f"is refused by Ray: {str(error).splitlines()[0]}", kind="refused")
