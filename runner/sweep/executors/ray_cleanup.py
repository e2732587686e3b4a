"""Cleanup of a Ray session: kills its processes once its driver closes the pipe. Linux only.

What Ray starts outlives a driver that is killed: two of its agents by a minute, and for some seconds its workers.
"""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path


def main(driver: str, began: str) -> None:
    """Wait for the driver to end, then kill the session's processes until none is left.

    Args:
        driver: the process that starts Ray: its number is in the name of the session.
        began: the least name that its session can have, as Ray names them after the clock.
    """
    sys.stdin.buffer.read()
    clean = 0
    while clean < 2:  # one that was just being forked is seen by the second look
        found = find_session_processes(driver, began)
        clean = 0 if found else clean + 1
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def find_session_processes(driver: str, began: str) -> list[int]:
    """Find the processes that hold a file of the session open, without the driver."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == driver:
            continue
        with contextlib.suppress(OSError):  # another user's, or gone by now
            names = [str(file.readlink()) for file in (process / "fd").iterdir()]
            sessions = {name[1] for name in map(re.compile(r".*/(session_[\d_-]+)/").match, names) if name}
            if any(name.endswith(f"_{driver}") and name >= began for name in sessions):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
