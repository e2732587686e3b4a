"""The pages on time and on data hold: their files and commands run as they stand there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "cookbook" / "guides"
LINES = [
    (page, line)
    for page in ("time.md", "data.md")
    for block in re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    for line in block.splitlines()
]
SLOW = ("-m experiment=digits_mlp", "num_workers")  # processes of their own


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("page", "line"),
    [pytest.param(*row, marks=pytest.mark.exhaustive if any(word in row[1] for word in SLOW) else ()) for row in LINES],
)
def test_its_commands_run(runner, monkeypatch, page, line):
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    for name, text in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    monkeypatch.syspath_prepend(Path.cwd())
    ran = runner(*shlex.split(line)[3:], "device=cpu")
    for name in ("growing", "standard"):
        sys.modules.pop(name, None)

    assert ran.status == 0, ran.err
