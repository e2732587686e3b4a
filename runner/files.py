"""Files: the one writer of what must survive a crash, the one reader of `.pt` files, run directories and their lock."""

import bisect
import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from runner import safe_io
from runner.errors import ConfigError, Mistake, RunError
from runner.escape import shell_word, strict_json


class _Hashing(io.BufferedWriter):
    """A file that hashes what goes through it. It cannot seek: the hash is of the bytes in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation("seek")


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> str:
    """Make or replace `path` by what `write` writes: whole and on the disk when this returns, untouched if it raises.

    The file object cannot seek. Returns the SHA-256 of the bytes, in hexadecimal, taken while they were written.

    Raises:
        OSError: the disk is full, the folder not writable; or whatever else `write` raises.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    file = _Hashing(temporary)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        if file.failure and error is not file.failure:  # a full disk reaches us as torch's "unexpected pos 30 vs 0"
            raise file.failure from error
        raise
    sync_folder(path.parent)
    return file.digest.hexdigest()


def read_back(path: Path, sha256: str) -> None:
    """Read a file from the disk, where the system lets go of its copy in memory, and compare its SHA-256.

    Raises:
        OSError: it is not what was written.
    """
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise OSError(errno.EIO, "the disk does not give back what was written", str(path))


def write_text(path: Path, text: str) -> str:
    """Make or replace a UTF-8 text file; see `write_atomic`."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return write_atomic(path, write)


def write_json(path: Path, value: Any) -> str:
    """Make or replace a JSON file; NaN and infinities become the strings "NaN", "Infinity", "-Infinity"."""
    return write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON of plain data; NaN and infinities as strings, which `float()` reads back.

    Raises:
        TypeError: something in it is not plain.
    """
    try:
        return strict_json(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))
    except ValueError:  # rare, so the copy is made only then
        return strict_json(json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _without_nan(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(member) for member in value]
    return value


def replace_link(path: Path, target: str) -> None:
    """Make or replace the symbolic link `path`, relative to its folder, in one step. The folder is not synced."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.symlink_to(target)
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Delete a file if it can be deleted: only for what nothing refers to any more."""
    with contextlib.suppress(OSError):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (names made, renamed, removed) to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync names by themselves
            raise
    finally:
        os.close(handle)


@dataclass
class Place:
    """A whole line of a JSON lines file: its step, its number from 1, and where it lies."""

    step: int
    number: int
    start: int
    end: int


def whole_lines(path: Path, until: float = math.inf) -> tuple[list[Place], list[int]]:
    """The whole lines of a JSON lines file with growing steps up to `until`, and the numbers of the damaged ones.

    Where steps do not grow, the fewest lines that are in the way count as damaged.
    """
    places, damaged, end = list[Place](), list[int](), 0
    with safe_io.open_read(path) as file:
        for number, line in enumerate(safe_io.lines(file), 1):
            start, end = end, end + len(line)
            event = _parse_event(line)
            if event is None:
                damaged.append(number)
            elif event["step"] <= until:
                places.append(Place(event["step"], number, start, end))
    if any(one.step >= other.step for one, other in itertools.pairwise(places)):
        kept = _growing(places)
        damaged += {place.number for place in places} - {place.number for place in kept}
        places = kept
    return places, sorted(damaged)


def _growing(places: list[Place]) -> list[Place]:
    """The longest part of them whose steps grow (patience sorting)."""
    tops: list[int] = []  # the least step that ends a growing part of each length
    ends: list[int] = []  # the place of that
    before: list[int] = []
    for at, place in enumerate(places):
        length = bisect.bisect_left(tops, place.step)
        before.append(ends[length - 1] if length else -1)
        tops[length : length + 1] = [place.step]
        ends[length : length + 1] = [at]
    kept, at = list[Place](), ends[-1] if ends else -1
    while at >= 0:
        kept.append(places[at])
        at = before[at]
    return kept[::-1]


def put_aside(path: Path) -> str:
    """Copy a damaged file: `metrics.jsonl` is then `metrics.1.jsonl` too, or the first number that is free."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    with safe_io.open_read(path) as damaged, aside.open("xb") as file:
        shutil.copyfileobj(damaged, file)
    return aside.name


class Lines:
    """A JSON lines file: one object an event, in the order of their `step`, one line a step, flushed per event.

    An event with the step of the last line is merged into that line. What is opened loses its torn end and every line
    of a step after `until`: what a resume at step `until` will log again. A damaged line before whole ones is left out;
    the file as it was is put aside then.
    """

    def __init__(self, path: Path, until: float = math.inf) -> None:
        self.path = path
        self._handle = safe_io.open_regular(path, os.O_RDWR | os.O_CREAT)
        self.truncate_after(until)

    def truncate_after(self, step: float) -> None:
        """Drop every event with a step greater than `step`, and a torn end; `last` is what is left at the end."""
        places, _ = whole_lines(self.path, step)
        if any(one.end != other.start for one, other in itertools.pairwise([Place(0, 0, 0, 0), *places])):
            kept = [os.pread(self._handle, place.end - place.start, place.start) for place in places]
            put_aside(self.path)
            write_atomic(self.path, lambda file: file.writelines(kept))
            os.close(self._handle)
            self._handle = safe_io.open_regular(self.path, os.O_RDWR)
            places, _ = whole_lines(self.path)
        self.last: dict[str, Any] = {}
        self._start_of_last = self._end = 0
        if places:
            self._start_of_last, self._end = places[-1].start, places[-1].end
            self.last = safe_io.loads(os.pread(self._handle, self._end - self._start_of_last, self._start_of_last))
        os.ftruncate(self._handle, self._end)

    def append(self, event: dict[str, Any]) -> None:
        """Write `event` (with an integer `step`, not below the last one's) and hand it to the operating system.

        Raises:
            OSError: the disk refuses; the line is left out, and a later one may find room.
        """
        again = bool(self.last) and event["step"] == self.last["step"]
        assert again or not self.last or event["step"] > self.last["step"], "events come in the order of their steps"
        start = self._start_of_last if again else self._end
        line = to_json(self.last | event if again else event).encode() + b"\n"
        at = start
        try:
            while at < start + len(line):  # a disk that fills up takes part of it
                at += os.pwrite(self._handle, line[at - start :], at)
            if again:  # what it replaces may have been longer
                os.ftruncate(self._handle, at)
        except OSError:
            before = to_json(self.last).encode() + b"\n" if again else b""
            os.pwrite(self._handle, before, start)
            os.ftruncate(self._handle, start + len(before))
            raise
        self.last, self._start_of_last, self._end = self.last | event if again else event, start, at

    def sync(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _parse_event(line: bytes) -> dict[str, Any] | None:
    try:
        event = safe_io.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(event, dict) and isinstance(event.get("step"), int)
    return event if whole else None


def make_run_dir(root: Path, name: str) -> Path:
    """Make and return the new folder `<root>/<name>/<date>_<time>_<id>`, which no other process gets."""
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        folder = parent / f"{now}_{os.urandom(3).hex()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            sync_folder(parent)
            return folder


_HELD: set[int] = set()


def _close_in_child() -> None:
    # A forked loader worker shares the open file, and would hold the lock for seconds after its parent was killed.
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
BEAT_SECONDS, DEAD_SECONDS = 5.0, 30.0  # without locks: between two signs of life, and without any


class Lock:
    """A run directory for this process alone, until `release` or the process's end, however it ends.

    An OS lock; only where the file system has none, a file that is touched every BEAT_SECONDS, and that others take
    over when it was not for DEAD_SECONDS.

    Raises:
        ConfigError: another process (or another Lock of this one) holds it, or something in it leads elsewhere.
        RunError: nothing can be written there.
    """

    def __init__(self, run_dir: Path) -> None:
        safe_io.refuse_foreign(run_dir)
        try:
            self._handle = safe_io.open_regular(run_dir / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            folder = shell_word(str(run_dir))
            remedy = f"a copy can go on: `cp -r {folder} COPY`, `python -m runner resume COPY`"
            raise RunError(f"{run_dir} cannot be written ({error.strerror}): {remedy}") from error
        self._stopped: threading.Event | None = None  # set to end the signs of life, where there are some
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._handle)
            raise ConfigError([_in_progress(run_dir, holder)]) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(self._handle)
                raise
            self._take_heartbeat(run_dir)
        _HELD.add(self._handle)
        os.truncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)  # for the message

    def release(self) -> None:
        """Let others have it; again is harmless, and so it is in a forked child, which never held it."""
        if self._handle in _HELD:
            _HELD.remove(self._handle)
            os.close(self._handle)
            if self._stopped is not None:
                self._stopped.set()
                remove(self._heartbeat)

    def _take_heartbeat(self, run_dir: Path) -> None:
        self._heartbeat = run_dir / ".heartbeat"
        os.utime(self._handle)  # the clock of the file system, not of this machine
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(self._handle).st_mtime - self._heartbeat.stat().st_mtime < DEAD_SECONDS:
                os.close(self._handle)
                raise ConfigError([_in_progress(run_dir, self._heartbeat.read_text() or "another process")])
            # Of several that find it dead one alone can rename it.
            self._heartbeat.rename(self._heartbeat.with_name(f".heartbeat.{os.urandom(4).hex()}.tmp"))
        try:
            with self._heartbeat.open("x") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
        except FileExistsError:
            os.close(self._handle)
            raise ConfigError([_in_progress(run_dir, "another process")]) from None
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._stopped,), name="heartbeat", daemon=True).start()

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._heartbeat)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _in_progress(run_dir: Path, holder: str) -> Mistake:
    remedy = f"{holder} is at work on it: wait for it, or stop it"
    return Mistake("run", "must not be in progress", str(run_dir), remedy=remedy)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to be read, if it is a regular one: a pipe or a device could keep its reader for ever.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    kinds = {
        "a directory": stat.S_ISDIR,
        "a named pipe": stat.S_ISFIFO,
        "a device": stat.S_ISCHR,
        "a disk": stat.S_ISBLK,
    }
    kind = next((name for name, is_kind in kinds.items() if is_kind(mode)), "none")
    raise OSError(errno.EINVAL, f"it is {kind}, no regular file", str(path))


def read_small(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        OSError: it is larger, no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def load_tensors(
    path: Path, map_location: Any = "cpu", sha256: str | None = None, content: io.BytesIO | None = None
) -> Any:
    """Read a `.pt` or `.pth` file of tensors and plain containers: the one place that does, never unpickling more.

    With `sha256` (hexadecimal) the content is verified first: `torch.load` does not check the archive's CRCs. `content`
    is read in the place of the file, which then only has the name.

    Raises:
        RunError: the file cannot be read or is not such a file; says why.
    """
    import torch  # slow to import, and much here does without

    try:
        with content or open_regular(path) as file:
            if sha256 is not None and (actual := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
                raise RunError(f"{path} is damaged: its SHA-256 is {actual}, but {sha256} was recorded")
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except (RunError, MemoryError):
        raise
    except Exception as error:  # torch raises whatever its unpickler and archive reader meet
        # A seek before a torn file's start is an EINVAL without a file name.
        if isinstance(error, OSError) and (error.errno != errno.EINVAL or error.filename):
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
        raise RunError(f"{path} {_what_is_wrong(path, error)}") from error


def _opened(path: Path) -> io.BufferedReader:
    """Open a regular file, also through a link, without waiting for a pipe. Raises OSError."""
    return safe_io.open_read(path.resolve())


def _what_is_wrong(path: Path, error: Exception) -> str:
    if path.is_dir():
        return f"is damaged, or holds more than tensors and plain containers: {_first_sentence(error)}"
    with _opened(path) as file:
        head = file.read(512)
    if not head:
        return "is empty"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page, not a file of tensors: the download gave an error page"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if refused := _refused_names(path, error):
        return (
            f"holds pickled objects ({', '.join(refused)}), and loading them would run code: only tensors, numbers, "
            "strings and plain containers are read; if you trust it: "
            f"`python -m runner convert {shell_word(str(path))} --trust`"
        )
    if head.startswith(b"PK"):
        return f"is cut short or damaged: {_first_sentence(error)}"
    return f"is not a file that torch.save wrote, or it is damaged: {_first_sentence(error)}"


def _refused_names(path: Path, error: Exception) -> list[str]:
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  no archive: an old file, of which only the first is named, or a broken one
        return re.findall(r"GLOBAL (\S+)", str(error))[:1]


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". ", 1)[0][:200] or type(error).__name__
