"""The process of a command: where it finds code, and what it says while torch loads."""

import io
import sys

import pytest

from runner import __main__ as entry


@pytest.fixture(name="said")
def listening_terminal(monkeypatch):
    """`said("ls")`: what a terminal shows before the command begins."""

    def listen(*argv, is_terminal=True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "argv", ["runner", *argv])
        entry.say_loading()
        return stream.getvalue()

    return listen


def test_the_installed_command_finds_code_of_the_working_directory(elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "path", ["/somewhere/bin", *sys.path])
    monkeypatch.setattr(entry, "run_process", lambda: None)
    entry.run_command()
    assert (str(elsewhere), False) == (sys.path[0], "/somewhere/bin" in sys.path)


@pytest.mark.parametrize("argv", [[], ["seed=1"], ["-m", "seed=0,1"], ["check"], ["show", "model"], ["resume", "RUN"]])
def test_a_terminal_is_told_at_once_that_torch_loads(argv, said):
    assert "Reading the config, loading torch …\n" == said(*argv)


@pytest.mark.parametrize("argv", [["ls"], ["help"], ["check", "--json"], ["--help"], ["show", "model", "-h"], ["-V"]])
def test_who_waits_for_no_torch_or_reads_as_a_program_is_told_nothing(argv, said):
    assert "" == said(*argv)


def test_a_pipe_is_told_nothing(said):
    assert "" == said("check", is_terminal=False)
