"""Ends all processes that have a mark in their environment, once the other end of standard input is closed. Linux.

What Ray starts outlives a driver that is killed: two of its agents by a minute, and for some seconds its workers.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path


def main(mark: str) -> None:
    """Wait, then kill until nothing is left."""
    sys.stdin.buffer.read()
    while found := marked(mark.encode()):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def marked(mark: bytes) -> list[int]:
    """The processes whose environment says so; what has ended, and only waits for its parent, has none."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # another user's, or gone by now
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
