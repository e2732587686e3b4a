"""Download files: SHA-256 verified, resumed after a broken connection, complete or absent."""

import errno
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from runner.core.archive import Limits, unpack
from runner.core.errors import RunError
from runner.core.file_lock import lock_file
from runner.core.files import remove, sync_folder
from runner.core.safe_io import open_read, open_regular

ATTEMPTS = 5  # in all, over all addresses; each goes on from the bytes that the others brought


PAUSE = 1.0  # seconds before the second attempt, doubled before each further one


SILENCE = 60  # seconds without a byte before a connection is given up


UNSAID_LIMIT = 100 * 2**30  # bytes of a file whose size nobody has said


CHUNK = 2**20


LINE_SECONDS = 5.0  # between two lines about a download, where no terminal shows a bar


PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


class _RefusedDownload(Exception):
    """Refusal of an address that need not be tried again; the message gives the reason."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirect handler that follows to http and https, and from https to https alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: object, code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlparse(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise _RefusedDownload(f"it redirects from {req.type} to {scheme}: {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _make_opener() -> urllib.request.OpenerDirector:
    """Build a URL opener for http and https alone; urllib's own also opens files and ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def fetch(urls: str | Sequence[str], file: Path, sha256: str, *, size: int | None = None) -> bool:
    """Ensure that `file` exists with this content; return whether it was downloaded.

    What came before a connection broke is kept in `.<name>.part` and gone on from, in this call and in the next. Two
    processes that want the same file download it once.

    Args:
        urls: http or https; of several each is a mirror of the others.
        file: where to; it is never written over.
        sha256: of the content, hexadecimal, or how it begins; empty where nobody knows it.
        size: bytes; more are not taken.

    Raises:
        RunError: none of the addresses gives that content; or the file is there with another one.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    if not file.exists():
        if file.is_symlink():
            where = file.readlink()
            raise RunError(f"{file} is a link to {where}, which is not there: nothing is downloaded through it")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _lock_part(file) as part:
                if part is not None:
                    if not sha256:
                        part.truncate(0)  # nothing would tell whether its beginning is of the same file
                    _fill(part, file, urls, sha256, size)
                    return True
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunError(f"{_get_part_path(file)} is a link: remove it, nothing is written through it") from error
            raise RunError(f"{file} cannot be written: {error.strerror or error}") from error
    try:
        actual = compute_sha256(file)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}") from error
    if not actual.startswith(sha256):
        raise RunError(
            f"{file} has the SHA-256 {actual}, but {sha256} is asked for: move it away to have it downloaded"
        )
    return False


def provide(
    urls: str | Sequence[str],
    file: Path,
    sha256: str,
    *,
    size: int | None = None,
    unpacked: Path | None = None,
    limits: Limits | None = None,
) -> None:
    """Ensure that a file, or its unpacked form `unpacked`, exists; download it only if missing.

    Raises:
        RunError: see `fetch` and `unpack`.
    """
    if unpacked is not None and unpacked.exists():
        return
    fetch(urls, file, sha256, size=size)
    if unpacked is not None:
        _say(f"unpacking {file} to {unpacked}")
        left_out = unpack(file, unpacked, limits or Limits())
        if left_out:
            shown = ", ".join(left_out[:3]) + (", …" if left_out[3:] else "")
            _say(f"left out {len(left_out):,} files that Python could import: {shown}")


def compute_sha256(file: Path) -> str:
    """Compute the SHA-256 of a regular file, hexadecimal. Raises OSError."""
    with open_read(file.resolve()) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _get_part_path(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


@contextmanager
def _lock_part(file: Path) -> Iterator[BinaryIO | None]:
    """Lock `.<name>.part` for this process; yield None where another one completed the file."""
    path = _get_part_path(file)
    while True:
        with os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b") as part, ExitStack() as held:
            try:
                held.callback(lock_file(part.fileno(), path))
            except BlockingIOError:
                _say(f"waiting for another process that downloads {file}")
                held.callback(lock_file(part.fileno(), path, wait=True))
            except OSError:  # a file system without locks: the rename at the end is atomic there too
                pass
            if not _is(path, part):  # it was renamed or removed while this process waited
                if file.exists():
                    yield None
                    return
                continue
            if file.exists():
                remove(path)
                yield None
                return
            try:
                yield part
            finally:
                if _is(path, part) and not path.stat().st_size:
                    remove(path)
            return


def _is(path: Path, opened: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def _fill(part: BinaryIO, file: Path, urls: Sequence[str], sha256: str, size: int | None) -> None:
    """Complete the part, verify it, and rename it to `file`."""
    said: list[str] = []
    left = list(urls)
    if _is_whole(part, sha256):  # all there, but not renamed any more
        return _commit(part, file)
    for attempt in range(ATTEMPTS):
        if not left:
            break
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        url = left[attempt % len(left)]
        began = part.seek(0, os.SEEK_END)
        try:
            _receive(url, part, file.parent, size)
            if _is_whole(part, sha256):
                return _commit(part, file)
            reason = f"has the SHA-256 {_compute_part_sha256(part)}, but {sha256} is asked for: it is not kept"
            part.truncate(0)
            if not began:  # else the beginning may be another file's, and it is tried once more from the start
                left.remove(url)
        except _RefusedDownload as error:
            reason = str(error)
            left.remove(url)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                part.truncate(0)
                raise
            reason = f"fails: {str(getattr(error, 'reason', '')) or str(error) or type(error).__name__}"
        said.append(f"{url} {reason}")
    kept = part.seek(0, os.SEEK_END)
    on = f" The {kept:,} bytes that came are kept, and the next attempt goes on from there." if kept else ""
    raise RunError(
        f"{file} cannot be downloaded: {'; '.join(dict.fromkeys(said))}.{on} "
        f"Where this machine cannot reach it, bring it from another one (SHA-256 {sha256})"
    )


def _compute_part_sha256(part: BinaryIO) -> str:
    part.seek(0)
    return hashlib.file_digest(part, "sha256").hexdigest()  # type: ignore[arg-type]


def _is_whole(part: BinaryIO, sha256: str) -> bool:
    part.flush()
    return part.seek(0, os.SEEK_END) > 0 and _compute_part_sha256(part).startswith(sha256)


def _commit(part: BinaryIO, file: Path) -> None:
    os.fsync(part.fileno())
    _get_part_path(file).replace(file)
    sync_folder(file.parent)


def _receive(url: str, part: BinaryIO, folder: Path, size: int | None) -> None:
    """Append the missing rest of the file at `url` to the part.

    Raises:
        _RefusedDownload: there is nothing to be had, or too much.
        OSError: the connection broke; what came is in the part.
    """
    if urllib.parse.urlparse(url).scheme not in ("http", "https"):
        raise _RefusedDownload("is neither http nor https")
    there = part.seek(0, os.SEEK_END)
    headers = {"User-Agent": "yaml-experiment-runner", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    with _open_url(url, headers) as response:
        given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != HTTPStatus.PARTIAL_CONTENT or given is None or int(given[1]) != there:
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                part.truncate(0)
                raise ConnectionError("the server goes on from another place than the one asked for")
            part.truncate(0)  # a server that gives all of it again
            there = part.seek(0)
        length = response.headers.get("Content-Length")
        total = None if length is None else there + int(length)
        limit = UNSAID_LIMIT if size is None else size
        if total is not None and total > limit:
            part.truncate(0)
            raise _RefusedDownload(f"has {total:,} bytes, and at most {limit:,} are taken")
        if total is not None and total - there > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, f"no room for {total - there:,} bytes")
        with show_progress(f"downloading {url}", total, there) as progress:
            while (total is None or there < total) and (chunk := response.read1(CHUNK)):
                there += len(chunk)
                if there > limit:
                    part.truncate(0)
                    raise _RefusedDownload(f"gives more than the {limit:,} bytes that are taken")
                part.write(chunk)
                progress(there)
    if there < (total or size or 0):
        raise ConnectionError(f"it broke off after {there:,} of {total or size:,} bytes")


def _open_url(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the opener knows http and https alone
    try:
        response: http.client.HTTPResponse = _make_opener().open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"answers {error.code} {error.reason}"
        if "Range" in headers and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open_url(url, {name: value for name, value in headers.items() if name != "Range"})
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in PASSING:
            raise _RefusedDownload(said) from error
        raise ConnectionError(said) from error
    return response


@contextmanager
def show_progress(what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a download's progress in bytes: a bar in a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done)
            yield lambda count: bar.update(task, completed=count)
        return
    said = time.monotonic()
    _say(what + (f" ({_format_megabytes(total)})" if total else ""))

    def line(count: int) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_SECONDS:
            said = time.monotonic()
            _say(f"{what}: {_format_megabytes(count)}" + (f" of {_format_megabytes(total)}" if total else ""))

    yield line


def _format_megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
