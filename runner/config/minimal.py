"""Write a config as the shortest experiment file that composes to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from runner.config.check.check import Check, parse, to_resolved_data
from runner.config.compose import compose
from runner.config.composed import Composed
from runner.config.identity import compute_job_id
from runner.config.parsing import find_default
from runner.config.reading import format_key
from runner.config.schema import Config
from runner.core.errors import ABSENT, ConfigError, Mistake

NO_PART = ("sweep", "run", "on_event")  # of what a run is


_NO_GROUPS = ("experiment", "sweep", "debug")  # the file is the first itself, and Hydra lets it choose no debug


_Path = tuple[str | int, ...]


def write_experiment(
    file: Path,
    header: str,
    overrides: Sequence[str],
    recorded: Mapping[str, Any],
    unresolved: str,
    cwd: Path,
    trust: tuple[str, ...] = (),
) -> None:
    """Write an experiment file that composes to a recorded config, and make sure that it does.

    Its defaults list has the groups whose option differs from the plain defaults, the rest what differs then.

    Args:
        file: `conf/experiment/<name>.yaml`; it must not exist.
        header: comment lines, without `# @package _global_`.
        overrides: the arguments that the run was composed of: they chose its groups.
        recorded: the resolved config of the run.
        unresolved: the YAML of the same with interpolations in place.
        cwd: where `conf/` is looked for.
        trust: patterns of names trusted on the command line.

    Raises:
        ConfigError: there is such a file, or none can be written from which the same config would be composed. Then
            none is left behind.
    """
    groups, base = _compose_groups(overrides, cwd)
    wanted = parse(_select_run_keys(recorded))
    written: Any = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=False)
    as_written: Any = OmegaConf.to_container(base.unresolved, resolve=False)
    problems: list[Mistake] = []
    # With its interpolations, if they still lead to the same values.
    for before, after in [
        (as_written, written),
        (to_resolved_data(Check(base, trust).config), to_resolved_data(wanted)),
    ]:
        removed: list[_Path] = []
        values = _compute_difference(_select_run_keys(before), _select_run_keys(after), (), removed)
        text = f"# @package _global_\n{header}{_format_body(groups, values)}"
        problems = [_make_removed_mistake(path) for path in removed] or _try(file, text, wanted, cwd, trust)
        if not problems:
            return
    raise ConfigError(problems)


def _select_run_keys(config: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: value for name, value in config.items() if name not in NO_PART}


def _compose_groups(overrides: Sequence[str], cwd: Path) -> tuple[dict[str, str | None], Composed]:
    """Return defaults-list entries for the groups not at their default, and their composition.

    Raises:
        ConfigError: the plain defaults, or what the run was made of, cannot be composed any more.
    """
    plain, composed = compose(["experiment=null"], cwd), compose(list(overrides), cwd)
    if mistakes := [*plain.mistakes, *composed.mistakes]:
        raise ConfigError(mistakes)
    entries, arguments = {}, ["experiment=null"]
    for group, option in composed.choices.items():
        if group.startswith("hydra/") or group in _NO_GROUPS or plain.choices.get(group, ABSENT) == option:
            continue
        known = group in plain.choices
        entries[f"override /{group}" if known else f"/{group}"] = option
        arguments.append(f"{'' if known else '+'}{group}={'null' if option is None else option}")
    return entries, compose(arguments, cwd)


def _format_body(groups: Mapping[str, str | None], values: Mapping[Any, Any]) -> str:
    """Format the YAML of an experiment file, below its header."""
    defaults = yaml.safe_dump({"defaults": [{entry: option} for entry, option in groups.items()]}, sort_keys=False)
    parts = [*([defaults] if groups else []), *([OmegaConf.to_yaml(OmegaConf.create(dict(values)))] if values else [])]
    return "\n".join(parts)


def _compute_difference(old: dict[Any, Any], new: dict[Any, Any], path: _Path, removed: list[_Path]) -> dict[Any, Any]:
    """Return the data to merge into `old` to get `new`; add paths missing in `new` to `removed`."""
    removed += [(*path, name) for name in old if name not in new]
    changes: dict[Any, Any] = {}
    for name, value in new.items():
        before = old.get(name, ABSENT)
        if isinstance(before, dict) and isinstance(value, dict):
            inner = _compute_difference(before, value, (*path, name), removed)
            changes |= {name: inner} if inner else {}
        elif before is ABSENT:
            changes |= {name: value} if not _is_same(find_default(format_key((*path, name))), value) else {}
        elif not _is_same(before, value):
            changes[name] = value
    return changes


def _is_same(a: Any, b: Any) -> bool:
    """Return whether YAML would write both values alike: 1 is not 1.0, nor true."""
    return json.dumps(a, default=str, sort_keys=True) == json.dumps(b, default=str, sort_keys=True)


def _make_removed_mistake(path: _Path) -> Mistake:
    rule = "was taken away in the run (`~`), which a file cannot do"
    return Mistake(
        format_key(path), rule, remedy="set it to null in the sweep instead, where that means the same", kind="record"
    )


def _try(file: Path, text: str, wanted: Config, cwd: Path, trust: tuple[str, ...]) -> list[Mistake]:
    """Write the file and compose it; delete it again where another config results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        rule = "must be a new file: an experiment is never overwritten"
        return [Mistake("--name", rule, str(file), remedy="choose another with `--name NAME`", kind="file")]
    problems: list[Mistake] = []
    try:
        problems = list(_find_problems(compose([f"experiment={file.stem}"], cwd), wanted, trust))
    finally:
        if problems:
            file.unlink()
    return problems


def _find_problems(composed: Composed, wanted: Config, trust: tuple[str, ...]) -> Iterator[Mistake]:
    """Yield the mistakes that keep a composition from being the wanted config."""
    checked = Check(composed, trust)
    if checked.at_once:
        yield from checked.at_once
        return
    found, meant = to_resolved_data(parse(to_resolved_data(checked.config))), to_resolved_data(wanted)
    differ = [name for name in found if name not in NO_PART and not _is_same(meant[name], found[name])]
    rule = "would not be what the run was trained with, from a file: something in `conf/` has changed since"
    for name in differ:
        yield Mistake(name, rule, found[name], remedy=f"it was {json.dumps(meant[name], default=str)}", kind="record")
    if not differ and compute_job_id(meant) != compute_job_id(found):
        yield Mistake(
            "config",
            "would have the transforms, rules or groups of the run in another order, from a file",
            kind="record",
        )
