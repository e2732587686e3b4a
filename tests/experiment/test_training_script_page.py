"""The page on training scripts holds: its example runs as it stands there."""

import re
import sys
from pathlib import Path

from tests.support import read_result

PAGE = Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "training_scripts.md"


def test_its_example_learns(runner, monkeypatch):
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    monkeypatch.syspath_prepend(Path.cwd())
    ran = runner("experiment=text", "device=cpu", "log=quiet")
    sys.modules.pop("text", None)

    assert [name for name, _ in files] == ["text.py", "conf/experiment/text.yaml"]
    assert ran.status == 0, ran.err
    assert read_result(ran.folder)["steps"] == 150
    assert read_result(ran.folder)["metrics"]["val/accuracy"] > 0.7
