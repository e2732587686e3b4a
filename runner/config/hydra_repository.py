"""Hydra's repository of config files: where groups are searched, and entries that no file answers."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from runner.config import document
from runner.config.document import Document
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import Mistake
from runner.core.paths import find_our_conf

CONFIG_NAME = "config"  # of the primary config


_RECIPES = ("experiment/", "debug/")  # groups whose files set keys of every other group


_GLOBAL_HEADER = "its first line must be `# @package _global_`"


_NOTHING = ConfigResult(provider="none", path="", config=OmegaConf.create(), header={"package": "_global_"})


def make_search_path(cwd: Path) -> ConfigSearchPath:
    """Build the search path of groups: Hydra's own, the project's `conf/`, the runner's."""
    Plugins.instance()  # registers Hydra's sources
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    theirs, ours = (cwd / "conf").resolve(), find_our_conf()
    if theirs.is_dir() and theirs != ours:
        path.append("project", f"file://{theirs}")
    path.append("main", f"file://{ours}")
    path.append("schema", "structured://")
    return path


class ConfFileSource(FileConfigSource):
    """Hydra's file source with line numbers and a node limit; it records unreadable files."""

    read: dict[Path, Document]

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        loaded = document.load(path)
        self.read[path] = loaded
        try:
            header = ConfigSource._get_header_dict(loaded.text[:512])  # noqa: SLF001  Hydra's own reading of `@package`
        except ValueError as error:
            header = {"package": None}
            loaded.mistake = loaded.mistake or Mistake(
                f"{path}", f"has a header that Hydra cannot read: {error}", where=f"{path}:1", kind="syntax"
            )
        problem = _describe_package_problem(config_path, header["package"])
        if problem and loaded.data:
            loaded.mistake = loaded.mistake or Mistake(
                str(path), problem, where=f"{path}:1", remedy=_GLOBAL_HEADER, kind="composition"
            )
            header = {"package": "_global_"}
        return ConfigResult(self.provider, f"file://{self.path}", OmegaConf.create(loaded.data), header)


def _describe_package_problem(config_path: str, package: str | None) -> str:
    """Describe a wrong `@package` header of a file; empty where it is right."""
    first = (package or "").partition(".")[0]
    if first.startswith("_") and first not in ("_global_", "_group_", "_name_"):
        return f"is for the package `{package}`, which Hydra does not know"
    if package is None and config_path.startswith(_RECIPES):
        return "does not say that its keys are those of the root"
    return ""


