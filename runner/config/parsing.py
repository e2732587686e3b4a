"""Parse plain data into the dataclasses of the schema; find unknown keys and broken rules."""

import dataclasses
import types
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from runner.config import schema
from runner.config.moved import with_current_names
from runner.config.nodes import find_member_nodes, note_component, order_transforms, read_component
from runner.config.reading import INVALID, UNKNOWN_KEY, Path, Reading, format_key, format_yaml
from runner.config.scalars import (
    read_boolean,
    read_duration,
    read_integer,
    read_literal,
    read_number,
    read_pattern,
    read_text,
)
from runner.config.suggestions import ELSEWHERE, find_nearest, translate_name
from runner.core.errors import ABSENT, Mistake


def read(data: dict[str, Any]) -> tuple[schema.Config, Reading]:
    """Parse plain data into a config and a reading; a wrong key has its default."""
    reading = Reading()
    config: schema.Config = _read_dataclass(reading, schema.Config, with_current_names(data), ())
    for name, node in find_member_nodes(config.optimizer).items():
        _read_dataclass(reading, schema.MemberOptimizer, node, ("optimizer", name))
    return config, reading


def read_members(optimizer: dict[str, Any]) -> dict[str, schema.MemberOptimizer]:
    """Parse the nodes of several optimizers, which are known to be right; empty for a single optimizer."""
    return {
        name: read_part(schema.MemberOptimizer, node, ("optimizer", name))[0]
        for name, node in find_member_nodes(optimizer).items()
    }


def read_part(owner: type, data: dict[str, Any], path: Path) -> tuple[Any, Reading]:
    """Parse a mapping outside `Config` into the dataclass `owner`; `path` is its place."""
    reading = Reading()
    return _read_dataclass(reading, owner, data, path), reading


@cache
def get_field_types(owner: type) -> dict[str, Any]:
    """Return the field types of a dataclass, by field name."""
    return get_type_hints(owner)


@cache
def index_schema_keys() -> dict[str, tuple[str, ...]]:
    """Map the last part of each schema key to the full keys that end in it."""
    found: dict[str, tuple[str, ...]] = {}

    def walk(owner: type, prefix: str) -> None:
        for item in dataclasses.fields(owner):
            if item.metadata.get("rest"):
                continue
            name = item.metadata.get("alias", item.name)
            found[name] = (*found.get(name, ()), prefix + name)
            kind = get_field_types(owner)[item.name]
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                walk(kind, f"{prefix}{name}.")

    walk(schema.Config, "")
    return found


@cache
def _collect_defaults() -> dict[str, Any]:
    data: dict[str, Any] = to_plain(read({})[0])
    return data


def find_default(key: str) -> Any:
    """Return the schema's default of a key; `ABSENT` where it has none."""
    value: Any = _collect_defaults()
    for part in key.split("."):
        value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
    return value


def _read_dataclass(reading: Reading, owner: type, data: Any, path: Path) -> Any:
    if not isinstance(data, dict):
        return reading.wrong(path, "must be a mapping of keys to values", data, kind="type")
    fields = {item.metadata.get("alias", item.name): item for item in dataclasses.fields(owner)}
    rest = next((item for item in fields.values() if item.metadata.get("rest")), None)
    named = {name: item for name, item in fields.items() if item is not rest}
    given: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in data.items():
        if name in named:
            item = named[name]
            given[item.name] = _read_field(reading, get_field_types(owner)[item.name], item, value, (*path, name))
        elif rest is not None and isinstance(name, str) and not _suggest_own_key(name, named):
            extra[name] = value
        else:
            _note_unknown_key(reading, name, value, list(named), (*path, name))
    for name, item in named.items():
        if name not in data and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            given[item.name] = reading.wrong((*path, name), "must be given", kind="missing")
    if rest is not None:
        given[rest.name] = _read_field(reading, get_field_types(owner)[rest.name], rest, extra, path)
    read_values = {name: value for name, value in given.items() if value is not INVALID}
    if owner is schema.Config:  # what can be said about the other keys is said, too
        read_values = {"model": {}, "optimizer": {}, "loss": {}} | read_values
    try:
        return owner(**read_values)
    except TypeError:  # a key without a default is wrong
        return INVALID


def _suggest_own_key(name: str, named: Iterable[str]) -> str:
    """Return the runner's own key that an extra key probably means; empty where none is near."""
    near = find_nearest(name, named)
    return near if len(near) > 4 else ""  # shorter names are near to anything


