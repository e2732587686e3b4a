"""Archive of runs: config, metrics, record and the best checkpoint stay, the rest goes."""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core import safe_io
from runner.core.errors import ConfigError, RunError
from runner.core.files import write_json
from runner.sweep.runs.index import is_in_progress
from runner.sweep.runs.listing import RunList, select_runs
from runner.sweep.runs.needs import Need, find_needs
from runner.sweep.runs.reading import RunRow, measure_size
from runner.sweep.runs.removal import KeptRun, explain_refusal, hold, refuse_named, require_words

if TYPE_CHECKING:
    from runner.train.checkpoint import CheckpointEntry
    from runner.train.kept_checkpoints import KeptCheckpoints

# What the runner has written and an archive does not keep; names of the user's are let alone.
DROPPED = re.compile(
    r"tb(\.\d+)?|profile(\.\d+)?|projector|projector_config\.pbtxt|checkpoints\.\d+|\..*\.tmp|\.heartbeat"
)


@dataclass(frozen=True)
class ArchivedRun:
    """Run to be archived.

    Attributes:
        row: the run.
        kept: its checkpoints that stay.
        dropped: paths that go, relative to the run.
        size: bytes of what goes.
    """

    row: RunRow
    kept: "tuple[CheckpointEntry, ...]"
    dropped: tuple[str, ...]
    size: int

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        kept = [entry.file for entry in self.kept]
        return {"path": self.row.path, "checkpoints": kept, "drops": list(self.dropped), "bytes": self.size}


@dataclass
class ArchivePlan:
    """Runs to be archived, and runs that stay as they are although they were selected.

    Attributes:
        listed: what the words select.
        runs: to be archived.
        kept: runs that stay as they are, with the reason.
        failed: what could not be done, in words.
    """

    listed: RunList
    runs: list[ArchivedRun]
    kept: list[KeptRun]
    failed: list[str] = field(default_factory=list)


def plan_archive(words: Sequence[str], *, force: bool = False) -> ArchivePlan:
    """Plan what `archive` drops; nothing is touched.

    Of a run that is not completed the last checkpoint stays too, so that it can be resumed.

    Args:
        words: filters, runs, jobs and folders.
        force: whether a checkpoint goes that another run or an experiment file names.

    Raises:
        ConfigError: a word is wrong, or a run that is named itself cannot be archived.
    """
    require_words(words, "archive")
    listed = select_runs(words)
    busy = {row.columns["sweep"] for row in listed.rows if row.columns["sweep"]}
    busy = {sweep for sweep in busy if is_in_progress(Path(sweep))}
    plan = ArchivePlan(listed, [], [])
    for row in listed.rows:
        if row.status == "running" or is_in_progress(row.folder):
            plan.kept.append(KeptRun(row, "it is in progress"))
        elif row.columns["sweep"] in busy:
            plan.kept.append(KeptRun(row, f"its sweep {row.columns['sweep']} is in progress"))
        elif row.status == "damaged":
            plan.kept.append(KeptRun(row, f"it is damaged: {row.columns['problem']}"))
        else:
            _plan_one(row, plan)
    if not force:
        everything = [row for table in listed.tables for row in table.rows]
        sweeps = [table.root / path for table in listed.tables for path in table.found.sweeps]
        needs = find_needs([one.row for one in plan.runs], everything, sweeps)
        _hold_back(plan, needs)
    refuse_named(words, plan.kept)
    return plan


def _plan_one(row: RunRow, plan: ArchivePlan) -> None:
    try:
        checkpoints = open_whole_checkpoints(row)
        kept = checkpoints.choose_kept(keep_last=row.status != "completed")
        dropped = _list_dropped(row.folder, kept)
    except (ConfigError, RunError, OSError) as error:
        plan.kept.append(KeptRun(row, explain_refusal(error)))
        return
    size = sum(_measure(row.folder / name) for name in dropped)
    if dropped:
        plan.runs.append(ArchivedRun(row, tuple(kept), tuple(dropped), size))


