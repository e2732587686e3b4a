"""Unpack untrusted archives whole or not at all, inside a new folder and within limits."""

import bz2
import gzip
import importlib.machinery
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from runner.core.errors import RunError

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


IMPORTABLE = tuple(importlib.machinery.all_suffixes())  # .py, .pyc, .so


BLOCK = 2**20  # bytes copied at once


FREE_RATIO = 100 * 2**20  # bytes up to which the ratio does not matter: small files of zeros compress by 1000


@dataclass(frozen=True)
class Limits:
    """Limits of an archive: `members`, `size` in bytes, and the `ratio` of unpacked to packed bytes."""

    members: int = 2_000_000
    size: int = 2**40
    ratio: float = 200.0


class _RefusedArchive(Exception):
    """Refusal of an archive; the message gives the reason."""


@dataclass
class _Budget:
    """Count of unpacked members and bytes, checked against the limits."""

    limits: Limits
    packed: int
    members: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)

    def member(self, name: str) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise _RefusedArchive(f"it has more than {self.limits.members:,} members, at {name!r} (members_limit)")

    def bytes(self, count: int) -> None:
        self.size += count
        if self.size > self.limits.size:
            raise _RefusedArchive(f"it holds more than {self.limits.size:,} bytes (size_limit)")
        if self.size > max(FREE_RATIO, self.limits.ratio * self.packed):
            raise _RefusedArchive(f"it becomes more than {self.limits.ratio:g} times as large (ratio_limit)")


class _CountedStream(io.RawIOBase):
    """Decompressed stream that counts the bytes read and refuses over-long tar headers."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self.stream, self.budget, self.furthest = stream, budget, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise _RefusedArchive("one of its headers is longer than any name")
        data = self.stream.read(size)
        self._reached(self.stream.tell())
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        while self.furthest < place and self.read(min(BLOCK, place - self.stream.tell())):
            pass  # in steps that count, where gzip would read on to any place
        return self.stream.seek(place, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _reached(self, place: int) -> None:
        if place > self.furthest:
            self.budget.bytes(place - self.furthest)
            self.furthest = place


def unpack(archive: Path, target: Path, limits: Limits = Limits()) -> list[str]:
    """Unpack a tar (plain, gz, bz2, xz), a zip or a lone compressed file to the new path `target`.

    Where all of the archive lies in one folder of the target's name, that becomes the target. Files that Python could
    import are left out, since code below the working directory is trusted: their names are returned.

    Raises:
        RunError: the archive is damaged; a member would lie outside, or is neither file, folder nor inner link; it is
            larger than the limits. Nothing of it is left.
    """
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.unpacking")
    budget = _Budget(limits, archive.stat().st_size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _unpack(archive, temporary, budget)
        inner = temporary / target.name
        alone = temporary.is_dir() and os.listdir(temporary) == [target.name] and inner.is_dir()  # noqa: PTH208
        if hasattr(os, "sync"):
            os.sync()  # what is renamed is taken for whole, also after a power cut
        (inner if alone and not inner.is_symlink() else temporary).rename(target)
    except _RefusedArchive as error:
        raise RunError(f"{archive} is not unpacked: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        raise RunError(f"{archive} is not unpacked, it is damaged: {error}") from error
    except (OSError, NotImplementedError, RuntimeError) as error:
        if target.exists():  # another process was first
            return budget.left_out
        raise RunError(f"{archive} cannot be unpacked into {target}: {error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    return budget.left_out


def _unpack(archive: Path, folder: Path, budget: _Budget) -> None:
    with archive.open("rb") as packed:
        head = packed.read(6)
        packed.seek(0)
        if head.startswith(b"PK"):
            folder.mkdir()
            _unpack_zip(packed, folder, budget)
            return
        opener = next((opener for magic, opener in COMPRESSED.items() if head.startswith(magic)), None)
        if opener is None:
            folder.mkdir()
            _unpack_tar(packed, folder, budget)
            return
        with opener(packed) as stream:
            first = stream.read(tarfile.BLOCKSIZE)
            stream.seek(0)
            if _is_tar(first):
                folder.mkdir()
                _unpack_tar(stream, folder, budget)
            else:
                with folder.open("xb") as out:
                    _copy(stream, out, budget)


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _copy(source: IO[bytes], out: IO[bytes], budget: _Budget) -> None:
    while block := source.read(BLOCK):
        budget.bytes(len(block))
        out.write(block)


def _unpack_tar(stream: IO[bytes], folder: Path, budget: _Budget) -> None:
    links: set[PurePosixPath] = set()
    with tarfile.open(fileobj=_CountedStream(stream, budget), mode="r:", errorlevel=1) as archive:
        for member in _iterate_members(archive):
            name = PurePosixPath(member.name.lstrip("/"))
            budget.member(member.name)
            if member.sparse is not None or member.size > budget.limits.size:
                budget.bytes(member.size)  # of a sparse file the archive holds but a part
            if member.issym() or member.islnk():
                _check_link(member, name, links)
                links.add(name)
            if any(above in links for above in name.parents):
                raise _RefusedArchive(f"{member.name!r} goes through a link")
            if name in links and not member.issym() and not member.islnk():
                raise _RefusedArchive(f"{member.name!r} replaces a link")
            if name.name.endswith(IMPORTABLE):
                budget.left_out.append(member.name)
                continue
            try:
                archive.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise _RefusedArchive(str(error)) from error
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them


def _iterate_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member


def _check_link(member: tarfile.TarInfo, name: PurePosixPath, links: set[PurePosixPath]) -> None:
    """Refuse a link that leads outside, and a hard link that goes through another link."""
    raw = member.linkname
    base = name.parent if member.issym() else PurePosixPath()
    inside = PurePosixPath(os.path.normpath(base / raw))
    plain = os.path.normpath(raw) == raw.rstrip("/")
    if raw.startswith("/") or not plain or inside.parts[:1] == ("..",):
        raise _RefusedArchive(f"{member.name!r} is a link to {raw!r}, which may lie outside")
    if member.islnk() and (inside in links or any(above in links for above in inside.parents)):
        raise _RefusedArchive(f"{member.name!r} goes through a link")


def _unpack_zip(stream: IO[bytes], folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            budget.member(member.filename)
            name = PurePosixPath(member.filename)
            if name.is_absolute() or ".." in name.parts or "\\" in member.orig_filename:
                raise _RefusedArchive(f"{member.filename!r} would lie outside")
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedArchive(f"{member.filename!r} is neither a file nor a folder")
            if member.flag_bits & 1:
                raise _RefusedArchive(f"{member.filename!r} is encrypted")
            place = folder / name
            if member.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif name.name.endswith(IMPORTABLE):
                budget.left_out.append(member.filename)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, place.open("wb") as out:
                    _copy(source, out, budget)