MOST_UNKNOWN = 1_000  # mistakes, after which further unknown keys are not listed


MOST_SUGGESTED = 200  # mistakes, after which unknown keys get no suggestion: a file may have ten thousand


_GROUPS_ONLY = ("experiment", "debug")  # chosen like keys of the root, but no keys


def _note_unknown_key(reading: Reading, name: object, value: Any, known: list[str], path: Path) -> None:
    key = format_key(path)
    if "." in str(name):
        outer, _, inner = str(name).partition(".")
        nested = yaml.safe_dump({outer: {inner: value}}, default_flow_style=True, width=1000).strip()[1:-1]
        reading.wrong(
            path, "is one key with a dot in it", remedy=f"in a file, write it nested: `{nested}`", kind="unknown-key"
        )
        return
    if isinstance(value, dict) and len(value) == 1 and translate_name(f"{key}.{next(iter(value))}"):
        reading.wrong(path, UNKNOWN_KEY, suggestion=translate_name(f"{key}.{next(iter(value))}"), kind="unknown-key")
        return
    full = (
        translate_name(f"{key}={format_yaml(value)}")
        or translate_name(key)
        or (translate_name(str(name)) if len(path) == 1 else "")
    )
    if len(reading.mistakes) > MOST_SUGGESTED:
        if len(reading.mistakes) <= MOST_UNKNOWN:
            reading.wrong(path, UNKNOWN_KEY)
        return
    near = find_nearest(str(name), [*known, *(_GROUPS_ONLY if len(path) == 1 else ())])
    elsewhere = index_schema_keys().get(str(name), ())
    if near:
        full = format_key((*path[:-1], near))
    elif not full and elsewhere:
        full = elsewhere[0]
    elif not full:
        spelled = find_nearest(str(name), index_schema_keys()) if len(str(name)) > 3 else ""
        habit = find_nearest(key, ELSEWHERE)  # another tool's key, which may be nearer: `train.epocs` is `train.epochs`
        nearest = find_nearest(str(name), [spelled, habit.rpartition(".")[2]])
        full = index_schema_keys()[spelled][0] if spelled and nearest == spelled else translate_name(habit)
    reading.wrong(path, UNKNOWN_KEY, suggestion=full, kind="unknown-key")


def _read_field(reading: Reading, kind: Any, item: dataclasses.Field[Any], value: Any, path: Path) -> Any:
    rules = item.metadata
    if value == "???":
        return reading.wrong(path, "must be given: it is `???`", kind="missing")
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    before = len(reading.mistakes)
    read_value = _read_value(reading, kind, value, path, rules)
    if read_value is INVALID:
        reading.mistakes[before:] = [
            (at, _with_default(m, default) if at == path else m) for at, m in reading.mistakes[before:]
        ]
    elif "unbuilt" in rules and read_value != default:
        return reading.wrong(
            path,
            rules["unbuilt"],
            value,
            suggestion=format_yaml(default),
            remedy=f"leave it at `{format_yaml(default)}`",
            kind="unavailable",
        )
    return read_value


def _with_default(mistake: Mistake, default: Any) -> Mistake:
    """Return the mistake with the default as remedy where it has no remedy."""
    if (
        mistake.remedy
        or isinstance(default, dict | list)
        or default is dataclasses.MISSING
        or dataclasses.is_dataclass(default)
    ):
        return mistake
    return dataclasses.replace(
        mistake, remedy=f"the default is `{format_yaml(default)}`", suggestion=format_yaml(default)
    )


def _read_value(reading: Reading, kind: Any, value: Any, path: Path, rules: Any) -> Any:
    if value == "???":
        return reading.wrong(path, "must be given: it is `???`", kind="missing")
    if kind is Any:
        return value
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(reading, args, value, path, rules)
    if origin is Literal:
        return read_literal(reading, args, value, path)
    if origin is list:
        if not isinstance(value, list):
            return reading.wrong(
                path,
                "must be a list",
                value,
                suggestion=f"[{value}]" if isinstance(value, str | int) else "",
                kind="type",
            )
        items = [_read_value(reading, args[0], inner, (*path, index), rules) for index, inner in enumerate(value)]
        return INVALID if any(inner is INVALID for inner in items) else items
    if origin is dict:
        return _read_mapping(reading, args, value, path, rules)
    if dataclasses.is_dataclass(kind):
        read_value = _read_dataclass(reading, kind, value, path)  # type: ignore[arg-type]
        if rules.get("slot") and isinstance(value, dict) and value.get("_target_") is not None:
            note_component(reading, {k: v for k, v in value.items() if k not in _list_own_keys(kind)}, path, rules)
        return read_value
    return _SCALARS[kind](reading, value, path, rules)


