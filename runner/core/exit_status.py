"""Exit statuses of the command line, of a job and of a sweep."""

import os
import signal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG = 2  # a mistake in the request: nothing was created
EXIT_DISK = getattr(os, "EX_IOERR", 74)  # a job could not write how it ended
EXIT_STOPPED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command goes on
EXIT_APART = 76  # jobs of a stack are left to train in smaller stacks or alone
EXIT_INTERRUPTED = 130  # the same by Ctrl-C


def get_stop_status(number: int) -> int:
    """Return the exit status of a process that a signal has stopped."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED
