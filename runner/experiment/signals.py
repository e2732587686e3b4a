"""Stop signals: ask a run to stop after the step under way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from runner.core.exit_status import EXIT_INTERRUPTED
from runner.train.state import StopRequest

ECHO_SECONDS = 3.0  # a terminal's Ctrl-C reaches every process, and torchrun then sends it to each again


@contextmanager
def handle_stop_signals(stop: StopRequest, *, silent: bool = False) -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and Ctrl-C stop after the step under way; a second Ctrl-C exits at once."""
    if threading.current_thread() is not threading.main_thread():
        with stop:
            yield
        return

    asked_at = 0.0

    def handler(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if stop.shared and stop.came and time.monotonic() - asked_at < ECHO_SECONDS:
            return
        if number == signal.SIGINT and stop.came == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        asked_at = time.monotonic()
        stop.on_signal(number)
        if silent:
            return
        again = "; Ctrl-C again leaves at once, with what is saved" if number == signal.SIGINT else ""
        said = f"\n{signal.Signals(number).name}: stopping after this step{again}\n"
        with suppress(OSError):
            os.write(2, said.encode())  # `print` may be what was interrupted

    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, handler) for number in numbers}
    if hasattr(signal, "SIGHUP"):  # the terminal was closed, which is no wish to stop
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop:
            yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
