"""Read untrusted run directories and sweeps without following links, within size limits."""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from runner.core.errors import ConfigError, Mistake

MAX_BYTES = 64_000_000  # of a record: a provenance with its diff has some MB


MAX_LOG_BYTES = 2**30  # of a metrics.jsonl or a study: a line a log event


MAX_NODES = 1_000_000


MAX_DEPTH = 100


MAX_DIGITS = 300  # of a whole number: one of 309 is no float any more


# No link is followed, no pipe waited for, nothing inherited; Windows has none of these, but a text mode.
OPEN_FLAGS = sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY"))


MAX_LINE = 4_000_000  # bytes of a line of metrics.jsonl


MAX_ENTRIES = 100_000  # in one folder of a run


# In checkpoints/, to a file beside them; under the second name where a kill kept it from taking the first.
OUR_LINKS = re.compile(r"(last|best)\.pt|\.(last|best)\.pt\.[0-9a-f]{8}\.tmp")


# All that the runner opens in a run directory or a sweep's; anything else there is let alone, link or not.
OUR_NAMES = re.compile(
    r"config(\.\d+)?\.yaml|\.hydra(\.\d+)?|(provenance|result|pretrained|report)(\.\d+)?\.json|log(\.\d+)?\.txt"
    r"|(metrics|trace|bad_samples)(\.\d+)?\.jsonl|tb(\.\d+)?|checkpoints(\.\d+)?|profile(\.\d+)?|\.lock|\.heartbeat|output\.txt"
    r"|ledger(\.\d+)?\.sqlite(-journal|-wal|-shm)?|study\.jsonl|queue|prune|projector|projector_config\.pbtxt"
    r"|report\.(csv|html)|curves\.png|trackers|.*\.tmp|\d+_[0-9a-f]{8}"
)


WRITTEN_IN_PLACE = re.compile(
    r"(log|output)\.txt|(metrics|trace|bad_samples|study)\.jsonl|\.lock|\.heartbeat|ledger\.sqlite.*"
)


_JOB = re.compile(r"\d+_[0-9a-f]{8}")  # the folder of a sweep's job


_LONG_NUMBER = re.compile(rb"\d{%d}" % (MAX_DIGITS + 1))


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file that is no link, without blocking; child processes do not inherit it.

    Raises:
        OSError: it is a link, a pipe, a socket, a device or a folder, or cannot be opened.
    """
    try:
        handle = os.open(path, flags | OPEN_FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, and a run has none", str(path)) from None
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "is no regular file", str(path)) from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        is_folder = stat.S_ISDIR(mode)
        raise OSError(errno.ENXIO, "is a directory" if is_folder else "is no regular file", str(path))
    return handle


def open_read(path: Path) -> BufferedReader:
    """Open a regular file that is no link to read its bytes. Raises OSError."""
    return os.fdopen(open_regular(path), "rb")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a whole regular file that is no link and not larger than `limit` bytes. Raises OSError."""
    with open_read(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:  # it grows
        raise OSError(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
    return data


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file within the limits.

    Raises:
        OSError: it cannot be read, is a link or too large.
        ValueError: it is no JSON, or is nested too deeply or has too many values.
    """
    return parse_json(read_bytes(path, limit))


def parse_json(data: bytes | str) -> Any:
    """Parse JSON of at most MAX_DEPTH levels and MAX_NODES values. Raises ValueError."""
    check_nesting(data)
    try:
        return json.loads(data)
    except RecursionError:  # quotes that do not match, so that the count above was misled
        raise ValueError(f"is nested deeper than {MAX_DEPTH}") from None


def check_nesting(data: bytes | str) -> None:
    """Check JSON against MAX_DEPTH, MAX_NODES and MAX_DIGITS before it is parsed. Raises ValueError."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if _LONG_NUMBER.search(raw) and _LONG_NUMBER.search(_STRING.sub(b"", raw)):
        raise ValueError(f"has a number of more than {MAX_DIGITS} digits")
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > MAX_DEPTH or opened + raw.count(b",") > MAX_NODES:
        bare = _STRING.sub(b"", raw)
        if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES:,} values")
        depth = 0
        for bracket in re.finditer(rb"[\[{}\]]", bare):
            depth += 1 if bracket[0] in b"[{" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"is nested deeper than {MAX_DEPTH}")


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file in pieces of at most MAX_LINE bytes."""
    while line := file.readline(MAX_LINE):
        yield line


def find_foreign(folder: Path) -> list[Mistake]:
    """List the runner's own names in a run directory that are links, pipes, devices or hard links.

    That is a link (but `last.pt` and `best.pt` to files beside them), a pipe, a socket, a device, or a file that is
    written in place and has another name elsewhere.
    """
    return [Mistake("run", rule, str(path), kind="file") for path, rule in _walk_foreign(folder, top=True)]


def refuse_foreign_jobs(folder: Path) -> None:
    """Refuse a sweep's folder in which a job's files lead elsewhere. Raises ConfigError."""
    with contextlib.suppress(OSError):  # whoever opens it says so
        jobs = [folder / entry.name for entry in _list_entries(folder) if _JOB.fullmatch(entry.name)]
        if found := [mistake for job in sorted(jobs) for mistake in find_foreign(job)]:
            raise ConfigError(found)


def _walk_foreign(folder: Path, *, top: bool) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(OSError):  # whoever opens it says so
        for number, entry in enumerate(_list_entries(folder)):
            if number > MAX_ENTRIES:
                yield folder, f"must have at most {MAX_ENTRIES:,} entries"
                return
            if top and not OUR_NAMES.fullmatch(entry.name):
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not _JOB.fullmatch(entry.name):  # which is opened by itself
                    yield from _walk_foreign(path, top=False)
            elif rule := _find_problem(path, entry, top=top):
                yield path, rule


def _find_problem(path: Path, entry: os.DirEntry[str], *, top: bool) -> str:
    if entry.is_symlink():
        target = str(path.readlink())
        ours = (
            not top and OUR_LINKS.fullmatch(entry.name) is not None and "/" not in target and target not in (".", "..")
        )
        return "" if ours else f"must be no link, but leads to {target!r}: what it leads to would be changed"
    state = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(state.st_mode):
        return "must be a regular file or a folder"
    if top and state.st_nlink > 1 and state.st_size and WRITTEN_IN_PLACE.fullmatch(entry.name):
        return "must have no other name (a hard link): copy it, since it is written in place"
    return ""


def _list_entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def refuse_foreign(folder: Path) -> None:
    """Refuse a run directory whose files lead elsewhere. Raises ConfigError."""
    if found := find_foreign(folder):
        raise ConfigError(found)
