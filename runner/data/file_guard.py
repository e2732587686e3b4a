"""Guard the reading of strangers' data files: no pipe hangs, no image starts a program.

Datasets are whatever a library or the user wrote, so files are looked at where Python opens them: by an audit hook,
which does something only while a sample is read. An `open` costs 2 µs more, everything else 40 ns.
"""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runner.core.errors import RunError
from runner.core.escape import make_printable

# Named as such they are meant: what the shell makes of `<(…)`, and sources that end.
_MEANT = ("/dev/fd/", "/dev/null", "/dev/pts/", "/dev/std", "/dev/tty", "/dev/random", "/dev/urandom", "/proc/")


_KINDS = {
    stat.S_IFIFO: "a named pipe, and reading it may never end",
    stat.S_IFCHR: "a device, and reading it may never end",
    stat.S_IFBLK: "a disk",
    stat.S_IFSOCK: "a socket",
}


_LOOKED_AT = 12  # frames above the start of a program: Pillow, `subprocess.check_call`, its constructor


class RefusedDataFile(RunError):
    """Refusal of a data file that is none, or that would start a program."""


class _ReadingThread(threading.local):
    depth = 0


_thread = _ReadingThread()


@contextmanager
def watch_reading() -> Iterator[None]:
    """Refuse inside to open a pipe or a device for reading, and to start a program for an image.

    Raises:
        RefusedDataFile: data asks for it.
    """
    _install()
    _thread.depth += 1
    try:
        yield
    finally:
        _thread.depth -= 1


_installed: list[int] = []


def _install() -> None:
    if not _installed:  # once a process: a hook cannot be removed, and a forked process has it
        _installed.append(1)
        sys.addaudithook(_watch)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        if _thread.depth:
            _look_at_file(*args)
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.system") and _thread.depth and _is_asked_by_pillow():
        raise RefusedDataFile(
            "an EPS file, whatever its name ends with: Pillow would start a program (Ghostscript) to read it. "
            "Convert it to PNG"
        )


def _look_at_file(path: Any, mode: str | None, flags: int | None) -> None:
    flags = flags or 0
    if not isinstance(path, str | bytes | os.PathLike) or flags & (os.O_WRONLY | os.O_NONBLOCK):
        return
    name = os.fsdecode(path)
    if name.startswith(_MEANT) or (mode or "r")[:1] in "wax":
        return
    try:
        kind = stat.S_IFMT(os.stat(name).st_mode)  # noqa: PTH116  a Path would cost as much again
    except (OSError, ValueError):  # whoever opens it says why
        return
    if kind in _KINDS:
        raise RefusedDataFile(f"{make_printable(name)} is {_KINDS[kind]}: data is read from regular files")


def _is_asked_by_pillow() -> bool:
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  the only way to the caller
    for _ in range(_LOOKED_AT):
        if frame is None:
            break
        if str(frame.f_globals.get("__name__", "")).startswith("PIL."):
            return True
        frame = frame.f_back
    return False
