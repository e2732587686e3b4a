"""The tutorial, word for word: every command works, and prints what the page shows."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial" / "first_sweep.md").read_text()
STEPS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.partition("## 2. ")[2], re.DOTALL | re.MULTILINE)
NUMBER = r"-?\d[\d.,:e+-]*"
NOISE = re.compile(r"  within noise of the best \(p = [\d.e-]+\)")  # another processor may see a difference


def make_pattern(shown: str) -> re.Pattern[str]:
    """Make a pattern of what is shown: any number for a number, anything for `…`, any amount of space."""
    lines = []
    for line in NOISE.sub("", shown).strip().splitlines():
        words = re.sub(r"\d{4}-\d\d-\d\d_[\d-]+_[0-9a-f]+|sweep_[0-9a-f]+", "\0", line)
        parts = re.split(rf"(\0|…|\s+|{NUMBER})", words)
        known = {"\0": r"\w[\w-]*", "…": ".*"}
        masked = [
            known.get(part) or (r"\s+" if part.isspace() else NUMBER if re.fullmatch(NUMBER, part) else re.escape(part))
            for part in parts
        ]
        lines.append(r"(?:.*\n)*?" if line == "…" else "".join(masked) + r"\s*?\n")
    return re.compile("".join(lines))


def expand(word: str) -> list[str]:
    """Expand a word as a shell does."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def test_a_pattern_takes_other_numbers_and_no_other_words():
    pattern = make_pattern("…\nval/accuracy   0.7033\noutputs/a/sweep_0a1b")
    texts = ["x\nval/accuracy  0.8\noutputs/a/sweep_ffff\n", "val/loss  0.8\noutputs/a/sweep_ffff\n"]

    assert [bool(pattern.fullmatch(text)) for text in texts] == [True, False]


@pytest.mark.exhaustive  # a minute: twenty runs
@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs the extra `report`")
def test_every_command_prints_what_is_shown(runner, monkeypatch, tmp_path):
    said, wrong = "", []
    for language, text in STEPS:
        if language == "text":
            if not make_pattern(text).fullmatch(NOISE.sub("", said).rstrip() + "\n"):
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
