"""Who set a key: every file and argument in order, and the line of each."""

import ast
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from runner.config import document, schema
from runner.config.document import Document
from runner.config.recipes import KEPT, RATES, left_out
from runner.core.errors import ABSENT, Mistake

if TYPE_CHECKING:
    from hydra.core.default_element import ResultDefault
    from hydra.core.override_parser.types import Override

    from runner.config.recipes import Superseded


Path_ = tuple[str | int, ...]


REFERENCE = re.compile(r"\$\{(\.*[\w.\-\[\]]+)\}")


class Files(Protocol):
    """What blame needs of the repository."""

    read: dict[Path, Document]

    def file(self, config_path: str) -> Path | None:
        """The file of an option."""


def argument(text: str) -> str:
    """An argument of the command line, as a place."""
    return f"argument `{text}`"


def place(path: Path, line: int, cwd: Path) -> str:
    """`file:line`, relative where the file is below the working directory."""
    shown_path = path.relative_to(cwd) if path.is_relative_to(cwd) else path
    return f"{shown_path}:{line}"


def shown(mistake: Mistake, cwd: Path) -> Mistake:
    """The same mistake with its absolute paths below the working directory made relative."""
    prefix = str(cwd).rstrip(os.sep) + os.sep
    return dataclasses.replace(
        mistake,
        key=mistake.key.removeprefix(prefix),
        where=mistake.where.replace(prefix, ""),
        rule=mistake.rule.replace(prefix, ""),
    )


def dotted(path: Path_) -> str:
    """The key of a path."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Setting:
    """One layer's word on a key: the raw value, where, and where its group's option was chosen."""

    value: object
    where: str
    chosen: str = ""


@dataclass(frozen=True)
class _File:
    loaded: Document
    package: Path_
    chosen: str
    cwd: Path
    superseded: "Mapping[str, Superseded]" = dataclasses.field(default_factory=dict)

    def left_out(self, path: Path_) -> "tuple[Setting, Superseded] | None":
        """The setting of a recipe that was written for another option, and that option."""
        reason = left_out(path, self.superseded)
        found = dataclasses.replace(self, superseded={}).setting(path) if reason else None
        return (found, reason) if found and reason else None

    def placed(self, places: Mapping[str, str]) -> "_File":
        return dataclasses.replace(self, chosen=places.get(self.chosen, self.chosen))

    def setting(self, path: Path_) -> Setting | None:
        below, node_path = path[: len(self.package)], path[len(self.package) :]
        if below != self.package[: len(below)] or (len(path) < len(self.package) and not self.loaded.data):
            return None
        if node_path and node_path[0] == "defaults" and not self.package:
            return None
        reason = left_out(path, self.superseded)
        kept = [name for name in KEPT.get(str(path[0]), ()) if reason and name in self.loaded.data[str(path[0])]]
        if reason and not kept:
            return None
        if self.loaded.root is None and path == self.package:
            return Setting({}, place(self.loaded.path, 1, self.cwd), self.chosen)  # an empty file
        found = document.find(self.loaded.root, node_path)
        if found is None:
            return None
        line, node = found
        if not node_path and isinstance(node, yaml.MappingNode) and node.value:
            line = node.value[0][0].start_mark.line + 1
        value: Any = self.loaded.data
        for part in node_path:
            value = value[part]
        if reason:  # the group as a whole
            value = {name: value[name] for name in kept}
        return Setting(value, place(self.loaded.path, line, self.cwd), self.chosen)


@dataclass(frozen=True)
class _Argument:
    text: str
    path: Path_
    value: object
    removes: bool = False
    where: str = ""  # where it was said, if not on the command line

    @classmethod
    def of(cls, override: "Override") -> "_Argument":
        """From Hydra's override."""
        text = override.input_line or ""
        value = text.partition("=")[2] if override.is_sweep_override() else override.value()
        return cls(text, as_path(override.key_or_group), value, override.is_delete())

    def placed(self, places: Mapping[str, str]) -> "_Argument":
        return dataclasses.replace(self, where=places.get(argument(self.text), self.where))

    def setting(self, path: Path_) -> Setting | None:
        if path[: len(self.path)] != self.path:
            return None
        value = self.value
        for part in path[len(self.path) :]:
            if not isinstance(value, dict | list) or (isinstance(value, list) and not isinstance(part, int)):
                return None
            if isinstance(value, dict) and part not in value:
                return None
            value = value[part]  # type: ignore[index]
        return Setting(ABSENT if self.removes else value, self.where or argument(self.text))


