"""Project as an editor sees it: its config files, options of groups, and targets that they name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config import document
from runner.config.editor.json_schema import GroupOption, SchemaBuilder, find_group_field
from runner.config.editor.targets import list_targets
from runner.config.hydra_repository import CONFIG_NAME
from runner.config.key_help import read_first_comment
from runner.core.paths import find_our_conf

MOST_FILES = 2000  # config files of a project


def make_builder(trust: Sequence[str] = ()) -> SchemaBuilder:
    """Make the builder of this project's schemas: its `conf/`, then the runner's own."""
    files = [*list_config_files(Path("conf")), *list_config_files(find_our_conf())]
    named = [name for file in files for name in _list_named(document.load(file).root)]
    options: dict[str, dict[str, GroupOption]] = {}
    for file in files:
        folder = Path("conf") if file.is_relative_to("conf") else find_our_conf()
        group = find_group(file.relative_to(folder))
        if group:
            name = file.relative_to(folder).relative_to(group).with_suffix("").as_posix()
            options.setdefault(group, {}).setdefault(name, _read_option(name, file))
    listed = {group: sorted(found.values(), key=lambda one: one.name) for group, found in sorted(options.items())}
    return SchemaBuilder(list_targets(named, trust), listed, _read_chosen(files))


def find_group(file: Path) -> str:
    """Return the group of a file below `conf/`, `log/to` of `log/to/mine.yaml`; empty for none of ours."""
    *folders, _ = file.parts
    if not folders or folders[0] == "hydra":
        return ""
    nested = ("/".join(folders[:count]) for count in range(len(folders), 1, -1))
    return next((group for group in nested if find_group_field(group) is not None), folders[0])


def list_config_files(folder: Path) -> list[Path]:
    """List the YAML files below a folder of configs, sorted; hidden ones are none."""
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)][
        :MOST_FILES
    ]


def is_global(file: Path) -> bool:
    """Return whether a config file says that its keys are those of the root."""
    header = document.load(file).text[:512]
    return any(line.startswith("# @package _global_") for line in header.splitlines())


def _read_option(name: str, file: Path) -> GroupOption:
    data = document.load(file).data
    target = data.get("_target_", "")
    at_once = data.get("_partial_", True) is not True
    return GroupOption(name, read_first_comment(file), target if isinstance(target, str) else "", at_once)


def _read_chosen(files: Sequence[Path]) -> dict[str, str]:
    """Return the options that the primary config chooses: the project's, else ours."""
    primary = next((file for file in files if file.name == f"{CONFIG_NAME}.yaml" and file.parent.name == "conf"), None)
    entries: Any = document.load(primary).data.get("defaults", []) if primary is not None else []
    chosen: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            chosen |= {str(group): str(name) for group, name in entry.items() if isinstance(name, str)}
    return chosen


def _list_named(node: yaml.Node | None) -> Iterator[str]:
    """Yield the texts behind `_target_` (and the types of `module`) below a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "_target_" and isinstance(value, yaml.ScalarNode):
                yield value.value
            else:
                yield from _list_named(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _list_named(value)
