"""Files: the one writer of what must survive a crash, the one reader of `.pt` files, run directories and their lock."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runner.core.escape import strict_json


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