class Layers:
    """All files and arguments of a composition, in the order in which they are merged: the last to set a key wins."""

    def __init__(self, layers: Sequence[_File | _Argument], primary: str, cwd: Path) -> None:
        self._layers = layers
        self._primary = primary
        self.cwd = cwd

    @classmethod
    def of(
        cls,
        files: Files,
        defaults: "Sequence[ResultDefault]",
        overrides: "Sequence[Override]",
        cwd: Path,
        superseded: "Mapping[str, Mapping[str, Superseded]] | None" = None,
    ) -> "Layers":
        """From Hydra's defaults list and overrides."""
        layers: list[_File | _Argument] = []
        primary = ""
        for default in defaults:
            path = files.file(default.config_path or "")
            if path is None or path not in files.read:
                continue
            package = tuple(part for part in (default.package or "").split(".") if part)
            chosen = "" if default.primary else _chooser(files, defaults, overrides, default, cwd)
            if default.primary:
                primary = place(path, 1, cwd)
            of_others = (superseded or {}).get(default.config_path or "", {})
            layers.append(_File(files.read[path], package, chosen, cwd, of_others))
        for override in overrides:
            if override.key_or_group.partition("@")[0] in _groups(defaults) and not isinstance(override.value(), dict):
                continue
            layers.append(_Argument.of(override))
        return cls(layers, primary, cwd)

    @classmethod
    def of_a_file(cls, loaded: Document, cwd: Path) -> "Layers":
        """The one layer of a config that was not composed."""
        return cls([_File(loaded, (), "", cwd)], place(loaded.path, 1, cwd), cwd)

    def with_arguments(self, overrides: "Sequence[Override]") -> "Layers":
        """The same layers with further arguments over them."""
        return Layers([*self._layers, *map(_Argument.of, overrides)], self._primary, self.cwd)

    def placed(self, places: Mapping[str, str]) -> "Layers":
        """The same layers with each of these places (of arguments) instead of another."""
        return Layers([layer.placed(places) for layer in self._layers], self._primary, self.cwd)

    def sets_only(self, group: str, keys: Sequence[str]) -> bool:
        """Whether the option of a group says nothing but these keys of the root, and the defaults list of a file."""
        files = (f for f in self._layers if isinstance(f, _File) and f.loaded.path.parent.name == group)
        return all(name in (*keys, "defaults") for f in files for name in (f.package[:1] or f.loaded.data))

    def settings(self, path: Path_) -> list[Setting]:
        """Every layer that sets the key, in order; the winner last."""
        found = [layer.setting(path) for layer in self._layers]
        return [setting for setting in found if setting is not None]

    def left_out(self, path: Path_) -> "list[tuple[Setting, Superseded]]":
        """Settings of the key that recipes wrote for an option that is not in force."""
        found = [layer.left_out(path) for layer in self._layers if isinstance(layer, _File)]
        return [one for one in found if one is not None]

    def notes_on_recipes(self) -> list[str]:
        """One line for each group of a recipe that is left out, and for rates that were meant for another optimizer."""
        notes = []
        for layer in self._layers:
            if not isinstance(layer, _File):
                continue
            for group, reason in layer.superseded.items():
                found = layer.left_out((group,))
                names = [n for n in layer.loaded.data.get(group, {}) if n not in KEPT.get(group, ())]
                keys = ", ".join(f"{group}.{name}" for name in names)
                if found is not None:
                    notes.append(f"{keys} of {found[0].where} left out: {reason}")
            if "optimizer" in layer.superseded:
                notes += [
                    f"{dotted(path)} = {value} ({self.origin(path)}) is a rate {layer.superseded['optimizer']}"
                    for path, value in _rates(layer.loaded.data)
                    if self.origin(path).startswith(f"{place(layer.loaded.path, 0, self.cwd)[:-1]}")
                ]
        return notes

    def notes_on_targets(self, config: dict[str, Any]) -> list[str]:
        """One line for each component whose `_target_` was changed, with the settings that stay from the one before."""
        notes = []
        for path, node in _components(config, ()):
            targets = [
                (i, s.value) for i, layer in enumerate(self._layers) if (s := layer.setting((*path, "_target_")))
            ]
            changed = next((i for i, value in reversed(targets) if value != targets[-1][1]), None)
            if changed is None:
                continue
            since = next(i for i, _ in targets if i > changed)
            stay = {}
            for name in node:
                setters = [i for i, layer in enumerate(self._layers) if layer.setting((*path, name))]
                if not name.startswith("_") and setters and setters[-1] < since:
                    stay[name] = self.origin((*path, name))
            if stay:
                said = ", ".join(f"{dotted((*path, name))} = {node[name]} ({where})" for name, where in stay.items())
                before = dict(targets)[changed]
                notes.append(f"written for {before}, and used for {targets[-1][1]}: {said}")
        return notes

    def references(self, path: Path_) -> list[Path_]:
        """The keys that the interpolations of the winner point to."""
        settings = self.settings(path)
        value = settings[-1].value if settings else None
        return [target(reference, path) for reference in REFERENCE.findall(value)] if isinstance(value, str) else []

    def node(self, path: Path_) -> int | None:
        """The identity of the YAML node that set a key (keys that one alias sets share it); None for an argument."""
        for layer in reversed(self._layers):
            if layer.setting(path) is not None:
                found = (
                    document.find(layer.loaded.root, path[len(layer.package) :]) if isinstance(layer, _File) else None
                )
                return id(found[1]) if found else None
        return None

    def parts(self, path: Path_) -> list[tuple[Path_, Setting]]:
        """Arguments that set something below the key."""
        return [
            (layer.path, setting)
            for layer in self._layers
            if isinstance(layer, _Argument) and len(layer.path) > len(path) and layer.path[: len(path)] == path
            if (setting := layer.setting(layer.path))
        ]

    def blame(self, path: Path_, *, follow: bool = True) -> str:
        """Where a key got its value: the winner's line, the line that chose its group, the lines it points to."""
        settings = self.settings(path)
        own = "" if settings and settings[-1].where.startswith("argument ") else self._arguments_below(path)
        if not settings:
            if own:
                return own
            return self.blame(path[:-1], follow=follow) if len(path) > 1 else schema_line(path) or self._primary
        setting = settings[-1]
        more = [f"chosen by {setting.chosen}"] if setting.chosen else []
        if follow and isinstance(setting.value, str):
            for reference in REFERENCE.findall(setting.value):
                pointed = target(reference, path)
                if pointed != path:
                    more.append(f"`${{{reference}}}` is set by {self.origin(pointed)}")
        where = setting.where + (f" ({'; '.join(more)})" if more else "")
        return f"{own}, over {where}" if own else where

    def _arguments_below(self, path: Path_) -> str:
        """The arguments that set something below a key, in words; the last of several to one place."""
        return ", ".join(dict.fromkeys({at: setting.where for at, setting in self.parts(path)}.values()))

    def chooser(self, group: str) -> str:
        """Who chose the option of a group."""
        files = (layer for layer in self._layers if isinstance(layer, _File))
        return next((file.chosen for file in files if file.loaded.path.parent.name == group), self._primary)

    def paths(self, config: dict[str, Any]) -> Iterator[Path_]:
        """Every key of a composed config."""
        stack: list[tuple[Path_, Any]] = [((), config)]
        while stack:
            path, value = stack.pop()
            if path:
                yield path
            if isinstance(value, dict):
                stack += [((*path, name), inner) for name, inner in value.items()]

    def origin(self, path: Path_) -> str:
        """The first place of `blame` alone."""
        settings = self.settings(path)
        return settings[-1].where if settings else schema_line(path) or self._primary


