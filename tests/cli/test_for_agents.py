"""The page for agents: a program runs its commands in their order, and reads the keys that it names."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from runner.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "for_agents.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
# Whatever builds no model: the rest is tried in its order by `make test-all`.
QUICK = re.compile(r"cd |python -m runner (--version|new|help|check \S+ optimizer|why)")


class Agent:
    """A program that follows the page: it knows RUN, OTHER and SWEEP by the last lines that it has read."""

    def __init__(self, run):
        self.run, self.known = run, {}

    def follow(self, line):
        """Do a line of the page; return what is wrong with its answer."""
        command, _, comment = line.partition("  #")
        words = [self.known.get(word, word) for word in shlex.split(command)]
        if words[0] == "cd":
            os.chdir(words[1])
            sys.path.insert(0, str(Path.cwd()))
            return []
        ran = self.run(*words[3:])
        lines = [json.loads(text) for text in ran.out.splitlines()]
        if "sweep" in lines[-1] and "jobs" in lines[-1]:
            self.known["SWEEP"] = lines[-1]["sweep"]
        elif "run" in lines[-1]:
            self.known.setdefault("OTHER" if "RUN" in self.known else "RUN", lines[-1]["run"])
        status = re.search(r"exit status (\d)", comment)
        wrong = [] if ran.status == (int(status[1]) if status else 0) else [f"exit status {ran.status}: {ran.err}"]
        keys = re.search(r"gives ([\w, ]+)", comment)
        return wrong + [key for key in (keys[1].split(", ") if keys else ()) if key not in lines[-1]]


@pytest.fixture(name="agent")
def following_agent(runner):
    """An agent in an empty folder."""
    yield Agent(runner)
    for name in [name for name in sys.modules if name.partition(".")[0] == "components"]:
        del sys.modules[name]


def test_what_an_agent_may_ask_before_it_trains(agent):
    lines = [line for line in LINES if QUICK.match(line)]
    assert len(lines) > 5
    assert {} == {line: wrong for line in lines if (wrong := agent.follow(line))}


@pytest.mark.exhaustive
def test_an_agent_follows_the_whole_page(agent):
    assert {} == {line: wrong for line in LINES if (wrong := agent.follow(line))}


def test_the_page_is_printed_and_short(runner):
    assert PAGE == runner("help", "agents").out
    assert PAGE == json.loads(runner("help", "agents", "--json").out)["page"]
    assert len(PAGE.splitlines()) <= 120


def test_the_page_names_every_verb_and_every_command_answers_in_json():
    assert [] == [verb for verb in VERBS if not re.search(rf"\b{verb}\b", PAGE)]
    assert [] == [line for line in LINES if line.startswith("python") and "--json" not in line]
