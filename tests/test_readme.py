"""Every command of the README does what it says; its tree names every file."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import read_result

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m runner")
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which `RUN` stands for."""
    from runner.__main__ import main

    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train.duration=1ep"]) == 0
    return next((folder / "outputs" / "digits_cnn").iterdir())


@pytest.fixture(scope="module")
def sweep_folder(run_folder: Path) -> Path:
    """A sweep with that run as its only job, which `SWEEP` stands for."""
    from runner.sweep.ledger import JobRecord, Ledger

    folder = run_folder.parent / "sweep"
    folder.mkdir()
    objective = read_result(run_folder)["objective"]
    with Ledger(folder) as ledger:
        ledger.set(name="digits_cnn", objective="val/accuracy", mode="max", command=["-m", "train.duration=1ep"])
        shutil.copytree(run_folder, folder / "0_0000", symlinks=True)
        ledger.add([JobRecord("0", 0, ["train.duration=1ep"], "0_0000", status="completed", objective=objective)])
    return folder


def is_long(line: str) -> bool:
    """Whether it trains a whole sweep, which takes 7 to 9 s; the first two are tried every day."""
    sweeps = [command for command in COMMANDS if "runner -m " in command.partition("#")[0]]
    return line in sweeps[2:]


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.exhaustive] if is_long(line) else []) for line in COMMANDS]
)
def test_command(line: str, runner: Callable[..., Any], run_folder: Path, sweep_folder: Path) -> None:
    """The command ends with status 0, or with the one that its comment gives."""
    command, _, comment = line.partition("#")
    code = re.search(r"exit status (\d)", comment)
    for name, text in re.findall(r"```(?:python|yaml|csv)\n# (\S+)\n(.*?)```", README, re.DOTALL):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    folders = {"RUN": str(run_folder), "SWEEP": str(sweep_folder)}
    ran = runner(*[folders.get(word, word) for word in shlex.split(command)[3:]])

    assert ran.status == (int(code[1]) if code else 0), ran.err