def _components(value: Any, path: Path_) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Every mapping with a `_target_`, and its path."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for name, inner in value.items():
            yield from _components(inner, (*path, name))


def _rates(data: Mapping[str, Any]) -> Iterator[tuple[Path_, Any]]:
    """The settings of other groups that are in the optimizer's own unit."""
    for group, names in RATES.items():
        stack: list[tuple[Path_, Any]] = [((group,), data.get(group))]
        while stack:
            path, value = stack.pop()
            if isinstance(value, dict):
                stack += [((*path, name), inner) for name, inner in value.items()]
            elif path[-1] in names and isinstance(value, int | float):
                yield path, value


def target(reference: str, path: Path_) -> Path_:
    """The key that `${reference}` at `path` points to."""
    dots = len(reference) - len(reference.lstrip("."))
    parts = as_path(reference.lstrip("."))
    return (*path[: len(path) - dots], *parts) if dots else parts


def as_path(key: str) -> Path_:
    """The path of a key, `a.b[0]` or `a.b.0`."""
    return tuple(_parts(key))


def _parts(key: str) -> Iterator[str | int]:
    for part in re.split(r"[.\[\]]+", key):
        if part:
            yield int(part) if part.isdigit() else part


def _groups(defaults: "Sequence[ResultDefault]") -> set[str]:
    return {(default.override_key or "").partition("@")[0] for default in defaults} - {""}


