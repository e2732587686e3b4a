"""Lock on a folder, held by the operating system until its process ends."""

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import quote_shell_word
from runner.core.file_lock import lock_file
from runner.core.files import remove

_HELD: set[int] = set()


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


MOST_HEARTBEAT = 1_000  # bytes: a process and a host


BEAT_SECONDS, DEAD_SECONDS = 5.0, 30.0  # without locks: between two signs of life, and without any


def _close_in_child() -> None:
    # A forked loader worker shares the open file, and would hold the lock for seconds after its parent was killed.
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """Exclusive lock on a run directory, held until `release` or the end of the process.

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
            folder = quote_shell_word(str(run_dir))
            remedy = f"a copy can go on: `cp -r {folder} COPY`, `python -m runner resume COPY`"
            raise RunError(f"{run_dir} cannot be written ({error.strerror}): {remedy}") from error
        self._unlock: Callable[[], None] = lambda: None
        self._stopped: threading.Event | None = None  # set to end the signs of life, where there are some
        try:
            self._unlock = _lock_patiently(self._handle, run_dir / ".lock")
        except BlockingIOError:
            holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._handle)
            raise ConfigError([_make_in_progress_mistake(run_dir, holder)]) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(self._handle)
                raise
            self._take_heartbeat(run_dir)
        _HELD.add(self._handle)
        os.truncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)  # for the message

    def release(self) -> None:
        """Release the lock; a no-op when repeated or in a forked child, which never held it."""
        if self._handle in _HELD:
            _HELD.remove(self._handle)
            os.close(self._handle)
            self._unlock()
            if self._stopped is not None:
                self._stopped.set()
                remove(self._heartbeat)

    def _take_heartbeat(self, run_dir: Path) -> None:
        self._heartbeat = run_dir / ".heartbeat"
        os.utime(self._handle)  # the clock of the file system, not of this machine
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(self._handle).st_mtime - self._heartbeat.stat().st_mtime < DEAD_SECONDS:
                os.close(self._handle)
                said = safe_io.read_bytes(self._heartbeat, MOST_HEARTBEAT).decode(errors="replace")
                raise ConfigError([_make_in_progress_mistake(run_dir, said or "another process")])
            # Of several that find it dead one alone can rename it.
            self._heartbeat.rename(self._heartbeat.with_name(f".heartbeat.{os.urandom(4).hex()}.tmp"))
        try:
            with self._heartbeat.open("x") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
        except FileExistsError:
            os.close(self._handle)
            raise ConfigError([_make_in_progress_mistake(run_dir, "another process")]) from None
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


def _lock_patiently(handle: int, path: Path) -> Callable[[], None]:
    """Lock a file, or raise BlockingIOError; `ls` may look at a lock for an instant, which is waited for."""
    for wait in (0.005, 0.02, None):
        try:
            return lock_file(handle, path)
        except BlockingIOError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError(path)


def _make_in_progress_mistake(run_dir: Path, holder: str) -> Mistake:
    remedy = f"{holder} is at work on it: wait for it, or stop it"
    return Mistake("run", "must not be in progress", str(run_dir), remedy=remedy, kind="file")
