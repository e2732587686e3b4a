"""Checkpoints: atomic writes, SHA-256 on save and load, retention of the newest few and the best."""

import dataclasses
import hashlib
import math
import re
import shutil
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from runner.core import event_stream, files, safe_io, tensor_files
from runner.core.errors import RunError
from runner.train.plain_state import count_bytes, to_plain

MANIFEST = "manifest.json"


BACKGROUND_BYTES = 10_000_000  # smaller ones take milliseconds: a thread and a copy would cost more than they save


class SaveError(RunError):
    """Failure to write a checkpoint; the earlier checkpoints are intact."""


@dataclasses.dataclass(frozen=True)
class CheckpointEntry:
    """One committed checkpoint: a row of `manifest.json`."""

    file: str  # its name in the folder
    step: int
    metric: float | None  # the objective's value, where it was known
    sha256: str


class Checkpoints:
    """Checkpoint manager for the folder `checkpoints/` of a run.

    The `keep` newest stay, and the best by its metric (`mode` says which way). A checkpoint counts from the moment that
    it stands in the manifest; `last.pt` and `best.pt` are for people, loading goes by the manifest. `warn` is told, in
    one sentence, of each damaged or uncommitted file met. Making the object touches nothing on the disk.

    A manifest that is missing or damaged is made again from the checkpoints: each says its step and its metric, and its
    archive has checksums.

    Raises:
        RunError: there is a manifest, and it cannot be read.
    """

    syncs_log = True  # the caller does, before `save`; else these do, before they write

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        mode: Literal["min", "max"] = "min",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder, self.keep, self.mode, self.warn = folder, keep, mode, warn
        self._saving: _BackgroundSave | None = None
        self.background_bytes = BACKGROUND_BYTES  # of a state that `save` may leave to a thread
        committed, self._remade = _read_or_rebuild_manifest(folder)
        self._entries = committed
        listed = {entry.file for entry in committed}
        # Without a manifest, what lies there may be all that somebody has: it is never deleted.
        self._foreign = {path.name for path in folder.glob("step_*.pt")} - listed if self._remade else set[str]()

    def refuse_lost(self, steps: int) -> None:
        """Refuse to begin at step 0 if the folder had checkpoints and none is left.

        Args:
            steps: after which the run has saved, as far as that is known.

        Raises:
            RunError: there are files, and none is whole; or none is there, and `steps` says that there was one.
        """
        files_there = sorted(path.name for path in self.folder.glob("step_*.pt"))
        anew = f"move {self.folder} away to begin at step 0 (with {self.folder.parent / 'result.json'}), or train anew"
        if files_there:
            raise RunError(f"{self.folder} holds no whole checkpoint ({', '.join(files_there)} are damaged): {anew}")
        if steps:
            raise RunError(f"{self.folder} holds no checkpoint, though the run has saved at step {steps:,}: {anew}")

    def entries(self) -> list[CheckpointEntry]:
        """Return all committed checkpoints, oldest first."""
        return list(self._entries)

    def newest(self) -> CheckpointEntry | None:
        """Return the checkpoint with the greatest step."""
        return self._entries[-1] if self._entries else None

    def best(self) -> CheckpointEntry | None:
        """Return the checkpoint with the best finite metric, the earliest of equals."""
        return self._best(self._entries)

    def takes(self, metric: float | None) -> bool:
        """Return whether `save` wants the state of now."""
        return True

    def save(self, state: dict[str, Any], step: int, metric: float | None, *, background: bool = False) -> None:
        """Write `state` as `step_<step>.pt`, verify and commit it, then drop the old checkpoints.

        Whatever instant the machine stops at, the manifest names whole files only. Entries after `step` belong to a
        future that was abandoned (a resume from an older checkpoint), and go.

        With `background`, a state of `background_bytes` or more is copied, then written by a thread, to the same bytes;
        what goes wrong there is raised by the next `save`, `load` or `wait`. At most one is under way.

        Raises:
            RunError: `state` holds something that is not plain (see `to_plain`); nothing was written.
            SaveError: the disk is full, the folder not writable; the earlier checkpoints are as they were.
        """
        self.wait()
        size = count_bytes(state)
        if background and size >= self.background_bytes:
            state = to_plain(state, copy=True)
            self._saving = _BackgroundSave(lambda: self._commit(state, step, metric))
        else:
            self._commit(to_plain(state), step, metric)

    def wait(self) -> None:
        """Wait until no save is under way.

        Raises:
            SaveError: the one under way failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _commit(self, state: dict[str, Any], step: int, metric: float | None) -> None:
        file = self._free_name(step)
        with self._explain_failure(file, state):
            self._write(state, file, step, metric)

    @contextmanager
    def _explain_failure(self, file: str, state: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            whole = f"; the checkpoint of step {self._entries[-1].step} is whole" if self._entries else ""
            needs, free = count_bytes(state), _format_free_bytes(self.folder)
            raise SaveError(
                f"{self.folder / file} could not be written ({error.strerror or error}): it needs {needs:,} bytes, and "
                f"{free} are free there{whole}"
            ) from error

    def _write(self, state: dict[str, Any], file: str, step: int, metric: float | None) -> None:
        self._list([self._write_file(state, file, step, metric)])

    def _write_file(self, state: dict[str, Any], file: str, step: int, metric: float | None) -> CheckpointEntry:
        """Write a state that no manifest names yet."""
        if not self.folder.exists():
            self.folder.mkdir()
            files.sync_folder(self.folder.parent)
        sha256 = files.write_atomic(self.folder / file, lambda out: torch.save(state, out))
        files.read_back(self.folder / file, sha256)  # before an older one may go
        return CheckpointEntry(file, step, metric, sha256)

    def _list(self, written: Sequence[CheckpointEntry]) -> None:
        """Name written checkpoints, of growing steps, in the manifest, and drop the old ones."""
        entries = [e for e in self._entries if e.step < written[0].step] + [*written]
        best = self._best(entries)
        entries = [e for e in entries if e in entries[-self.keep :] or e == best]
        write_manifest(self.folder, entries)
        self._entries, self._remade = entries, ""
        self.finish()
        for entry in written:
            is_best = best is not None and best.step == entry.step
            event_stream.emit("saved", step=entry.step, file=str(self.folder / entry.file), best=is_best)

    def finish(self) -> None:
        """Set the links `last.pt` and `best.pt` and delete unlisted files, also after an interrupted save."""
        if self._remade:
            write_manifest(self.folder, self._entries)
            self._remade = ""
        best = self._best(self._entries)
        files.replace_link(self.folder / "last.pt", self._entries[-1].file)
        if best:
            files.replace_link(self.folder / "best.pt", best.file)
        else:
            files.remove(self.folder / "best.pt")  # that of an abandoned future
        files.sync_folder(self.folder)
        self._drop_unlisted()

    def load(self, which: str | Path = "last", map_location: Any = "cpu") -> dict[str, Any]:
        """Load the `last` checkpoint, the `best` one or a file, with its SHA-256 verified.

        Where the last is damaged, the newest whole one is taken, and `warn` is told. A file of another folder is
        verified by the manifest beside it; without one it is read unverified, and `warn` is told. With a damaged one
        the checksums of its archive are looked at.

        Raises:
            RunError: there is none, or none is whole.
        """
        self.wait()
        if self._remade:
            self.warn(self._remade)
        if which == "last":
            return self._load_newest_whole(map_location)
        if which == "best":
            if not (best := self.best()):
                raise RunError(f"{self.folder} has no best checkpoint: none was saved with a finite metric")
            return _load_state(self.folder / best.file, map_location, best.sha256)
        return self._load_file(Path(which).resolve(), map_location)

    def read_dropped_step(self) -> int | None:
        """Read the step of the last checkpoint where `archive` has dropped that; else None."""
        try:
            step = safe_io.read_json(self.folder / MANIFEST).get("dropped")
        except (OSError, ValueError, AttributeError):
            return None
        return step if isinstance(step, int) else None

    def _load_file(self, path: Path, map_location: Any) -> dict[str, Any]:
        try:
            committed = _read_manifest(path.parent)
        except DamagedManifest as error:
            committed = None
            self.warn(f"{error}: {path.name} is verified by the checksums of its archive alone")
            _verify_archive(path)
        else:
            if committed is None:
                self.warn(f"{path} is read unverified: there is no {MANIFEST} beside it")
        if committed is None:
            return _load_state(path, map_location, None)
        for entry in committed:
            if entry.file == path.name:
                return _load_state(path, map_location, entry.sha256)
        known = ", ".join(entry.file for entry in committed) or "nothing"
        raise RunError(f"{path} was never committed: {path.parent / MANIFEST} names {known}")

    def _load_newest_whole(self, map_location: Any) -> dict[str, Any]:
        listed = {entry.file for entry in self._entries}
        newest = self._entries[-1].step if self._entries else -1
        if (dropped := self.read_dropped_step()) is not None and dropped > newest:
            best = f"; the best one, of step {newest:,}, is there (`--checkpoint best`)" if self._entries else ""
            raise RunError(
                f"`archive` has removed the last checkpoint of {self.folder}, that of step {dropped:,}{best}"
            )
        for path in sorted(self.folder.glob("step_*.pt")):
            if path.name not in listed and _parse_step(path) > newest:
                self.warn(f"{path} was never committed (its save was cut short): it is passed over")
        for entry in reversed(self._entries):
            try:
                return _load_state(self.folder / entry.file, map_location, entry.sha256)
            except RunError as error:
                self.warn(f"checkpoint of step {entry.step} is passed over: {error}")
        raise RunError(f"{self.folder} holds no {'whole' if listed else 'committed'} checkpoint")

    def _best(self, entries: list[CheckpointEntry]) -> CheckpointEntry | None:
        sign = 1 if self.mode == "min" else -1
        finite = [(sign * e.metric, e.step, e) for e in entries if e.metric is not None and math.isfinite(e.metric)]
        return min(finite)[2] if finite else None  # steps differ, so entries are never compared

    def _free_name(self, step: int) -> str:
        # A step saved again gets a new name: replacing its file would leave the manifest wrong for an instant.
        taken, name, again = {entry.file for entry in self._entries} | self._foreign, f"step_{step:08d}.pt", 0
        while name in taken:
            again += 1
            name = f"step_{step:08d}-{again}.pt"
        return name

    def _drop_unlisted(self) -> None:
        keep = {entry.file for entry in self._entries} | self._foreign
        for path in self.folder.iterdir():
            if (path.name.startswith("step_") and path.name not in keep) or path.match(".*.tmp"):
                files.remove(path)


class ReadOnlyCheckpoints(Checkpoints):
    """Checkpoints of a process that does not write: `save` is a no-op."""

    def save(self, state: dict[str, Any], step: int, metric: float | None, *, background: bool = False) -> None:
        pass


class _BackgroundSave:
    """Save in a background thread; a normal exit of the process waits for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  raised again where it is waited for
            self._error = error

    def result(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _format_free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder if folder.exists() else folder.parent).free:,}"
    except OSError:
        return "unknown"


