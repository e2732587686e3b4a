"""Classification of a failed run's exception: the `cause` in `result.json`."""

import errno
import signal

from runner.data.workers import WorkerEnded
from runner.train.finite import NonFiniteError
from runner.train.oom import is_out_of_memory

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def classify_error(error: BaseException) -> str:
    """Return `non-finite`, `memory`, `disk`, `killed` (a data worker, by SIGKILL) or `exception`."""
    if isinstance(error, NonFiniteError):
        return "non-finite"
    if is_out_of_memory(error):
        return "memory"
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, OSError) and origin.errno in DISK_ERRORS:
            return "disk"
        if isinstance(origin, WorkerEnded) and origin.exit_code == -signal.SIGKILL:
            return "killed"
        origin = origin.__cause__
    return "exception"
