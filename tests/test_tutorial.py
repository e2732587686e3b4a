"""The tutorial, word for word: every command works, and prints what the page shows."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support import is_shown

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial" / "first_sweep.md").read_text()
STEPS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.partition("## 2. ")[2], re.DOTALL | re.MULTILINE)


def expand(word: str) -> list[str]:
    """Expand a word as a shell does."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def test_what_is_shown_may_have_other_numbers_and_no_other_words():
    shown = "…\nval/accuracy   0.7033\noutputs/a/sweep_0a1b"
    texts = ["x\nval/accuracy  0.8\noutputs/a/sweep_ffff\n", "val/loss  0.8\noutputs/a/sweep_ffff\n"]

    assert [is_shown(shown, text) for text in texts] == [True, False]


@pytest.mark.exhaustive  # a minute: twenty runs
@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs the extra `report`")
def test_every_command_prints_what_is_shown(runner, monkeypatch, tmp_path):
    said, wrong = "", []
    for language, text in STEPS:
        if language == "text":
            if not is_shown(text, said):
                wrong.append((text, said))
        elif language != "bash":
            name, _, content = text.partition("\n")
            Path(name.removeprefix("# ")).write_text(content)
        else:
            said = ""
            for line in text.splitlines():
                command, _, comment = line.partition(" #")
                words = [path for word in shlex.split(command) for path in expand(word)]
                if words[0] == "cd":
                    monkeypatch.chdir(words[1])
                    monkeypatch.syspath_prepend(Path.cwd())
                elif words[:3] != ["python", "-m", "runner"]:
                    said += subprocess.run(words, check=True, capture_output=True, text=True).stdout
                else:
                    ran = runner(*words[3:])
                    said += ran.out + ran.err
                    wrong += [(line, ran.err)] * (ran.status != (2 if "status 2" in comment else 0))

    assert not wrong, "\n".join(f"{shown}\n--- but is ---\n{printed}" for shown, printed in wrong)
