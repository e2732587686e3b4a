"""Stop signals: ask a run to stop after the step under way."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from runner.core.exit_status import EXIT_INTERRUPTED
from runner.core.stop_signals import handle_signals, leave_at_once
from runner.train.state import StopRequest

ECHO_SECONDS = 3.0  # a terminal's Ctrl-C reaches every process, and torchrun then sends it to each again


@contextmanager
def handle_stop_signals(stop: StopRequest, *, silent: bool = False) -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C stop after the step under way; a second Ctrl-C exits at once."""
    asked_at = 0.0

    def handler(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if stop.shared and stop.came and time.monotonic() - asked_at < ECHO_SECONDS:
            return
        if number == signal.SIGINT and stop.came == signal.SIGINT:
            leave_at_once(EXIT_INTERRUPTED)
        asked_at = time.monotonic()
        stop.on_signal(number)
        if silent:
            return
        again = "; Ctrl-C again leaves at once, with what is saved" if number == signal.SIGINT else ""
        said = f"\n{signal.Signals(number).name}: stopping after this step{again}\n"
        with suppress(OSError):
            os.write(2, said.encode())  # `print` may be what was interrupted

    terminal = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # it was closed, which is no wish to stop
    with handle_signals(handler, ignore=terminal), stop:
        yield
