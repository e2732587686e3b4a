"""Origins of keys: every file and argument in merge order, and the line of each setting."""

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
from runner.config.field_notes import read_field_notes
from runner.config.recipes import KEPT, RATES, find_left_out
from runner.core.errors import ABSENT, Mistake

if TYPE_CHECKING:
    from hydra.core.default_element import ResultDefault
    from hydra.core.override_parser.types import Override

    from runner.config.recipes import SupersededGroup


Path_ = tuple[str | int, ...]


REFERENCE = re.compile(r"\$\{(\.*[\w.\-\[\]]+)\}")


class ConfigFiles(Protocol):
    """Files that a config repository has read, and the file of each option."""

    read: dict[Path, Document]

    def file(self, config_path: str) -> Path | None:
        """Return the file of an option."""


def format_argument(text: str) -> str:
    """Format a command-line argument as a place."""
    return f"argument `{text}`"


def format_place(path: Path, line: int, cwd: Path) -> str:
    """Format `file:line`, relative where the file lies below the working directory."""
    shown_path = path.relative_to(cwd) if path.is_relative_to(cwd) else path
    return f"{shown_path}:{line}"


def make_relative(mistake: Mistake, cwd: Path) -> Mistake:
    """Return the mistake with absolute paths below the working directory made relative."""
    prefix = str(cwd).rstrip(os.sep) + os.sep
    return dataclasses.replace(
        mistake,
        key=mistake.key.removeprefix(prefix),
        where=mistake.where.replace(prefix, ""),
        rule=mistake.rule.replace(prefix, ""),
    )


def format_key(path: Path_) -> str:
    """Join a path to a dotted key."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Setting:
    """Value that a layer gives a key, its place, and the place that chose its group's option."""

    value: object
    where: str
    chosen: str = ""


@dataclass(frozen=True)
class _FileLayer:
    loaded: Document
    package: Path_
    chosen: str
    cwd: Path
    superseded: "Mapping[str, SupersededGroup]" = dataclasses.field(default_factory=dict)

    def left_out(self, path: Path_) -> "tuple[Setting, SupersededGroup] | None":
        """Return a recipe's setting that was written for another option, and the superseded group."""
        reason = find_left_out(path, self.superseded)
        found = dataclasses.replace(self, superseded={}).setting(path) if reason else None
        return (found, reason) if found and reason else None

    def placed(self, places: Mapping[str, str]) -> "_FileLayer":
        return dataclasses.replace(self, chosen=places.get(self.chosen, self.chosen))

    def setting(self, path: Path_) -> Setting | None:
        below, node_path = path[: len(self.package)], path[len(self.package) :]
        if below != self.package[: len(below)] or (len(path) < len(self.package) and not self.loaded.data):
            return None
        if node_path and node_path[0] == "defaults" and not self.package:
            return None
        reason = find_left_out(path, self.superseded)
        kept = [name for name in KEPT.get(str(path[0]), ()) if reason and name in self.loaded.data[str(path[0])]]
        if reason and not kept:
            return None
        if self.loaded.root is None and path == self.package:
            return Setting({}, format_place(self.loaded.path, 1, self.cwd), self.chosen)  # an empty file
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
        return Setting(value, format_place(self.loaded.path, line, self.cwd), self.chosen)


@dataclass(frozen=True)
class _ArgumentLayer:
    text: str
    path: Path_
    value: object
    removes: bool = False
    where: str = ""  # where it was said, if not on the command line

    @classmethod
    def of(cls, override: "Override") -> "_ArgumentLayer":
        """Build the layer of a Hydra override."""
        text = override.input_line or ""
        value = text.partition("=")[2] if override.is_sweep_override() else override.value()
        return cls(text, as_path(override.key_or_group), value, override.is_delete())

    def placed(self, places: Mapping[str, str]) -> "_ArgumentLayer":
        return dataclasses.replace(self, where=places.get(format_argument(self.text), self.where))

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
        return Setting(ABSENT if self.removes else value, self.where or format_argument(self.text))


