"""Discovery of run directories, each with a stamp of its files, without following links."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.core.safe_io import MAX_ENTRIES
from runner.sweep.ledger import FILE

DEEPEST = 12  # folders between the root and a run


MOST_RUNS = 200_000


# Files that a row of the table is made of: a run whose files have the stamp of before is not read again.
STAMPED = ("config.yaml", "result.json", "provenance.json", "metrics.jsonl", ".lock", ".heartbeat", "log.txt")


MARKS = frozenset({"config.yaml", "result.json", "provenance.json", "metrics.jsonl", "checkpoints", ".hydra"})


_RUN_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}")  # as `make_run_dir` makes them


_JOB_NAME = re.compile(r"\d+_[0-9a-f]{8}")


@dataclass(frozen=True)
class FoundRun:
    """Run directory as it was found.

    Attributes:
        path: relative to the root, `.` for the root itself.
        sweep: path of the sweep that it is a job of, relative to the root; empty without one.
        stamp: times, sizes and numbers of its files; another stamp means that something was written.
        changed: when the newest of them was written, seconds since 1970.
        lock: when its lock was taken, and `result` when its result was written, in nanoseconds; 0 where there is none.
    """

    path: str
    sweep: str
    stamp: str
    changed: float
    lock: int
    result: int


@dataclass
class Discovery:
    """Run directories below a root, and what was passed over.

    Attributes:
        root: the folder that was asked for, which may be a link itself.
        sweeps: path of each sweep's folder.
        notes: what was passed over, in words.
        leftovers: folders that an interrupted removal has left, to be removed.
        links: how many links to folders were not followed.
    """

    root: Path
    runs: list[FoundRun]
    sweeps: list[str]
    notes: list[str]
    leftovers: list[str]
    links: int = 0


LEFTOVER = re.compile(r"\.removed_.+\.tmp")


def find_runs(root: Path) -> Discovery:
    """Find every run directory below a folder, sorted by path; the root itself may be one.

    A directory is a run where it has one of the files that a run writes, or a name that a run is given. Nothing below
    a run is looked at, no link is followed, and no file is opened. Folders that cannot be read are noted.
    """
    found = Discovery(root, [], [], [], [])
    waiting = [_Place("", "", 0)]
    while waiting:
        waiting += _visit(waiting.pop(), found)
        if len(found.runs) >= MOST_RUNS:
            found.notes.append(f"only the first {MOST_RUNS:,} runs are listed")
            break
    if found.links:
        found.notes.append(f"{found.links} link{'s' * (found.links != 1)} to folders below {root} not followed")
    found.runs.sort(key=lambda run: _split_numbers(run.path))
    return found


@dataclass(frozen=True)
class _Place:
    """Folder to be visited: its path, the sweep that it lies in, its depth."""

    path: str
    sweep: str
    depth: int


def _visit(place: _Place, found: Discovery) -> Iterator[_Place]:
    """Note a folder that is a run or a sweep; yield the folders in it that may be or hold runs."""
    path = place.path
    try:
        entries = _list_entries(found.root / path, found, path)
    except OSError as error:
        if path and not isinstance(error, FileNotFoundError):  # else it was removed meanwhile
            found.notes.append(f"{found.root / path} cannot be read ({error.strerror or error})")
        return
    names = {entry.name: entry for entry in entries}
    if FILE not in names and _is_run(path or found.root.name, place.sweep, names):
        found.runs.append(_make_stamped(path or ".", place.sweep, names))
        return
    sweep = (path or ".") if FILE in names else ""
    if sweep:
        found.sweeps.append(sweep)
    for name, entry in names.items():
        below = f"{path}/{name}" if path else name
        if entry.is_symlink():
            found.links += entry.is_dir()
        elif LEFTOVER.fullmatch(name):
            found.leftovers.append(below)
        elif not name.startswith(".") and entry.is_dir(follow_symlinks=False):
            if place.depth < DEEPEST:
                yield _Place(below, sweep, place.depth + 1)
            else:
                found.notes.append(f"{found.root / below} lies too deep")


def _list_entries(folder: Path, found: Discovery, path: str) -> list[os.DirEntry[str]]:
    listed: list[os.DirEntry[str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(listed) >= MAX_ENTRIES:
                found.notes.append(f"{found.root / path} has more than {MAX_ENTRIES:,} entries")
                break
            listed.append(entry)
    return listed


def _is_run(path: str, sweep: str, names: dict[str, os.DirEntry[str]]) -> bool:
    name = path.rpartition("/")[2]
    return not MARKS.isdisjoint(names) or bool(sweep and _JOB_NAME.fullmatch(name)) or bool(_RUN_NAME.fullmatch(name))


def _make_stamped(path: str, sweep: str, names: dict[str, os.DirEntry[str]]) -> FoundRun:
    parts, changed, times = [], 0.0, {"result.json": 0, ".lock": 0}
    for name in STAMPED:
        if name not in names:
            continue
        try:
            state = names[name].stat(follow_symlinks=False)
        except OSError:  # removed meanwhile
            continue
        times[name] = state.st_mtime_ns
        changed = max(changed, state.st_mtime)
        parts.append(f"{name} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_size} {state.st_ino}")
    return FoundRun(path, sweep, "\n".join(parts), changed, times[".lock"], times["result.json"])


def _split_numbers(path: str) -> tuple[tuple[int, str], ...]:
    """Split a path for sorting, so that job 10 comes after job 9."""
    parts: Iterator[str] = iter(re.split(r"(\d+)", path))
    return tuple((int(part), "") if part.isdecimal() and len(part) < 20 else (-1, part) for part in parts)