class Repository(ConfigRepository):
    """Hydra's config repository on the runner's sources; it checks each defaults list on reading."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.read: dict[Path, Document] = {}
        self.mistakes: list[Mistake] = []
        self.instead: dict[str, str | None] = {}  # an unknown option -> the nearest one
        self.cut: set[tuple[str, str]] = set()  # entries of defaults lists that close a circle
        self._edges: dict[str, list[str]] = {}  # the files that each file's defaults list names
        super().__init__(config_search_path)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        for index, source in enumerate(self.sources):
            if source.scheme() == "file":  # not isinstance: Hydra's scan for plugins executes their modules again
                self.sources[index] = ConfFileSource(source.provider, f"file://{source.path}")
                self.sources[index].read = self.read  # type: ignore[attr-defined]

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Repository":
        twin = copy.copy(self)  # Hydra copies it for each composition; what was read is shared
        twin.sources = list(self.sources)
        return twin

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path in self.instead:
            other = self.instead[config_path]
            if other is None:
                return _NOTHING
            config_path = other
        try:
            result = super().load_config(config_path)
        except (ValueError, AssertionError) as error:  # a malformed defaults list
            path = self.file(config_path)
            if path is None or (loaded := self.read.get(path)) is None:
                raise
            found = document.find(loaded.root, ("defaults",))
            where = f"{path}:{found[0] if found else 1}"
            loaded.mistake = loaded.mistake or Mistake(
                "defaults", f"cannot be read: {error}", where=where, kind="syntax"
            )
            return _NOTHING
        if result is not None and isinstance(self._find(config_path), ConfFileSource):
            listed = result.defaults_list or []
            known = [default for i, default in enumerate(listed) if self._known(config_path, default, listed[:i])]
            targets = {id(default): self._target(config_path, default) for default in known}
            self._edges[config_path] = [path for path in targets.values() if path]
            result.defaults_list = [d for d in known if (config_path, targets[id(d)]) not in self.cut]
        return result

    def _find(self, config_path: str) -> ConfigSource | None:
        for source in self.sources:
            if source.is_config(config_path):
                return source
        return None

    def file(self, config_path: str) -> Path | None:
        """Return the file of an option; None for an option of Hydra's own."""
        path = self.instead.get(config_path) or config_path
        source = self._find(path)
        return Path(source.path) / source._normalize_file_name(path) if isinstance(source, ConfFileSource) else None  # noqa: SLF001

    def yml(self, config_path: str) -> Path | None:
        """Return the project's `.yml` file of an option; None where none exists."""
        for source in self.sources:
            if source.provider == "project":
                file = Path(source.path) / f"{re.sub(r'[.]ya?ml$', '', config_path)}.yml"
                if config_path and file.is_file():
                    return file
        return None

    def _known(self, config_path: str, default: InputDefault, before: Sequence[InputDefault]) -> bool:
        path = self.file(config_path)
        if isinstance(default, ConfigDefault):
            return path is None or self._known_file(path, default, before)
        if not isinstance(default, GroupDefault) or default.group is None:
            return True
        folder = config_path.rpartition("/")[0]
        absolute = default.group.startswith("/")
        group = default.group.lstrip("/") if absolute or not folder else f"{folder}/{default.group}"
        where = f"{path}:{find_defaults_line(self.read[path], default.group) if path else 1}"
        if folder in [recipe.rstrip("/") for recipe in _RECIPES] and self._of_the_root(default.group.lstrip("/")):
            rule = ""
            if not absolute and not self.group_exists(group):
                rule = f"is looked for beside this file, as `{group}`"
            elif absolute and not default.override and default.package is None:
                rule = "is chosen already, by the root"
            if rule:
                remedy = f"write `override /{default.group.lstrip('/')}: {default.value}`"
                self.note(Mistake(default.group.lstrip("/"), rule, where=where, remedy=remedy, kind="composition"))
                return False
        if group.split("/")[0] == "hydra" and config_path != CONFIG_NAME:
            self.note(
                Mistake(group, "may be chosen on the command line only", default.value, where, kind="composition")
            )
            return False
        if default.optional or self.group_exists(group) or self.group_exists(default.group.lstrip("/")):
            return True
        right = find_nearest(group, self.all_groups())
        self.note(
            Mistake(
                group,
                "is no config group",
                where=where,
                remedy=format_suggestion(right),
                suggestion=right,
                kind="unknown-option",
            )
        )
        return False

    def _target(self, config_path: str, default: InputDefault) -> str:
        """Return the config path that a defaults-list entry names as it stands; else empty."""
        folder = config_path.rpartition("/")[0]
        if isinstance(default, ConfigDefault):
            path = default.path or ""
        elif isinstance(default, GroupDefault) and not default.override and isinstance(default.value, str):
            path = f"{default.group}/{default.value}"
        else:
            return ""
        return path.lstrip("/") if path.startswith("/") or not folder else f"{folder}/{path}"

    def circle(self) -> list[str]:
        """Return the config paths of a circle of defaults lists, the first one again last; else empty."""
        done: set[str] = set()

        def walk(path: str, above: list[str]) -> list[str]:
            if path in above:
                return [*above[above.index(path) :], path]
            if path in done:
                return []
            found = next((ring for child in self._edges.get(path, ()) if (ring := walk(child, [*above, path]))), [])
            done.add(path)
            return found

        return next((ring for path in list(self._edges) if (ring := walk(path, []))), [])

    def place_of(self, config_path: str, target: str) -> str:
        """Return the line of a defaults list that names a file."""
        path = self.file(config_path)
        if path is None:
            return config_path
        entries = self.read[path].data.get("defaults")
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            said = entry if isinstance(entry, str) else "/".join(map(str, next(iter(entry.items()), ())))
            if said.split("@")[0].split()[-1].rpartition("/")[2] == target.rpartition("/")[2]:
                found = document.find(self.read[path].root, ("defaults", index))
                return f"{path}:{found[0] if found else 1}"
        return f"{path}:1"

    def _known_file(self, path: Path, default: ConfigDefault, before: Sequence[InputDefault]) -> bool:
        """Return whether a defaults-list entry without a group is one `_self_` or may be a file."""
        name = default.path or ""
        index = len(before)
        again = name == "_self_" and any(isinstance(d, ConfigDefault) and d.path == name for d in before)
        if not again and (name == "_self_" or not name.startswith("_")):
            return True
        found = document.find(self.read[path].root, ("defaults", index))
        rule = "stands in the defaults list twice" if again else "is no file beside this one"
        right = "" if again else "_self_"
        where = f"{path}:{found[0] if found else 1}"
        self.note(
            Mistake(name, rule, where=where, remedy=format_suggestion(right), suggestion=right, kind="composition")
        )
        return False

    def _of_the_root(self, group: str) -> bool:
        """Return whether the primary config chooses an option of the group."""
        path = self.file(CONFIG_NAME)
        entries = document.load(path).data.get("defaults") if path else None
        return any(isinstance(entry, dict) and group in entry for entry in entries or [])

    def note(self, mistake: Mistake) -> None:
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    def all_groups(self, parent: str = "") -> list[str]:
        """Return every config group of the files, nested ones included."""
        groups: list[str] = []
        for source in self.sources:
            if isinstance(source, ConfFileSource):
                base = Path(source.path)
                groups += [str(p.relative_to(base)) for p in (base / parent).rglob("*") if p.is_dir()]
        return sorted({group for group in groups if not group.startswith("hydra")})


def find_defaults_line(loaded: Document, group: str, value: object = None) -> int:
    """Return the line of a group's entry in a file's defaults list; 1 where there is none."""
    entries = loaded.data.get("defaults", [])
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict):
            for name, option in entry.items():
                if str(name).split()[-1].split("@")[0].lstrip("/") == group.lstrip("/") and value in (None, option):
                    found = document.find(loaded.root, ("defaults", index))
                    return found[0] if found else 1
    return 1