def _chooser(
    files: Files,
    defaults: "Sequence[ResultDefault]",
    overrides: "Sequence[Override]",
    default: "ResultDefault",
    cwd: Path,
) -> str:
    """The argument or the line of a defaults list that chose this option."""
    group, option = (default.override_key or "").partition("@")[0], (default.config_path or "").rpartition("/")[2]
    for override in reversed(overrides):
        if override.key_or_group == group and not override.is_delete() and not isinstance(override.value(), dict):
            return argument(override.input_line or "")
    parents = [files.file(d.config_path or "") for d in defaults]
    best = ""
    for path in dict.fromkeys(p for p in parents if p is not None):
        loaded = files.read.get(path)
        for index, entry in enumerate(loaded.data.get("defaults") or [] if loaded else []):
            names = (
                entry.items()
                if isinstance(entry, dict)
                else [(str(entry).rpartition("/")[0], str(entry).rpartition("/")[2])]
            )
            for name, chosen in names:
                words = str(name).split()
                if not words or words[-1].partition("@")[0].lstrip("/") != group:
                    continue
                if str(chosen) == option or (isinstance(chosen, list) and option in chosen) or not best:
                    found = document.find(loaded.root if loaded else None, ("defaults", index))
                    if str(chosen) == option or "override" in words or not best:
                        best = place(path, found[0] if found else 1, cwd)
    return best


@cache
def _schema_lines() -> dict[tuple[str, str], int]:
    """(class, field) -> line in schema.py."""
    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    return {
        (owner.name, statement.target.id): statement.lineno
        for owner in tree.body
        if isinstance(owner, ast.ClassDef)
        for statement in owner.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def schema_line(path: Path_) -> str:
    """`schema.py:line` of the key's default; empty where the schema does not name the key."""
    field = schema_field(path)
    return f"schema.py:{_schema_lines()[field]}" if field else ""


def schema_field(path: Path_) -> tuple[str, str] | None:
    """The class and field of the schema that a key is, or its nearest parent that is one."""
    owner: type | None = schema.Config
    found = None
    for part in path:
        if owner is None:
            break
        fields = {f.metadata.get("alias", f.name): f for f in dataclasses.fields(owner)}
        if part not in fields:
            break
        found = (owner.__name__, fields[str(part)].name)
        kind = fields[str(part)].type
        owner = kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
    return found


def is_required(path: Path_) -> bool:
    """Whether the schema has no default for this key of the root."""
    required = {
        f.name for f in dataclasses.fields(schema.Config) if f.default is f.default_factory is dataclasses.MISSING
    }
    return len(path) == 1 and path[0] in required


def is_schema_key(path: Path_) -> bool:
    """Whether the schema itself names this key."""
    return dotted(path) in schema_keys()


@cache
def schema_keys() -> frozenset[str]:
    """Every key that the schema names."""
    found: set[str] = set()

    def walk(owner: type, prefix: str) -> None:
        for item in dataclasses.fields(owner):
            if not item.metadata.get("rest"):
                name = prefix + item.metadata.get("alias", item.name)
                found.add(name)
                if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
                    walk(item.type, f"{name}.")

    walk(schema.Config, "")
    return frozenset(found)
