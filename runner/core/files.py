"""Atomic, synced writes; bounded reads of regular files; strict JSON."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from runner.core.escape import escape_json


class _HashingWriter(io.BufferedWriter):
    """File writer that hashes its bytes in order and therefore cannot seek."""

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


class _Gathering(threading.local):
    """Files of this thread that have been written, and are to be synced and named: (temporary, name)."""

    files: list[tuple[Path, Path]] | None = None


_gathering = _Gathering()


@contextlib.contextmanager
def write_together() -> Iterator[None]:
    """Gather what this thread writes by `write_atomic`; all is synced at once at the end, then named.

    A disk takes eighty files of sixteen jobs in the time of four.

    Raises:
        OSError: what was gathered could not be synced; what could has its name.
    """
    if _gathering.files is not None:
        yield
        return
    _gathering.files = []
    try:
        yield
    finally:
        try:
            write_gathered()
        finally:
            _gathering.files = None


def write_gathered() -> None:
    """Sync and name what has been gathered so far, before somebody is told of it; see `write_together`."""
    files, errors = _gathering.files, list[OSError]()
    if not files:
        return
    _gathering.files = []
    try:
        with ThreadPoolExecutor(min(16, len(files))) as pool:
            faults = [*pool.map(_try_to_sync, [temporary for temporary, _ in files])]
            for (temporary, path), fault in zip(files, faults, strict=True):
                if fault := fault or _try_to_name(temporary, path):
                    errors.append(OSError(fault.errno, fault.strerror, str(path)))
            [*pool.map(sync_folder, {path.parent for _, path in files} - {Path(one.filename).parent for one in errors})]
    finally:
        for temporary, _ in files:  # of those that have no name
            remove(temporary)
    if errors:
        raise errors[0]


def _try_to_sync(file: Path) -> OSError | None:
    try:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    except OSError as error:
        return error
    return None


def _try_to_name(temporary: Path, path: Path) -> OSError | None:
    try:
        temporary.replace(path)
    except OSError as error:
        return error
    return None


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> str:
    """Create or replace `path` by `write`: complete and synced on return, untouched on an error.

    Within `write_together` it is later that it is synced, and has its name. The file object cannot seek. Returns the
    SHA-256 of the bytes, in hexadecimal, taken while they were written.

    Raises:
        OSError: the disk is full, the folder not writable; or whatever else `write` raises.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    file = _HashingWriter(temporary)
    try:
        with file:
            write(file)
            file.flush()
            if _gathering.files is None:
                os.fsync(file.fileno())
        if _gathering.files is not None:
            _gathering.files.append((temporary, path))
            return file.digest.hexdigest()
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
    """Read a file from the disk, without the page cache where possible, and verify its SHA-256.

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
    """Format plain data as strict JSON; NaN and infinities become strings that `float()` reads.

    Raises:
        TypeError: something in it is not plain.
    """
    try:
        return escape_json(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))
    except ValueError:  # rare, so the copy is made only then
        return escape_json(json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _without_nan(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(member) for member in value]
    return value


def replace_link(path: Path, target: str) -> None:
    """Point the symbolic link `path` at `target`, relative to its folder, atomically but unsynced."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        temporary.symlink_to(target)
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Delete a file if possible; meant for files that nothing references any more."""
    with contextlib.suppress(OSError):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries (names made, renamed, removed) to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync names by themselves
            raise
    finally:
        os.close(handle)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; refuse pipes and devices, which could block for ever.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
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
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: it is larger, no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content