def open_whole_checkpoints(row: RunRow) -> "KeptCheckpoints":
    """Open the checkpoints of a run by its manifest.

    Raises:
        ConfigError: something in the folder leads elsewhere.
        RunError: there are checkpoints, and no manifest names them.
    """
    safe_io.refuse_foreign(row.folder)
    from runner.train.kept_checkpoints import KeptCheckpoints

    checkpoints = KeptCheckpoints(row.folder / "checkpoints", mode="min" if row.columns["mode"] == "min" else "max")
    if checkpoints.is_remade:
        message = (
            f"the manifest of its checkpoints is missing or damaged: `python -m runner resume {row.path}` mends it"
        )
        raise RunError(message)
    return checkpoints


def _list_dropped(folder: Path, kept: "Sequence[CheckpointEntry]") -> list[str]:
    """List what goes: checkpoints that are not kept, TensorBoard's events, profiles, temporary files."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if DROPPED.fullmatch(entry.name))
    with contextlib.suppress(FileNotFoundError), os.scandir(folder / "checkpoints") as entries:
        stays = {entry.file for entry in kept}
        for name in sorted(entry.name for entry in entries):
            if (name.startswith("step_") and name not in stays) or name.endswith(".tmp"):
                names.append(f"checkpoints/{name}")
    return names


def _measure(path: Path) -> int:
    return measure_size(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size


def _hold_back(plan: ArchivePlan, needs: dict[Path, list[Need]]) -> None:
    """Hold back the runs of which somebody names a file that would go."""
    going, plan.runs = plan.runs, []
    for one in going:
        named = [need for need in needs.get(one.row.folder, ()) if _is_dropped(need.file, one)]
        if named:
            reason = f"{named[0]} needs its {named[0].file}"
            plan.kept.append(KeptRun(one.row, reason, tuple(named)))
        else:
            plan.runs.append(one)


def _is_dropped(file: str, one: ArchivedRun) -> bool:
    """Return whether a file of a run goes; `last.pt` goes where the last checkpoint does."""
    place = f"checkpoints/{file}" if file in ("best.pt", "last.pt") else file
    if place in ("checkpoints/best.pt", "checkpoints/last.pt"):
        with contextlib.suppress(OSError):
            place = f"checkpoints/{(one.row.folder / place).readlink()}"
    return any(place == name or place.startswith(f"{name}/") for name in one.dropped)


def keep_planned(plan: ArchivePlan) -> list[ArchivedRun]:
    """Archive what was planned; return the runs that are. What failed is noted in the plan.

    After an interruption each run is whole, and the same command goes on: the manifest names the checkpoints that stay
    before any other goes, and what goes is renamed first.
    """
    done = []
    for one in plan.runs:
        try:
            with hold(one.row.folder):
                _reduce(one)
            done.append(one)
        except (ConfigError, RunError, OSError) as error:
            plan.failed.append(f"{one.row.path}: {explain_refusal(error)}")
    return done


def _reduce(one: ArchivedRun) -> None:
    folder = one.row.folder
    checkpoints = open_whole_checkpoints(one.row)
    kept = checkpoints.choose_kept(keep_last=one.row.status != "completed")
    if checkpoints.entries():
        checkpoints.drop_others(kept)
    aside = folder / f".removed_{os.urandom(4).hex()}.tmp"
    aside.mkdir()
    for name in _list_dropped(folder, kept):
        if name != aside.name:
            (folder / name).rename(aside / name.replace("/", "_"))
    shutil.rmtree(aside)
    _mark(folder, kept)


def _mark(folder: Path, kept: "Sequence[CheckpointEntry]") -> None:
    """Note in the result that the run was archived; the file keeps its time, the end of the run."""
    file = folder / "result.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        result, state = safe_io.read_json(file), file.lstat()
        if isinstance(result, dict):
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            result["archived"] = {"time": now, "checkpoints": [entry.file for entry in kept]}
            write_json(file, result)
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
