"""Removal of runs: planned, then each renamed and deleted; never one in progress or needed."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.files import sync_folder
from runner.core.lock import Lock
from runner.sweep.ledger import FILE
from runner.sweep.runs.address import is_run_directory
from runner.sweep.runs.index import is_in_progress
from runner.sweep.runs.listing import RunList, is_below, select_runs, split_words
from runner.sweep.runs.needs import Need, find_needs
from runner.sweep.runs.reading import RunRow, measure_size


@dataclass(frozen=True)
class KeptRun:
    """Run that a filter selects and that stays.

    Attributes:
        row: the run.
        reason: why, in words.
        needs: who needs it, where that is why.
    """

    row: RunRow
    reason: str
    needs: tuple[Need, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        needs = [need.as_json() for need in self.needs]
        return {"path": self.row.path, "status": self.row.status, "reason": self.reason, "needs": needs}


@dataclass
class RemovalPlan:
    """Runs that go, and runs that stay although they were selected.

    Attributes:
        listed: what the words select.
        rows: runs that go.
        sweeps: folders of sweeps that go as a whole, with their jobs.
        kept: runs that stay, with the reason.
        leftovers: folders that an interrupted removal has left.
        failed: what could not be removed, in words.
    """

    listed: RunList
    rows: list[RunRow]
    sweeps: list[Path]
    kept: list[KeptRun]
    leftovers: list[Path]
    failed: list[str] = field(default_factory=list)

    def measure(self) -> int:
        """Measure the bytes of all that goes."""
        alone = [row.folder for row in self.rows if not is_below(row.folder, self.sweeps)]
        return sum(measure_size(folder) for folder in [*alone, *self.sweeps, *self.leftovers])


def require_words(words: Sequence[str], verb: str) -> None:
    """Refuse a line that names nothing: it would mean everything. Raises ConfigError."""
    if not words:
        remedy = f"python -m runner {verb} 'status == failed and age > 7d'"
        raise ConfigError([Mistake(verb, "needs a filter, a run or a folder", remedy=remedy, kind="missing")])


def plan_removal(words: Sequence[str], *, force: bool = False) -> RemovalPlan:
    """Plan what `rm` removes; nothing is touched.

    A sweep goes as a whole, ledger and report too, where its folder or one above it is named without a filter. Else its
    ledger needs its jobs.

    Args:
        words: filters, runs, jobs and folders.
        force: whether runs go that a sweep, another run or an experiment file needs.

    Raises:
        ConfigError: a word is wrong, or a run that is named itself must stay.
    """
    require_words(words, "rm")
    listed = select_runs(words)
    found = [(table.root, path) for table in listed.tables for path in table.found.sweeps]
    sweeps = [root if path == "." else root / path for root, path in found]
    named = listed.folders and not listed.filters
    whole = [sweep for sweep in sweeps if named and is_below(sweep, listed.folders)]
    busy = {str(sweep) for sweep in sweeps if is_in_progress(sweep)}
    rows, kept = [], []
    for row in listed.rows:
        sweep = row.columns["sweep"]
        if row.status == "running" or is_in_progress(row.folder):
            kept.append(KeptRun(row, "it is in progress"))
        elif sweep in busy:
            kept.append(KeptRun(row, f"its sweep {sweep} is in progress"))
        else:
            rows.append(row)
    if not force:
        everything = [row for table in listed.tables for row in table.rows]
        rows, needed = hold_back(rows, everything, whole, [sweep for sweep in sweeps if sweep not in whole])
        kept += needed
    whole = [sweep for sweep in whole if str(sweep) not in busy]
    whole = [sweep for sweep in whole if not any(is_below(one.row.folder, [sweep]) for one in kept)]
    refuse_named(words, kept)
    leftovers = [table.root / path for table in listed.tables for path in table.found.leftovers]
    return RemovalPlan(listed, rows, whole, kept, leftovers)


def hold_back(
    rows: list[RunRow], everything: Sequence[RunRow], whole: Sequence[Path], sweeps: Sequence[Path]
) -> tuple[list[RunRow], list[KeptRun]]:
    """Split runs into those that may go and those that somebody who stays needs.

    A run that stays may itself need one that was to go, so that this is done until nothing changes.
    """
    kept: list[KeptRun] = []
    while True:
        going = {row.folder for row in rows}
        needs = find_needs(rows, [row for row in everything if row.folder not in going], sweeps)
        for row in rows:
            if row.columns["sweep"] and not is_below(row.folder, whole):
                needs.setdefault(row.folder, []).append(Need(str(row.columns["sweep"])))
        if not needs:
            return rows, kept
        for row in rows:
            if row.folder in needs:
                by = tuple(dict.fromkeys(needs[row.folder]))
                more = f" and {len(by) - 1} more" if len(by) > 1 else ""
                kept.append(KeptRun(row, f"{by[0]}{more} needs it", by))
        rows = [row for row in rows if row.folder not in needs]


def refuse_named(words: Sequence[str], kept: Sequence[KeptRun]) -> None:
    """Refuse a line that names a run itself which must stay. Raises ConfigError."""
    given = [path for paths in split_words(words)[0] for path in paths]
    named = [path for path in given if is_run_directory(path)]
    mistakes = [
        Mistake(
            "RUN",
            f"{one.row.path} must stay: {one.reason}",
            remedy="`--force` takes it all the same" if one.needs else "wait for it, or stop it",
            kind="conflict",
        )
        for one in kept
        if any(one.row.folder.resolve() == path.resolve() for path in named)
    ]
    if mistakes:
        raise ConfigError(mistakes)


def remove_planned(plan: RemovalPlan) -> list[RunRow]:
    """Remove what was planned; return the runs that are gone. What failed is noted in the plan.

    Each run is renamed first, so that an interruption leaves whole runs, and folders that the next `rm` removes.
    """
    gone = []
    for folder in plan.leftovers:
        _delete(folder, plan)
    for sweep in plan.sweeps:
        if _remove(sweep, plan):
            gone += [row for row in plan.rows if is_below(row.folder, [sweep])]
    rest = [row for row in plan.rows if not is_below(row.folder, plan.sweeps)]
    for sweep_name in dict.fromkeys(row.columns["sweep"] for row in rest):
        jobs = [row for row in rest if row.columns["sweep"] == sweep_name]
        try:
            with hold(Path(sweep_name)) if sweep_name else contextlib.nullcontext():
                gone += [row for row in jobs if _remove(row.folder, plan)]
        except (ConfigError, RunError, OSError) as error:
            plan.failed += [f"{row.path}: {explain_refusal(error)}" for row in jobs]
    return gone


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a run or a sweep; of one that leads elsewhere only look whether it is held.

    Raises:
        ConfigError: it is in progress.
        RunError: it cannot be written.
    """
    if safe_io.find_foreign(folder):  # a lock would be taken of whatever it leads to
        if is_in_progress(folder):
            raise ConfigError([Mistake("run", "must not be in progress", str(folder), kind="file")])
        yield
        return
    with Lock(folder):
        yield


