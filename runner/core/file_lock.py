"""Lock on an open file: `flock`, and filelock on a system that has none (Windows)."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.core import safe_io


def lock_file(handle: int, path: Path, *, wait: bool = False, shared: bool = False) -> Callable[[], None]:
    """Lock the open file of a path until it is closed and the returned function is called.

    Raises:
        BlockingIOError: another process holds it, and this one is not to wait.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_beside(path, wait=wait)
    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    return lambda: None  # closing the file unlocks it


def _lock_beside(path: Path, *, wait: bool) -> Callable[[], None]:
    """Lock `<name>.held`: on Windows nobody could read the locked file itself."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.held")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "is locked", str(path)) from None
    return lock.release


@contextmanager
def lock_waiting(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing; a disk without locks has none."""
    handle = safe_io.open_regular(path, os.O_RDWR | os.O_CREAT)
    unlock: Callable[[], None] = lambda: None  # noqa: E731
    try:
        try:
            unlock = lock_file(handle, path, wait=True)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield
    finally:
        os.close(handle)
        unlock()