class Layers:
    """Files and arguments of a composition in merge order: the last one that sets a key wins."""

    def __init__(self, layers: Sequence[_FileLayer | _ArgumentLayer], primary: str, cwd: Path) -> None:
        self._layers = layers
        self._primary = primary
        self.cwd = cwd

    @classmethod
    def of(
        cls,
        files: ConfigFiles,
        defaults: "Sequence[ResultDefault]",
        overrides: "Sequence[Override]",
        cwd: Path,
        superseded: "Mapping[str, Mapping[str, SupersededGroup]] | None" = None,
    ) -> "Layers":
        """Build the layers from Hydra's defaults list and overrides."""
        layers: list[_FileLayer | _ArgumentLayer] = []
        primary = ""
        for default in defaults:
            path = files.file(default.config_path or "")
            if path is None or path not in files.read:
                continue
            package = tuple(part for part in (default.package or "").split(".") if part)
            chosen = "" if default.primary else _find_chooser(files, defaults, overrides, default, cwd)
            if default.primary:
                primary = format_place(path, 1, cwd)
            of_others = (superseded or {}).get(default.config_path or "", {})
            layers.append(_FileLayer(files.read[path], package, chosen, cwd, of_others))
        for override in overrides:
            if override.key_or_group.partition("@")[0] in _list_groups(defaults) and not isinstance(
                override.value(), dict
            ):
                continue
            layers.append(_ArgumentLayer.of(override))
        return cls(layers, primary, cwd)

    @classmethod
    def of_a_file(cls, loaded: Document, cwd: Path) -> "Layers":
        """Build the single layer of a config that was not composed."""
        return cls([_FileLayer(loaded, (), "", cwd)], format_place(loaded.path, 1, cwd), cwd)

    def with_arguments(self, overrides: "Sequence[Override]") -> "Layers":
        """Return a copy with further arguments as the last layers."""
        return Layers([*self._layers, *map(_ArgumentLayer.of, overrides)], self._primary, self.cwd)

    def placed(self, places: Mapping[str, str]) -> "Layers":
        """Return a copy in which `places` maps the places of arguments to other places."""
        return Layers([layer.placed(places) for layer in self._layers], self._primary, self.cwd)

    def sets_only(self, group: str, keys: Sequence[str]) -> bool:
        """Return whether the option of a group sets only these root keys, besides its defaults list."""
        files = (f for f in self._layers if isinstance(f, _FileLayer) and f.loaded.path.parent.name == group)
        return all(name in (*keys, "defaults") for f in files for name in (f.package[:1] or f.loaded.data))

    def settings(self, path: Path_) -> list[Setting]:
        """Return the settings of a key by every layer that sets it, the winner last."""
        found = [layer.setting(path) for layer in self._layers]
        return [setting for setting in found if setting is not None]

    def left_out(self, path: Path_) -> "list[tuple[Setting, SupersededGroup]]":
        """Return the settings of a key that recipes wrote for an option that is not in force."""
        found = [layer.left_out(path) for layer in self._layers if isinstance(layer, _FileLayer)]
        return [one for one in found if one is not None]

    def notes_on_recipes(self) -> list[str]:
        """Return notes on recipe groups that are left out and on rates meant for another optimizer."""
        notes = []
        for layer in self._layers:
            if not isinstance(layer, _FileLayer):
                continue
            for group, reason in layer.superseded.items():
                found = layer.left_out((group,))
                names = [n for n in layer.loaded.data.get(group, {}) if n not in KEPT.get(group, ())]
                keys = ", ".join(f"{group}.{name}" for name in names)
                if found is not None:
                    notes.append(f"{keys} of {found[0].where} left out: {reason}")
            if "optimizer" in layer.superseded:
                notes += [
                    f"{format_key(path)} = {value} ({self.origin(path)}) is a rate {layer.superseded['optimizer']}"
                    for path, value in _find_rates(layer.loaded.data)
                    if self.origin(path).startswith(f"{format_place(layer.loaded.path, 0, self.cwd)[:-1]}")
                ]
        return notes

    def find_earlier_target(self, path: Path_) -> tuple[object, Setting] | None:
        """Return the `_target_` that an argument was written for, and the setting that replaces it, or None."""
        of_target = [layer.setting((*path[:-1], "_target_")) for layer in self._layers]
        setters = [place for place, layer in enumerate(self._layers) if layer.setting(path)]
        before = [setting for setting in of_target[: setters[-1] + 1] if setting] if setters else []
        after = [setting for setting in of_target[setters[-1] + 1 :] if setting] if setters else []
        changed = before and after and before[-1].value != after[-1].value
        return (before[-1].value, after[-1]) if changed else None

    def notes_on_targets(self, config: dict[str, Any]) -> list[str]:
        """Return a note for each component whose `_target_` changed but earlier settings stay."""
        notes = []
        for path, node in _find_components(config, ()):
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
                said = ", ".join(
                    f"{format_key((*path, name))} = {node[name]} ({where})" for name, where in stay.items()
                )
                before = dict(targets)[changed]
                notes.append(f"written for {before}, and used for {targets[-1][1]}: {said}")
        return notes

    def references(self, path: Path_) -> list[Path_]:
        """Return the keys that the winner's interpolations reference."""
        settings = self.settings(path)
        value = settings[-1].value if settings else None
        return (
            [resolve_reference(reference, path) for reference in REFERENCE.findall(value)]
            if isinstance(value, str)
            else []
        )

    def node(self, path: Path_) -> int | None:
        """Return the identity of the YAML node that set a key (aliases share one); None for an argument."""
        for layer in reversed(self._layers):
            if layer.setting(path) is not None:
                found = (
                    document.find(layer.loaded.root, path[len(layer.package) :])
                    if isinstance(layer, _FileLayer)
                    else None
                )
                return id(found[1]) if found else None
        return None

    def parts(self, path: Path_) -> list[tuple[Path_, Setting]]:
        """Return the paths and settings of arguments that set something below a key."""
        return [
            (layer.path, setting)
            for layer in self._layers
            if isinstance(layer, _ArgumentLayer) and len(layer.path) > len(path) and layer.path[: len(path)] == path
            if (setting := layer.setting(layer.path))
        ]

    def blame(self, path: Path_, *, follow: bool = True) -> str:
        """Describe the origin of a value: its line, the choice of its group, the lines it references."""
        settings = self.settings(path)
        own = "" if settings and settings[-1].where.startswith("argument ") else self._arguments_below(path)
        if not settings:
            if own:
                return own
            return self.blame(path[:-1], follow=follow) if len(path) > 1 else find_schema_line(path) or self._primary
        setting = settings[-1]
        more = [f"chosen by {setting.chosen}"] if setting.chosen else []
        if follow and isinstance(setting.value, str):
            for reference in REFERENCE.findall(setting.value):
                pointed = resolve_reference(reference, path)
                if pointed != path:
                    more.append(f"`${{{reference}}}` is set by {self.origin(pointed)}")
        where = setting.where + (f" ({'; '.join(more)})" if more else "")
        return f"{own}, over {where}" if own else where

    def _arguments_below(self, path: Path_) -> str:
        """Join the places of the arguments that set something below a key; the last one per key counts."""
        return ", ".join(dict.fromkeys({at: setting.where for at, setting in self.parts(path)}.values()))

    def chooser(self, group: str) -> str:
        """Return the place that chose the option of a group."""
        files = (layer for layer in self._layers if isinstance(layer, _FileLayer))
        return next((file.chosen for file in files if file.loaded.path.parent.name == group), self._primary)

    def paths(self, config: dict[str, Any]) -> Iterator[Path_]:
        """Yield every path of a composed config."""
        stack: list[tuple[Path_, Any]] = [((), config)]
        while stack:
            path, value = stack.pop()
            if path:
                yield path
            if isinstance(value, dict):
                stack += [((*path, name), inner) for name, inner in value.items()]

    def origin(self, path: Path_) -> str:
        """Return the place of a key's winning setting, without the details that `blame` adds."""
        settings = self.settings(path)
        return settings[-1].where if settings else find_schema_line(path) or self._primary

    def is_argument(self, path: Path_) -> bool:
        """Return whether the command line itself gives a key its value."""
        return self.origin(path).startswith("argument ")


