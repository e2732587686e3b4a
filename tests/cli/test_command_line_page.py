"""The page of the command line: its commands in their order, and the outputs that it shows."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def do(line, run):
    """Do a line of the page; return what is wrong with it."""
    command, _, comment = line.partition("  #")
    words = shlex.split(command)
    if words[0] == "cd":
        os.chdir(words[1])
        sys.path.insert(0, str(Path.cwd()))
        return ""
    status = re.search(r"exit status (\d)", comment)
    ran = run(*words[3:])
    return "" if ran.status == (int(status[1]) if status else 0) else f"exit status {ran.status}: {ran.err}"


@pytest.mark.exhaustive
def test_every_command_works_in_its_order(runner):
    assert {} == {line: wrong for line in LINES if (wrong := do(line, runner))}


def test_the_mistakes_that_it_shows_are_those_of_the_command(runner):
    ran = runner("evaluate", "--jsn", "--weights", "emma")
    assert f"```text\n{ran.err}```" in PAGE


@pytest.mark.exhaustive
def test_the_table_that_it_shows_is_that_of_the_command(runner):
    shown = runner("show", "model", "experiment=imagenet_resnet50", "--depth", "1").out
    rows = PAGE.partition("```text\nlayer ")[2].partition("\n…")[0].splitlines()
    assert [f"layer {rows[0]}", *rows[1:]] == shown.splitlines()[: len(rows)]