def _remove(folder: Path, plan: RemovalPlan) -> bool:
    """Rename a folder, delete it, and its parent where that is empty then; return whether it is gone."""
    aside = folder.with_name(f".removed_{folder.name[:200]}_{os.urandom(4).hex()}.tmp")
    try:
        with hold(folder):
            if (folder / FILE).is_file() and any(map(is_in_progress, _list_folders(folder))):
                raise ConfigError([Mistake("run", "must not be in progress", str(folder), kind="file")])
            folder.rename(aside)
            with contextlib.suppress(OSError):
                sync_folder(folder.parent)
    except (ConfigError, RunError, OSError) as error:
        plan.failed.append(f"{folder}: {explain_refusal(error)}")
        return False
    _delete(aside, plan)
    roots = {table.root.resolve() for table in plan.listed.tables}
    if folder.parent.resolve() not in roots and folder.parent != Path():
        with contextlib.suppress(OSError):  # it holds something else
            folder.parent.rmdir()
    return True


def _list_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _delete(folder: Path, plan: RemovalPlan) -> None:
    """Delete a folder that was renamed, without following links."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:  # another `rm` is at it
        pass
    except OSError as error:
        plan.failed.append(f"{error.filename or folder} cannot be removed: {error.strerror or error}")


def explain_refusal(error: Exception) -> str:
    """Explain in one line why a run was not touched."""
    if isinstance(error, ConfigError):
        mistake = error.mistakes[0]
        return " ".join(f"{mistake.rule}; {mistake.remedy}".split()).rstrip("; ")
    return str(getattr(error, "strerror", None) or error)
