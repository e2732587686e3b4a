"""Stop signals: the signals that ask a process to save and end, and the installation of their handler."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runner.core import event_stream

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


_hosts: list[object] = []  # a notebook's or a script's calls under way: the process is theirs


@contextmanager
def serve_host() -> Iterator[None]:
    """Let a handler that would leave the process at once raise KeyboardInterrupt in its place."""
    _hosts.append(object())
    try:
        yield
    finally:
        _hosts.pop()


def leave_at_once(status: int, number: int = signal.SIGINT) -> None:
    """End the process at a signal, such as a second Ctrl-C.

    Raises:
        KeyboardInterrupt: the process is a notebook's or a script's, which goes on.
    """
    if _hosts:
        raise KeyboardInterrupt
    event_stream.end(status, status="interrupted", signal=signal.Signals(number).name)
    os._exit(status)


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], Any],
    numbers: Sequence[int] = STOP_SIGNALS,
    *,
    ignore: Sequence[int] = (),
) -> Iterator[None]:
    """Handle signals, ignore others and restore both at the end; do nothing in a thread.

    What a signal means is the handler's own: a run ends after its step, a sweep lets its jobs save first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Mapping[int, Any] = {
        **{number: signal.signal(number, handler) for number in numbers},
        **{number: signal.signal(number, signal.SIG_IGN) for number in ignore},
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