def _find_components(value: Any, path: Path_) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Yield every mapping with a `_target_`, and its path."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for name, inner in value.items():
            yield from _find_components(inner, (*path, name))


def _find_rates(data: Mapping[str, Any]) -> Iterator[tuple[Path_, Any]]:
    """Yield the settings of other groups that are in the optimizer's own unit."""
    for group, names in RATES.items():
        stack: list[tuple[Path_, Any]] = [((group,), data.get(group))]
        while stack:
            path, value = stack.pop()
            if isinstance(value, dict):
                stack += [((*path, name), inner) for name, inner in value.items()]
            elif path[-1] in names and isinstance(value, int | float):
                yield path, value


def resolve_reference(reference: str, path: Path_) -> Path_:
    """Return the path that `${reference}` at `path` points to."""
    dots = len(reference) - len(reference.lstrip("."))
    parts = as_path(reference.lstrip("."))
    return (*path[: len(path) - dots], *parts) if dots else parts


def as_path(key: str) -> Path_:
    """Split a key, `a.b[0]` or `a.b.0`, into its path."""
    return tuple(_split_key(key))


def _split_key(key: str) -> Iterator[str | int]:
    for part in re.split(r"[.\[\]]+", key):
        if part:
            yield int(part) if part.isdigit() else part


def _list_groups(defaults: "Sequence[ResultDefault]") -> set[str]:
    return {(default.override_key or "").partition("@")[0] for default in defaults} - {""}


def _find_chooser(
    files: ConfigFiles,
    defaults: "Sequence[ResultDefault]",
    overrides: "Sequence[Override]",
    default: "ResultDefault",
    cwd: Path,
) -> str:
    """Return the place of the argument or defaults-list line that chose an option."""
    group, option = (default.override_key or "").partition("@")[0], (default.config_path or "").rpartition("/")[2]
    for override in reversed(overrides):
        if override.key_or_group == group and not override.is_delete() and not isinstance(override.value(), dict):
            return format_argument(override.input_line or "")
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
                        best = format_place(path, found[0] if found else 1, cwd)
    return best


def find_schema_line(path: Path_) -> str:
    """Return the place of a key's default, `schema/train.py:112`; empty for a key outside the schema."""
    field = find_schema_field(path)
    return read_field_notes()[field].where if field else ""


def find_schema_field(path: Path_) -> tuple[str, str] | None:
    """Return the schema's class and field of a key, or of its nearest parent in the schema."""
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
    """Return whether the schema has no default for a key of the root."""
    required = {
        f.name for f in dataclasses.fields(schema.Config) if f.default is f.default_factory is dataclasses.MISSING
    }
    return len(path) == 1 and path[0] in required


def is_schema_key(path: Path_) -> bool:
    """Return whether the schema itself names a key."""
    return format_key(path) in list_schema_keys()


@cache
def list_schema_keys() -> frozenset[str]:
    """Return every key that the schema names."""
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
