"""`hydra/launcher`: where the jobs of a sweep run. Some of Hydra's names are ours, with typed keys."""

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from runner.config import schema
from runner.config.check.imports import EXTRAS, install
from runner.config.hydra_loader import Composed
from runner.config.parsing import read_part
from runner.config.suggestions import did_you_mean, nearest
from runner.core.errors import ConfigError, Mistake

GROUP = "hydra/launcher"


OURS: dict[str, type] = {
    "submitit_slurm": schema.SubmititLauncher,
    "submitit_local": schema.SubmititLauncher,
    "ray": schema.RayLauncher,
}


def chosen(composed: Composed) -> str:
    """The launcher's name; `basic` where the command line chooses none: this machine, in slots."""
    return composed.choices.get(GROUP) or "basic"


def launcher(composed: Composed) -> Any:
    """The settings of one of our launchers.

    Raises:
        ConfigError: a key of it is wrong, or its extra is not installed.
    """
    import importlib.util

    name = chosen(composed)
    data: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    settings, reading = read_part(OURS[name], data, ("hydra", "launcher"))
    mistakes = composed.blame(mistake for _, mistake in reading.mistakes)
    package = name.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        rule = f"needs `{package}`, which is not installed"
        mistakes += composed.blame([Mistake(GROUP, rule, name, f"argument `{GROUP}={name}`", install(EXTRAS[package]))])
    elif isinstance(settings, schema.RayLauncher):
        mistakes += composed.blame(_of_ray(settings.ray))
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def import_ray() -> Any:
    """Ray, told before it is imported that whoever reaches a port of it must have a token to run code there.

    Without one anybody can (CVE-2023-48022).
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    return ray


def _of_ray(options: schema.RayOptions) -> Iterator[Mistake]:
    """What Ray does not know; its own `init` swallows any name."""
    import inspect

    ray = import_ray()
    known = [name for name, p in inspect.signature(ray.init).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options.init:
        if name not in ("address", *known) and not name.startswith("_"):
            right = nearest(name, ["address", *known])
            right = f"hydra.launcher.ray.init.{right}" if right else ""
            key = f"hydra.launcher.ray.init.{name}"
            yield Mistake(key, "is no argument of ray.init", remedy=did_you_mean(right), suggestion=right)
    try:
        ray.remote(**options.remote)(_of_ray) if options.remote else None
    except (ValueError, TypeError) as error:
        yield Mistake("hydra.launcher.ray.remote", f"is refused by Ray: {str(error).splitlines()[0]}")
