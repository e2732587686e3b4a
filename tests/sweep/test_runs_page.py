"""Commands of docs/cookbook/guides/runs.md, in their order; and its tables, beside what is printed."""

import json
import re
import shlex
from pathlib import Path

import pytest

from runner.sweep.runs.filters import STATUSES
from runner.sweep.runs.reading import COLUMNS
from tests.support import make_result, write_run

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "runs.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.exhaustive
def test_the_commands_do_what_the_page_says(runner):
    for line in LINES:
        command, _, comment = line.partition("  #")
        status = re.search(r"exit status (\d)", comment)
        ran = runner(*shlex.split(command)[3:])
        assert ran.status == (int(status[1]) if status else 0), (line, ran.err, ran.out)


def test_every_column_and_status_is_on_the_page():
    assert [name for name in (*COLUMNS, *STATUSES, "size") if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize(
    ("verb", "argv"),
    [
        ("ls", ["ls"]),
        ("ls --sql", ["ls", "--sql", "select 1"]),
        ("compare", ["compare", "seed == 0", "seed == 1"]),
        ("diff", ["diff", "outputs/a", "outputs/b"]),
        ("rm", ["rm", "seed == 0"]),
        ("archive", ["archive", "seed == 0"]),
    ],
)
def test_the_keys_of_the_answer_are_those_of_the_page(elsewhere, runner, verb, argv):
    for seed, name in enumerate("ab"):
        write_run(f"outputs/{name}", {"seed": seed}, make_result(0.5))
    printed = json.loads(runner(*argv, "--json").out)
    (row,) = re.findall(rf"^\| `{verb}` \| (.*) \|$", PAGE, re.MULTILINE)
    outer = re.sub(r"\([^()]*\)", "", re.sub(r"\([^()]*\)", "", row)).partition(", and `a`, `b`:")
    told = re.findall(r"`(\w+)`", outer[0]) + (["a", "b"] if outer[1] else [])
    assert sorted(told) == sorted(printed)
