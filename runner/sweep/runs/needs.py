"""Needs of other runs, sweeps and experiment files: what would lack something if a run were removed."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.sweep.ledger import Ledger
from runner.sweep.runs.index import UNREADABLE_LEDGER
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


def find_needs(
    wanted: Sequence[RunRow], others: Iterable[RunRow], sweeps: Iterable[Path] = ()
) -> dict[Path, list[Need]]:
    """Find who else needs each of the runs, by the paths that configs name.

    A text of another run's config counts where it leads to the run or into it, from the working directory; so do the
    arguments of the jobs that `sweeps` ask for, begun or not, and the paths in `conf/**/*.yaml`. Runs of other folders
    are not known.
    """
    places = {spelling: row.folder for row in wanted for spelling in _spell(row.folder)}
    needs: dict[Path, list[Need]] = {}
    for claim in _list_claims(others, sweeps) if places else ():
        for folder, file in _follow_path(claim.text, places, follow=claim.key == "pretrained.path"):
            if claim.folder is None or (folder != claim.folder and claim.folder not in folder.parents):
                needs.setdefault(folder, []).append(Need(claim.by, claim.key, file))
    return needs


@dataclass(frozen=True)
class _Claim:
    """Text that may be a path: who says it, under which key, and the folder of whoever says it."""

    by: str
    key: str
    text: str
    folder: Path | None = None


def _list_claims(others: Iterable[RunRow], sweeps: Iterable[Path]) -> Iterator[_Claim]:
    for row in others:
        for key, text in _list_paths(row.config):
            yield _Claim(row.path, key, text, row.folder)
    for sweep in sweeps:
        for key, text in _list_asked_paths(sweep):
            yield _Claim(f"the jobs of {sweep}", key, text, sweep)
    for source, text in _read_experiments():
        for path in dict.fromkeys(_PATH.findall(text)):
            yield _Claim(str(source), "a path", path)


def _spell(folder: Path) -> set[str]:
    return {os.path.normpath(folder.absolute()), os.path.realpath(folder)}


def _list_paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a config that may be paths, with their keys."""
    for key, value in config.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and "/" in text and "://" not in text and len(text) < 4_096:
                yield key, text


def _list_asked_paths(sweep: Path) -> Iterator[tuple[str, str]]:
    """Yield values of a sweep's arguments that may be paths, with their keys; none of a damaged ledger."""
    words: dict[str, None] = {}
    with contextlib.suppress(*UNREADABLE_LEDGER), Ledger(sweep, read_only=True) as ledger:
        words = dict.fromkeys(map(str, ledger.settings().get("base") or []))
        words |= dict.fromkeys(word for job in ledger.jobs() if job.active for word in job.overrides)
    for word in words:
        key, _, text = word.partition("=")
        if "/" in text and "://" not in text:
            yield key.lstrip("+"), text.strip("'\"")


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