def _list_own_keys(owner: Any) -> set[str]:
    return {item.metadata.get("alias", item.name) for item in dataclasses.fields(owner)} - {"_target_"}


def _read_mapping(reading: Reading, args: tuple[Any, ...], value: Any, path: Path, rules: Any) -> Any:
    if not isinstance(value, dict):
        return reading.wrong(path, "must be a mapping of names to values", value, kind="type")
    if "_target_" in value and not rules.get("rest"):
        return reading.wrong(
            path,
            "must be a mapping of names to components, but is one component",
            remedy=f"give it a name: `{path[-1]}: {{mine: {{_target_: …}}}}`",
            kind="type",
        )
    if not all(isinstance(name, str) for name in value):
        bad = next(name for name in value if not isinstance(name, str))
        return reading.wrong((*path, bad), "must be a name (quote it)", kind="type")
    if path[0] == "transform":
        value = order_transforms(reading, value, path)
    read_values = {name: _read_value(reading, args[1], inner, (*path, name), rules) for name, inner in value.items()}
    return INVALID if any(inner is INVALID for inner in read_values.values()) else read_values


def _read_union(reading: Reading, kinds: tuple[Any, ...], value: Any, path: Path, rules: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    fitting = [kind for kind in kinds if kind is not type(None) and _matches_kind(kind, value)]
    if isinstance(value, int) and int in kinds and not isinstance(value, bool):
        fitting = [int]
    if len(fitting) == 1:
        return _read_value(reading, fitting[0], value, path, rules)
    for kind in fitting or ():
        attempt = Reading()
        read_value = _read_value(attempt, kind, value, path, rules)
        if not attempt.mistakes:
            reading.components += attempt.components
            return read_value
    if fitting:
        return _read_value(reading, fitting[0], value, path, rules)
    plain = [kind for kind in kinds if kind is not type(None)]
    if len(plain) == 1:
        return _read_value(reading, plain[0], value, path, rules)
    words = " or ".join(dict.fromkeys(map(_describe_kind, plain))) + (" or null" if type(None) in kinds else "")
    choices = [
        str(v).lower() if isinstance(v, bool) else str(v)
        for kind in plain
        for v in (get_args(kind) if get_origin(kind) is Literal else ())
    ]
    choices += ["true", "false"] if bool in plain else []
    suggestion = find_nearest(value, choices) if isinstance(value, str) else ""
    named = schema.Component in plain and isinstance(value, str) and "." in value
    remedy = f"write `{{_target_: {value}}}`" if named else ""
    return reading.wrong(path, f"must be {words}", value, suggestion, remedy, kind="type")


def _matches_kind(kind: Any, value: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list)
    if origin is dict or kind is schema.Component:
        return isinstance(value, dict)
    if dataclasses.is_dataclass(kind):
        names = {item.name for item in dataclasses.fields(kind)}
        return isinstance(value, dict) and (not value or any(key in names for key in value))
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)


def _describe_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        schema.Component: "a mapping with a `_target_`",
        schema.Pattern: "a pattern",
        schema.Duration: "a duration",
    }
    if get_origin(kind) in (list, dict) or dataclasses.is_dataclass(kind):
        return "a list" if get_origin(kind) is list else "a mapping"
    return words[kind]


_SCALARS: dict[Any, Callable[[Reading, Any, Path, Any], Any]] = {
    bool: read_boolean,
    int: read_integer,
    float: read_number,
    str: read_text,
    schema.Duration: read_duration,
    schema.Pattern: read_pattern,
    schema.Component: read_component,
}


def to_plain(value: Any) -> Any:
    """Convert a typed config to plain data with every default filled in; `read` inverts it."""
    if dataclasses.is_dataclass(value):
        data: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for item in dataclasses.fields(value):
            inner = to_plain(getattr(value, item.name))
            if item.metadata.get("rest"):
                extra = inner
            else:
                data[item.metadata.get("alias", item.name)] = inner
        return {**data, **extra}
    if isinstance(value, dict):
        return {name: to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value
