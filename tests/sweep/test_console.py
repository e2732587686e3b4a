"""What a sweep says, and that it does without anybody who listens."""

import io
import os
from types import SimpleNamespace

from runner.sweep.console import Console
from runner.sweep.interfaces import Proposal
from runner.sweep.jobs import PlannedJob
from runner.sweep.reconcile import Decisions
from runner.sweep.summary import describe_start


def test_a_console_that_is_gone_is_written_to_in_silence():
    """Also when the stream is closed, with what is still in its buffer."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        console = Console(stream)
        for _ in range(3):
            console.say("a line")


def test_no_console_at_all_is_one_that_nobody_reads():
    console = Console(None)
    console.say("a line")

    assert not console.isatty()


def test_a_console_of_few_letters_gets_the_others_spelt_out():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(stream).say("0.5 ± 0.1")

    assert stream.buffer.getvalue() == b"0.5 \\xb1 0.1\n"


def test_points_that_are_given_twice_are_told_in_few_lines():
    """Values of a key without effect on the result: every point is the same job."""
    asked = [PlannedJob(Proposal((f"log.every={n}st",)), None, None, "a", {}) for n in range(100)]
    plan = SimpleNamespace(frozen=SimpleNamespace(complete=True))
    lines = list(describe_start(plan, [], asked, Decisions(), SimpleNamespace(known=False, total=None)))

    assert lines[0] == "log.every=1st is the same job as log.every=0st: it runs once"
    assert lines[10:] == ["and 89 more points are jobs that are listed already"]
