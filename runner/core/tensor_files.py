"""Read files of tensors with `torch.load(weights_only=True)` and diagnose refused ones."""

import errno
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from runner.core import safe_io
from runner.core.errors import RunError
from runner.core.escape import quote_shell_word
from runner.core.files import open_regular


def load_tensors(
    path: Path, map_location: Any = "cpu", sha256: str | None = None, content: io.BytesIO | None = None
) -> Any:
    """Load a `.pt` or `.pth` file of tensors and plain containers; never unpickle anything else.

    With `sha256` (hexadecimal) the content is verified first: `torch.load` does not check the archive's CRCs. `content`
    is read in the place of the file, which then only has the name.

    Raises:
        RunError: the file cannot be read or is not such a file; says why.
    """
    import torch  # slow to import, and much here does without

    try:
        with content or open_regular(path) as file:
            check_fits_in_memory(path, file.seek(0, os.SEEK_END))
            file.seek(0)
            if sha256 is not None and (actual := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
                raise RunError(f"{path} is damaged: its SHA-256 is {actual}, but {sha256} was recorded")
            refuse_bomb(file, path)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
    except (RunError, MemoryError):
        raise
    except Exception as error:  # torch raises whatever its unpickler and archive reader meet
        # A seek before a torn file's start is an EINVAL without a file name.
        if isinstance(error, OSError) and (error.errno != errno.EINVAL or error.filename):
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
        raise RunError(f"{path} {_diagnose(path, error)}") from error


def refuse_bomb(file: BinaryIO, path: Path) -> None:
    """Refuse a file that asks for more memory than it has bytes.

    Torch reads compressed records, and its unpickler makes a `bytearray` of any length that a pickle names. torch.save
    writes neither.
    """
    file.seek(0)
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(2) == b"PK":
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise RunError(f"{path} is a compressed archive, which torch.save does not write: pack it anew")
            if sum(record.file_size for record in records) > size:
                raise RunError(f"{path} claims more bytes than it has: records of the archive overlap")
            pickles = [archive.read(record) for record in records if record.filename.endswith(".pkl")]
            makes_bytes = any(b"bytearray\n" in content for content in pickles)
    else:
        file.seek(0)
        makes_bytes = any(b"bytearray\n" in block for block in _read_overlapping(file))
    if makes_bytes:
        raise RunError(f"{path} holds a bytearray, which may be of any length: save its content as a tensor")


def _read_overlapping(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file in blocks, each with the end of the one before it."""
    end = b""
    while block := file.read(2**22):
        yield end + block
        end = block[-16:]


def check_fits_in_memory(path: Path, size: int) -> None:
    """Refuse a file larger than this machine's memory before a byte is read or hashed. Raises RunError."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise RunError(f"{path} has {size:,} bytes, and this machine {memory:,} of memory")


def _open_resolved(path: Path) -> io.BufferedReader:
    """Open a regular file, also through a link, without blocking on a pipe. Raises OSError."""
    return safe_io.open_read(path.resolve())


def _diagnose(path: Path, error: Exception) -> str:
    if path.is_dir():
        return f"is damaged, or holds more than tensors and plain containers: {_get_first_sentence(error)}"
    with _open_resolved(path) as file:
        head = file.read(512)
    if not head:
        return "is empty"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page, not a file of tensors: the download gave an error page"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if refused := _find_refused_names(path, error):
        return (
            f"holds pickled objects ({', '.join(refused)}), and loading them would run code: only tensors, numbers, "
            "strings and plain containers are read; if you trust it: "
            f"`python -m runner convert {quote_shell_word(str(path))} --trust`"
        )
    if head.startswith(b"PK"):
        return f"is cut short or damaged: {_get_first_sentence(error)}"
    return f"is not a file that torch.save wrote, or it is damaged: {_get_first_sentence(error)}"


def _find_refused_names(path: Path, error: Exception) -> list[str]:
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  no archive: an old file, of which only the first is named, or a broken one
        return re.findall(r"GLOBAL (\S+)", str(error))[:1]


def _get_first_sentence(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". ", 1)[0][:200] or type(error).__name__
