"""The page on what a step returns holds: its example runs, and each of its commands ends well."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support import write_files

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "outcomes.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [LINES[0], *(pytest.param(line, marks=pytest.mark.exhaustive) for line in LINES[1:])])
def test_command(line, runner, tmp_path, monkeypatch):
    write_files(tmp_path, FILES)
    monkeypatch.syspath_prepend(tmp_path)
    ran = runner(*shlex.split(line)[3:], "device=cpu", "log=quiet")
    sys.modules.pop("faces", None)

    assert ran.status == 0, ran.err
    assert ran.result["metrics"]["val/rmse"] < 1
    assert (ran.folder / "artifacts" / "draw" / "ages").is_dir()
