"""Lines for programs: whole on a pipe, a file and a full disk, whoever reads, and alone on standard output."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from runner.core.event_stream import DescriptorOutput, claim_stdout, emit, end, format_line, print_json, record_outcome


def read_all(reader):
    """Read a pipe to its end in a thread; a function that returns the lines."""
    read = []
    thread = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(reader, 1 << 16), b"")))
    thread.start()

    def get():
        thread.join()
        return b"".join(read).decode().splitlines()

    return get


def test_a_long_line_waits_until_the_pipe_can_hold_all_of_it():
    """Until the reader has emptied the pipe not one byte of a line of 200,000 bytes is in it, then all of it is."""
    reader, writer = os.pipe()
    output = DescriptorOutput(writer)
    output.write_line("first")
    thread = threading.Thread(target=output.write_line, args=("x" * 200_000,))
    thread.start()
    time.sleep(0.05)
    assert os.read(reader, 1 << 20) == b"first\n"
    thread.join()
    assert len(os.read(reader, 1 << 20)) == 200_001
    os.close(reader)
    os.close(writer)


def test_nobody_who_reads_is_no_error():
    """A short and a long line to a pipe without a reader return, and so does the next."""
    reader, writer = os.pipe()
    os.close(reader)
    output = DescriptorOutput(writer)
    for line in ("short", "x" * 100_000, "again"):
        output.write_line(line)
    os.close(writer)


def test_a_non_blocking_pipe_gets_every_line():
    """Where whoever started the process made its output non-blocking a full pipe is waited for."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    get = read_all(reader)
    output = DescriptorOutput(writer)
    for number in range(3000):
        output.write_line(f"{number} {'x' * 100}")
    os.close(writer)
    assert [int(line.split()[0]) for line in get()] == list(range(3000))
    os.close(reader)


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """A line that a disk takes half of is cut off again, and no other follows it."""
    file = os.open(tmp_path / "events.jsonl", os.O_WRONLY | os.O_CREAT)
    output = DescriptorOutput(file)
    output.write_line("whole")
    write = os.write

    def fill(descriptor, data):
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", fill)
    output.write_line("x" * 35)
    monkeypatch.setattr(os, "write", write)
    output.write_line("after")
    os.close(file)
    assert (tmp_path / "events.jsonl").read_text() == "whole\n"


def test_a_descriptor_that_became_another_file_is_left_alone(tmp_path):
    """Code that closes every descriptor and opens a file of its own finds no line of ours in it."""
    descriptor = os.open(tmp_path / "events.jsonl", os.O_WRONLY | os.O_CREAT)
    output = DescriptorOutput(descriptor)
    os.close(descriptor)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    assert other == descriptor
    output.write_line("ours")
    os.close(other)
    assert (tmp_path / "other").read_text() == ""


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"loss": float("nan"), "most": float("-inf")}, '{"loss": "NaN", "most": "-Infinity"}'),
        ({"text": "a\nb\u2028\x1b"}, None),
        ({"path": os, "set": {1}}, None),
    ],
)
def test_a_line_is_strict_json(value, line):
    """NaN is a text, a line break within a text is escaped, and what is not plain becomes its text."""
    formatted = format_line(value)
    assert len(formatted.splitlines()) == 1
    assert line in (None, formatted)
    assert json.loads(formatted, parse_constant=pytest.fail).keys() == value.keys()


def capture(events, tell):
    """Call `tell` while standard output is claimed; what was on it, and what was on standard error."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), claim_stdout(events=events):
        tell()
    return [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def test_prints_are_kept_from_the_lines():
    """A print goes to standard error, an answer to standard output."""
    lines, err = capture(False, lambda: (print("hello"), print_json({"answer": 1}), emit("log", step=1)))  # noqa: T201
    assert (lines, err) == ([{"answer": 1}], "hello\n")


def test_the_end_comes_once_and_last():
    """The last event has what was recorded and the exit status; no event follows it."""

    def tell():
        emit("log", step=1)
        record_outcome({"run": "outputs/a", "status": "completed", "objective": 0.5})
        end(0)
        emit("log", step=2)
        end(1)

    lines, _ = capture(True, tell)
    assert [line.pop("time") > 1e9 for line in lines] == [True, True]
    assert lines == [
        {"event": "log", "step": 1},
        {"event": "ended", "exit": 0, "run": "outputs/a", "status": "completed", "objective": 0.5},
    ]


@pytest.mark.parametrize(
    ("status", "word"), [(0, "completed"), (1, "failed"), (2, "wrong"), (75, "interrupted"), (130, "interrupted")]
)
def test_the_end_has_a_status_in_words(status, word):
    """Where nothing was recorded the exit status decides."""
    lines, _ = capture(True, lambda: end(status))
    assert (lines[-1]["exit"], lines[-1]["status"]) == (status, word)


def test_outside_of_a_claim_nothing_is_told(capsys):
    """Without a program that listens an event costs nothing and an answer is a plain print."""
    emit("log", step=1)
    end(0)
    print_json([1])
    assert capsys.readouterr().out == "[1]\n"


LIBRARY = """
import ctypes, os, subprocess, sys, warnings, atexit
from runner.core.event_stream import claim_stdout, emit, end
atexit.register(print, "atexit")
with claim_stdout(events=True):
    print("python")
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "child"])
    libc = ctypes.CDLL(None)
    libc.printf(b"C level\\n")
    warnings.warn("careful")
    sys.__stdout__.write("first stdout\\n")
    open("/dev/stdout", "w").write("device\\n") if sys.platform == "linux" else None
    if os.fork() == 0:
        emit("of a child")
        os._exit(0)
    os.wait()
    end(0)
libc.printf(b"late\\n")
"""


def test_standard_output_has_the_lines_alone():
    """Python, a descriptor, a child process, C, `/dev/stdout` and the interpreter's end print to standard error."""
    code = textwrap.dedent(LIBRARY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["warning", "ended"]
    printed = ("python", "descriptor", "child", "C level", "first stdout", "device", "atexit", "late")
    assert [word for word in printed if word not in done.stderr] == []