def _load_state(path: Path, map_location: Any, sha256: str | None) -> dict[str, Any]:
    state = tensor_files.load_tensors(path, map_location, sha256)
    if not isinstance(state, dict):
        raise RunError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not a dict")
    return state


def _parse_step(path: Path) -> int:
    number = re.match(r"step_(\d+)", path.name)
    return int(number[1]) if number else -1


def _hash_rows(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(files.to_json(rows).encode()).hexdigest()


def write_manifest(folder: Path, entries: list[CheckpointEntry], dropped: int | None = None) -> None:
    """Write the manifest; `dropped` is the step of a last checkpoint that `archive` drops."""
    rows = [dataclasses.asdict(entry) for entry in entries]
    said = {"entries": rows, "sha256": _hash_rows(rows)}
    files.write_json(folder / MANIFEST, said if dropped is None else said | {"dropped": dropped})


def _make_entry(file: Any, step: Any, metric: Any, sha256: Any) -> CheckpointEntry:
    if not re.fullmatch(r"step_\d+(-\d+)?\.pt", file, re.ASCII):
        raise ValueError(f"it names {file!r}, which is no checkpoint beside it")
    if not isinstance(step, int) or not isinstance(sha256, str):
        raise TypeError("an entry has no step or no hash")
    return CheckpointEntry(file, step, None if metric is None else float(metric), sha256)


class DamagedManifest(RunError):
    """Manifest whose content differs from its SHA-256 or does not parse."""


def _read_manifest(folder: Path) -> list[CheckpointEntry] | None:
    """Read the committed checkpoints, oldest first; return None without a manifest.

    Raises:
        DamagedManifest: it is damaged.
        RunError: it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = safe_io.read_json(path)
        rows = manifest["entries"]
        if _hash_rows(rows) != manifest["sha256"]:
            raise ValueError("its content does not have the SHA-256 that it states")
        return [_make_entry(**row) for row in rows]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedManifest(f"{path} is damaged ({error})") from error


def _read_or_rebuild_manifest(folder: Path) -> tuple[list[CheckpointEntry], str]:
    """Return the committed checkpoints and, if the manifest had to be rebuilt, a warning; else ""."""
    try:
        committed, why = _read_manifest(folder), f"{folder / MANIFEST} is missing"
    except DamagedManifest as error:
        committed, why = None, str(error)
    if committed is not None:
        return committed, ""
    found, lost = [], []
    for path in sorted(folder.glob("step_*.pt")):
        try:
            found.append(_rebuild_entry(path))
        except RunError as error:
            lost.append(str(error))
    if not found and not lost:
        return [], ""
    by_step = {entry.step: entry for entry in found}  # of a step that was saved again the later file
    entries = [by_step[step] for step in sorted(by_step)]
    steps = ", ".join(f"{entry.step:,}" for entry in entries) or "none"
    passed = f"; passed over: {'; '.join(lost)}" if lost else ""
    return entries, f"{why}: it is made again from the checkpoints (whole are those of the steps: {steps}){passed}"


def _rebuild_entry(path: Path) -> CheckpointEntry:
    """Rebuild the manifest entry of a checkpoint from its file.

    Raises:
        RunError: it is not whole, or no checkpoint of a run.
    """
    tensor_files.check_fits_in_memory(path, path.stat().st_size)
    _verify_archive(path)
    with safe_io.open_read(path.resolve()) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state = _load_state(path, "cpu", sha256)
    try:
        progress = state["progress"]
        step, best = int(progress["step"]), progress.get("best")
        metric = best["objective"] if best is not None and best["step"] == step else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is no checkpoint of a run: it does not say its step") from error
    return CheckpointEntry(path.name, step, metric, sha256)


def _verify_archive(path: Path) -> None:
    """Compare each record of a `.pt` archive with its CRC, which `torch.load` does not check.

    Raises:
        RunError: one differs, or it is no archive.
    """
    try:
        with safe_io.open_read(path.resolve()) as file, zipfile.ZipFile(file) as archive:
            tensor_files.refuse_bomb(file, path)
            wrong = archive.testzip()
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong} does not have its checksum")
