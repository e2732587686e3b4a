"""Needs of other runs, sweeps and experiment files: what would lack something if a run were removed."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.sweep.runs.reading import RunRow

MOST_FILE_BYTES = 1_000_000  # of an experiment file that is searched for paths


MOST_FILES = 10_000


_PATH = re.compile(r"[\w.+=@~/-]*/[\w.+=@~/-]*")


@dataclass(frozen=True)
class Need:
    """Need for a run, or for a file in it.

    Attributes:
        by: who needs it: a run, an experiment file, the folder of a sweep.
        key: `pretrained.path`, or another key whose value leads there; empty for a sweep.
        file: path that the value names, relative to the run; empty for the run as a whole.
    """

    by: str
    key: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.key} of {self.by}" if self.key else f"the ledger of {self.by}"

    def as_json(self) -> dict[str, str]:
        """Return plain data for `--json`."""
        return {"by": self.by, "key": self.key, "file": self.file}


def find_needs(wanted: Sequence[RunRow], others: Iterable[RunRow]) -> dict[Path, list[Need]]:
    """Find who else needs each of the runs, by the paths that configs name.

    A text of another run's config counts where it leads to the run or into it, from the working directory or from the
    folder that holds `outputs`; so do the paths in `conf/**/*.yaml`. Runs of other folders are not known.
    """
    places = {spelling: row.folder for row in wanted for spelling in _spell(row.folder)}
    needs: dict[Path, list[Need]] = {}
    if not places:
        return needs
    for row in others:
        for key, text in _list_paths(row.config):
            for folder, file in _follow_path(text, places, follow=key == "pretrained.path"):
                if folder != row.folder:
                    needs.setdefault(folder, []).append(Need(row.path, key, file))
    for source, text in _read_experiments():
        for path in dict.fromkeys(_PATH.findall(text)):
            for folder, file in _follow_path(path, places, follow=False):
                needs.setdefault(folder, []).append(Need(str(source), "a path", file))
    return needs


def _spell(folder: Path) -> set[str]:
    return {os.path.normpath(folder.absolute()), os.path.realpath(folder)}


def _list_paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a config that may be paths, with their keys."""
    for key, value in config.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and "/" in text and "://" not in text and len(text) < 4_096:
                yield key, text


def _follow_path(text: str, places: Mapping[str, Path], *, follow: bool) -> Iterator[tuple[Path, str]]:
    """Yield the run that a path leads to or into, and what it names there."""
    if "\0" in text:
        return
    with contextlib.suppress(RuntimeError):  # `~nobody/`
        text = str(Path(text).expanduser())
    path = os.path.normpath(Path.cwd() / text)
    spellings = [path, os.path.realpath(path)] if follow else [path]
    for spelling in spellings:
        for folder in (Path(spelling), *Path(spelling).parents):
            if (found := places.get(str(folder))) is not None:
                file = str(Path(spelling).relative_to(folder))
                yield found, "" if file == "." else file
                return


def _read_experiments() -> Iterator[tuple[Path, str]]:
    folder = Path("conf")
    for number, file in enumerate(sorted(folder.rglob("*.yaml")) if folder.is_dir() else ()):
        if number >= MOST_FILES:
            return
        with contextlib.suppress(OSError, UnicodeDecodeError):
            yield file, safe_io.read_bytes(file.resolve(), MOST_FILE_BYTES).decode()
