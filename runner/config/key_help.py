"""Help for keys: type, rule, default and comment of each key, as the schema states them."""

import dataclasses
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from runner.config import schema
from runner.config.defaults import find_docstring
from runner.config.editor.docstrings import read_arguments
from runner.config.field_notes import read_field_notes
from runner.config.parsing import get_field_types, to_plain
from runner.config.reading import format_yaml
from runner.core.errors import ABSENT

NAME = "NAME"  # in a key, where people choose the name: `param_groups.NAME.match`


@dataclass(frozen=True)
class KeyHelp:
    """Help for one key.

    Attributes:
        key: in full; `NAME` stands for a name that people choose, `N` for a place in a list.
        kind: kinds of values in words, `an integer or null`.
        rule: bounds, choices or pattern in words; empty without one.
        default: plain data; `ABSENT` where the key must be given.
        comment: from the schema; empty without one.
        where: `schema/train.py:112`.
        choices: all values where they are few, as YAML; empty for any other kind.
    """

    key: str
    kind: str
    rule: str
    default: Any
    comment: str
    where: str
    choices: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data; without `default` where the key must be given."""
        plain = dataclasses.asdict(self)
        if self.default is ABSENT:
            del plain["default"]
        return plain

    @property
    def shown_default(self) -> str:
        """Default as YAML; empty where the key must be given."""
        return "" if self.default is ABSENT else format_yaml(self.default)


@cache
def list_key_help() -> tuple[KeyHelp, ...]:
    """List the help for every key of the schema, in its order."""
    return tuple(_walk(schema.Config, ""))


def find_key_help(key: str) -> KeyHelp | None:
    """Return the help for a key, any name in the place of `NAME`; None for a key that the schema lacks."""
    parts = key.split(".")
    for known in list_key_help():
        names = known.key.split(".")
        if len(names) == len(parts) and all(one in (part, NAME, "N") for one, part in zip(names, parts, strict=True)):
            return known
    return None


def find_comment(key: str, config: Any) -> str:
    """Return the comment on a key: the schema's, or what a component's docstring says of its argument.

    Args:
        key: in full.
        config: composed, as plain data.
    """
    known = find_key_help(key)
    if known is not None and not known.key.endswith(f".{NAME}"):
        return known.comment
    *outer, name = key.split(".")
    node = config
    for part in outer:
        node = node.get(part) if isinstance(node, dict) else None
    target = node.get("_target_") if isinstance(node, dict) else None
    said = read_arguments(find_docstring(target)).get(name, "") if isinstance(target, str) else ""
    return said or (known.comment if known is not None and not target else "")


def list_keys_below(key: str) -> list[KeyHelp]:
    """List the help for the keys below a key, which may have a name in the place of `NAME`."""
    parts = key.split(".")
    found = []
    for known in list_key_help():
        names = known.key.split(".")
        if len(names) > len(parts) and all(one in (part, NAME, "N") for one, part in zip(names, parts, strict=False)):
            found.append(known)
    return found


def list_choices(kind: Any) -> tuple[str, ...]:
    """List those values of a type that are few, as YAML: literals, true and false, null beside them."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    found: list[str] = []
    for part in parts:
        if get_origin(part) is Literal:
            found += map(format_yaml, get_args(part))
        elif part is bool:
            found += ["true", "false"]
        elif part is type(None):
            found += ["null"]
    return tuple(found) if found != ["null"] else ()


def describe_type(kind: Any) -> str:
    """Describe a field's type in words."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words = dict.fromkeys(_describe_part(part) for part in parts if part is not type(None))
    return " or ".join([*words, *(["null"] if type(None) in parts else [])])


def _describe_part(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{format_yaml(value)}`" for value in args)
    if origin is list:
        return f"a list, each {describe_type(args[0])}"
    if origin is dict:
        return f"a mapping from names to {describe_type(args[1])}" if args[1] is not Any else "a mapping"
    plain = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        Any: "any value",
        schema.Component: "a component (`_target_` and its arguments)",
        schema.Pattern: "a pattern (regular expression)",
        schema.Duration: "a duration (`5ep`, `500st`)",
    }
    return plain.get(kind, "a mapping")


_BOUNDS = {"at_least": "at least", "at_most": "at most", "above": "above", "below": "below"}


def describe_rule(rules: Any) -> str:
    """Describe the rules of a field in words; empty without any."""
    said = [f"{words} {rules[name]}" for name, words in _BOUNDS.items() if name in rules]
    if "like" in rules:
        said.append(f"like `{rules['like']}`")
    elif "regex" in rules:
        said.append(f"matches `{rules['regex']}`")
    if "slot" in rules:
        said.append(f"fits the slot `{rules['slot']}`")
    if "unbuilt" in rules:
        said.append(rules["unbuilt"])
    return ", ".join(said)


def _walk(owner: type, prefix: str) -> Iterator[KeyHelp]:
    kinds, notes = get_field_types(owner), read_field_notes()
    for item in dataclasses.fields(owner):
        name = item.metadata.get("alias", item.name)
        key = f"{prefix}{NAME if item.metadata.get('rest') else name}"
        kind = kinds[item.name]
        note = notes[owner.__name__, item.name]
        inner, below = _find_inner(kind, key)
        shown = kind if not item.metadata.get("rest") else get_args(kind)[1]
        said = describe_type(shown), describe_rule(item.metadata), _get_default(item), note.comment, note.where
        yield KeyHelp(key, *said, list_choices(shown))
        if inner is not None:
            yield from _walk(inner, f"{below}.")


def _get_default(item: dataclasses.Field[Any]) -> Any:
    if item.metadata.get("rest"):
        return ABSENT
    if item.default_factory is not dataclasses.MISSING:
        try:
            return to_plain(item.default_factory())
        except TypeError:  # a class with keys that must be given
            return ABSENT
    return ABSENT if item.default is dataclasses.MISSING else item.default


def _find_inner(kind: Any, key: str) -> tuple[type | None, str]:
    """Return the dataclass inside a field's type, and the prefix of its keys."""
    for part in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        origin, args = get_origin(part), get_args(part)
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part, key
        if origin in (dict, list):
            inner, below = _find_inner(args[-1], f"{key}.{NAME if origin is dict else 'N'}")
            if inner is not None:
                return inner, below
    return None, ""


def read_first_comment(file: Path) -> str:
    """Return the first sentence of a config file's comment; empty without one."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ")
        if not line.startswith("#") or text.startswith("command:"):
            break
        if not line.startswith("# @package"):
            words.append(text)
    return " ".join(words).partition(". ")[0].rstrip(".")


def list_options(group: str, folders: list[Path]) -> list[tuple[str, str]]:
    """List the options of a group below some folders of configs, each with its first comment."""
    found: dict[str, str] = {}
    for folder in folders:
        place = folder / group
        for file in sorted(place.glob("*.yaml")) if place.is_dir() else ():
            try:
                found.setdefault(file.stem, read_first_comment(file))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                found.setdefault(file.stem, "")
    return sorted(found.items())
