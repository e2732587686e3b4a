"""Trust that a user keeps: patterns of names for each project, in the user's configuration directory.

A project is the working directory, by its resolved path, and nothing inside it is asked: a stranger's project that is
cloned elsewhere has no pattern. Patterns mean what they mean after `--trust`.
"""

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.core.files import write_json

APPLICATION = "yaml-experiment-runner"


def find_trust_file() -> Path | None:
    """Return the file of the user's trust; None without a home, or where it would lie inside the project."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    else:  # https://specifications.freedesktop.org/basedir-spec: a relative path counts as none
        named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        folder = named if named.is_absolute() else home / ".config"
    file = folder.resolve() / APPLICATION / "trust.json"
    return None if file.is_relative_to(Path.cwd().resolve()) and home.resolve() != Path.cwd().resolve() else file


def read_trusted() -> tuple[str, ...]:
    """Return the patterns that the user keeps for the working directory.

    Raises:
        ConfigError: the file is damaged, or others may write to it.
    """
    return tuple(_read_projects().get(_name_project(), ()))


def add_trusted(patterns: Sequence[str]) -> tuple[str, ...]:
    """Keep further patterns for the working directory; return all of them.

    Raises:
        ConfigError: there is no place for them.
    """
    kept = [*read_trusted()]
    kept += [pattern for pattern in dict.fromkeys(patterns) if pattern not in kept]
    _write_projects(_read_projects() | {_name_project(): kept})
    return tuple(kept)


def remove_trusted(patterns: Sequence[str]) -> tuple[str, ...]:
    """Drop patterns of the working directory; return the rest.

    Raises:
        ConfigError: one of them is not there; nothing is changed.
    """
    kept = read_trusted()
    rule = "is not trusted in this project"
    remedy = f"these are: {', '.join(kept)}" if kept else "nothing is"
    if missing := [Mistake("trust remove", rule, one, remedy=remedy) for one in patterns if one not in kept]:
        raise ConfigError(missing)
    left = [pattern for pattern in kept if pattern not in patterns]
    rest = {name: known for name, known in _read_projects().items() if name != _name_project()}
    _write_projects(rest | ({_name_project(): left} if left else {}))
    return tuple(left)


def _name_project() -> str:
    return str(Path.cwd().resolve())


def _read_projects() -> dict[str, list[str]]:
    file = find_trust_file()
    if file is None:
        return {}
    try:
        with safe_io.open_read(file) as opened:
            facts = os.fstat(opened.fileno())
            content = opened.read(safe_io.MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError([Mistake("trust", "cannot be read", str(file), remedy=str(error), kind="file")]) from error
    if hasattr(os, "getuid") and (
        facts.st_uid not in (os.getuid(), 0) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        rule = "must belong to you, and nobody else may write to it"
        raise ConfigError([Mistake("trust", rule, str(file), remedy=f"chmod 600 {file}", kind="file")])
    try:
        return _parse_projects(safe_io.parse_json(content))
    except ValueError as error:
        rule = f"is damaged ({error})"
        remedy = "delete it, and add what you trust again: python -m runner trust add PATTERN"
        raise ConfigError([Mistake("trust", rule, str(file), remedy=remedy, kind="file")]) from error


def _parse_projects(plain: Any) -> dict[str, list[str]]:
    projects = plain.get("projects") if isinstance(plain, dict) else None
    if not isinstance(projects, dict):
        raise ValueError("it has no `projects`")  # noqa: TRY004  damaged, as broken JSON is
    for name, patterns in projects.items():
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError(f"{name} has no list of patterns")
    return projects


def _write_projects(projects: Mapping[str, Sequence[str]]) -> None:
    file = find_trust_file()
    if file is None:
        rule = "has no place: there is no home directory, or the configuration directory lies inside this project"
        raise ConfigError(
            [Mistake("trust", rule, remedy="set XDG_CONFIG_HOME to a directory of your own", kind="file")]
        )
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = os.umask(0o077)
    try:
        write_json(file, {"projects": projects})
    finally:
        os.umask(before)
