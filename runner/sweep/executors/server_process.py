"""Process of the fork server, started early, and ended without a trace where nobody needs it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from runner.core.paths import BOOTSTRAP, encode_child_path

BOOT = (
    f"{BOOTSTRAP}from runner.sweep.executors.native_libraries import start_loading; libraries = start_loading(); "
    "from runner.sweep.executors.fork_server import main; main(libraries)"
)

PIPE_BYTES = 1 << 20  # 100 jobs have 0.8 MB
ELSEWHERE = ("hydra/launcher", "hydra/sweeper")  # jobs of these do not run in local slots


def start_server() -> "subprocess.Popen[bytes]":
    """Start the process of a fork server, which imports torch while it waits for its first order."""
    console = copy_console()  # for what jobs print while they are examined
    try:
        server = subprocess.Popen(  # noqa: S603  ours
            [sys.executable, "-c", BOOT, encode_child_path(), str(console)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(console,),
            start_new_session=True,  # Ctrl-C reaches the controller alone
        )
    finally:
        os.close(console)
    assert server.stdin is not None
    widen_pipe(server.stdin.fileno())
    return server


def widen_pipe(handle: int) -> None:
    """Enlarge a pipe, so that its reader may be importing torch while it takes the jobs to be examined."""
    import fcntl  # where there is no fork there is none

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def copy_console() -> int:
    """Copy the handle of the standard output, beyond those of the standard streams, if it is open."""
    import fcntl  # where there is no fork there is none

    try:
        return fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            return fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(null)


@contextlib.contextmanager
def start_early(overrides: Sequence[str]) -> "Iterator[subprocess.Popen[bytes] | None]":
    """Start a server for a sweep to be read, unless its jobs run elsewhere or torch is here."""
    named = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "torch" in sys.modules or named & {*ELSEWHERE}:
        yield None
        return
    server = start_server()
    try:
        yield server
    finally:
        if server.poll() is None:  # else its executor has ended it
            server.kill()
            server.wait()
        for stream in (server.stdin, server.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
