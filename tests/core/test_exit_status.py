"""Exit statuses and stop signals: one home for both."""

import re
import signal
import threading
from pathlib import Path

import pytest

from runner.core import exit_status
from runner.core.stop_signals import STOP_SIGNALS, handle_signals

RUNNER = Path(__file__).parents[2] / "runner"


def test_no_other_file_defines_an_exit_status():
    found = [path for path in RUNNER.rglob("*.py") if re.search(r"^EXIT_\w+.* = ", path.read_text(), re.MULTILINE)]
    assert [RUNNER / "core" / "exit_status.py"] == found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_stopped_process_has_the_status_of_its_signal(number, status):
    assert status == exit_status.get_stop_status(number)


def test_signals_are_handled_and_what_was_is_restored():
    seen, before = [], [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)]
    with handle_signals(lambda number, _: seen.append(number), ignore=[signal.SIGHUP]):
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            signal.raise_signal(number)

    assert [*STOP_SIGNALS] == seen
    assert before == [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)]


def test_a_thread_gets_no_handlers():
    def install():
        with handle_signals(print):
            found.append(signal.getsignal(signal.SIGTERM))

    found, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert [before] == found
