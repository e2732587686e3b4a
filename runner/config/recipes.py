"""Recipe settings for one option of a group, left out where another option is in force.

A recipe is a file of `conf/experiment`, or the primary config with keys of its own. What it sets below a group is for
the option that the recipe itself chooses (or that the defaults choose, where it chooses none).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

# Groups whose options are components with settings of their own. The others hold the runner's own keys, which mean the
# same whatever option is chosen: `loader=workers` keeps a recipe's batch size.
GROUPS = (
    "dataset",
    "transform",
    "model",
    "step",
    "init",
    "pretrained",
    "freeze",
    "optimizer",
    "param_groups",
    "scheduler",
    "loss",
    "metrics",
)


KEPT = {"dataset": ("limit", "split_seed", "folds", "fold")}  # the runner's own keys of these groups, for any option


# Settings of other groups in the optimizer's own unit: a rate for SGD is none for Adam.
RATES = {"scheduler": ("max_lr", "base_lr", "eta_min", "min_lr", "swa_lr"), "param_groups": ("lr",)}


Options = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class SupersededGroup:
    """Group of a recipe whose settings were written for other options than those in force."""

    group: str
    written_for: tuple[str, ...]
    chosen: tuple[str, ...]

    def __str__(self) -> str:
        written_for, chosen = _format_options(self.group, self.written_for), _format_options(self.group, self.chosen)
        return f"written for {written_for}, and {chosen} is chosen"


def _format_options(group: str, options: Sequence[str]) -> str:
    names = [option.removeprefix(f"{group}/") for option in options]
    return f"{group}={'null' if not names else names[0] if len(names) == 1 else '[' + ','.join(names) + ']'}"


def find_superseded(
    defaults: Sequence[ResultDefault],
    overrides: Sequence[Override],
    repository: Any,
    loader: ConfigLoader,
    primary: str,
) -> dict[str, dict[str, SupersededGroup]]:
    """Find each recipe's groups (by config path) whose settings are for options not in force.

    Args:
        defaults: the defaults list of the composition.
        overrides: its arguments.
        repository: where files are read from.
        loader: what an override of Hydra's asks for the groups.
        primary: the name of the primary config.
    """
    chosen = list_options(defaults)
    explicit = {override.key_or_group for override in overrides if not isinstance(override.value(), dict)}
    recipes = [d for d in defaults if not d.package and _is_recipe(d.config_path or "", primary)]
    found: dict[str, dict[str, SupersededGroup]] = {}
    presets = [default for default in defaults if (default.config_path or "").startswith("debug/")]
    experiments = [default for default in recipes if default.config_path != primary]
    if len(experiments) <= 1 and not presets and not explicit & {*GROUPS}:  # it is in force as it is written
        recipes = [default for default in recipes if default.config_path == primary]
    for default in recipes:
        path = default.config_path or ""
        loaded = repository.load_config(path)
        config = loaded.config if loaded is not None else None
        groups = [group for group in GROUPS if isinstance(config, DictConfig) and _has_settings(config, group)]
        if not groups:
            continue
        own = _list_primary_options(loaded) if path == primary else _compose_alone(path, repository, loader, primary)
        if own is None:
            continue
        for group in groups:
            before, now = own.get(group, ()), chosen.get(group, ())
            replaced = group in explicit and _has_other_target(config, group, repository, now)
            if before != now or replaced:
                written = (f"{group}/its own _target_",) if before == now else before
                found.setdefault(path, {})[group] = SupersededGroup(group, written, now)
    return found


def list_options(defaults: Sequence[ResultDefault]) -> Options:
    """Return the options of each group in a defaults list."""
    found: Options = {}
    for default in defaults:
        group, _, option = (default.config_path or "").partition("/")
        if option and group in GROUPS and (default.override_key or "").partition("@")[0].partition("/")[0] == group:
            found[group] = (*found.get(group, ()), default.config_path or "")
    return found


def _is_recipe(path: str, primary: str) -> bool:
    return path == primary or path.startswith("experiment/")


def leave_out(config: DictConfig, groups: Mapping[str, SupersededGroup]) -> None:
    """Remove superseded groups from a recipe's config, except the runner's own keys in them."""
    for group in groups:
        kept = [name for name in KEPT.get(group, ()) if name in config._get_node(group)]  # type: ignore[operator]  # noqa: SLF001
        if kept:
            for name in [name for name in config[group] if name not in kept]:
                config[group].pop(name)
        else:
            config.pop(group)


def find_left_out(path: Sequence[str | int], groups: Mapping[str, SupersededGroup]) -> SupersededGroup | None:
    """Return the superseded group that leaves out a recipe's setting; None where it stays."""
    reason = groups.get(str(path[0])) if path else None
    return None if reason is None or (len(path) > 1 and path[1] in KEPT.get(reason.group, ())) else reason


def _has_settings(config: DictConfig, group: str) -> bool:
    node = config._get_node(group)  # noqa: SLF001  an interpolation is not followed
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():  # noqa: SLF001
        return False
    return any(name not in KEPT.get(group, ()) for name in node)


def _has_other_target(config: Any, group: str, repository: Any, chosen: Sequence[str]) -> bool:
    """Return whether a recipe names another `_target_` than the chosen options do."""
    if "_target_" not in config[group]:
        return False
    loaded = [repository.load_config(path) for path in chosen]
    named = [one.config.get("_target_") for one in loaded if one is not None and isinstance(one.config, DictConfig)]
    return config[group]._get_node("_target_")._value() not in named  # noqa: SLF001


def _list_primary_options(loaded: Any) -> Options:
    """Return the options that the primary config chooses itself."""
    found: Options = {}
    for default in loaded.defaults_list or ():
        group, value = getattr(default, "group", None), getattr(default, "value", None)
        if group in GROUPS and value is not None:
            names = value if isinstance(value, list) else [value]
            found[group] = tuple(f"{group}/{name}" for name in names)
    return found


def _compose_alone(path: str, repository: Any, loader: ConfigLoader, primary: str) -> Options | None:
    """Return the options in force where an experiment is the only argument; None if it fails."""
    name = path.partition("/")[2]
    for text in (f"experiment={name}", f"+experiment={name}"):
        override = OverridesParser.create().parse_overrides([text])[0]
        override.config_loader = loader
        try:
            listed = create_defaults_list(
                repo=repository, config_name=primary, overrides_list=[override], prepend_hydra=True, skip_missing=True
            )
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError, TypeError):
            continue
        return list_options(listed.defaults)
    return None
