"""Words of the command line that name runs, jobs, sweeps, experiments, records and filters."""

import pytest

from runner.core.errors import ConfigError
from runner.sweep.ledger import FILE
from runner.sweep.runs.address import SAID, find_address
from tests.support import write_files

JOBS = [f"outputs/digits/sweep_a/{number}_0123abc{number}" for number in range(3)]
RUN = "outputs/digits/2026-01-01_00-00-00_abcdef"


@pytest.fixture(autouse=True)
def _runs(elsewhere):
    files = {f"{folder}/config.yaml": "seed: 0\n" for folder in [*JOBS, RUN]}
    write_files(elsewhere, files | {f"outputs/digits/sweep_a/{FILE}": "", "mine.record.json": "{}"})
    write_files(elsewhere, {"conf/experiment/own.yaml": "# @package _global_\n", "notes.txt": ""})


def find(word):
    found = find_address(word, tuple(SAID))
    return found.kind, [str(path) for path in found.runs], list(found.numbers), list(found.overrides)


@pytest.mark.parametrize(
    ("word", "kind", "runs", "numbers"),
    [
        (RUN, "run", [RUN], []),
        (f"{RUN}/", "run", [RUN], []),
        (f"{RUN}/checkpoints", "run", [RUN], []),
        ("2026-01-01_00-00-00_abcdef", "run", [RUN], []),
        (JOBS[1], "run", [JOBS[1]], [1]),
        ("outputs/digits/sweep_a", "sweep", JOBS, [0, 1, 2]),
        ("sweep_a", "sweep", JOBS, [0, 1, 2]),
        ("sweep_a:2", "job", [JOBS[2]], [2]),
        ("outputs/digits/sweep_a:0,2", "job", [JOBS[0], JOBS[2]], [0, 2]),
        ("sweep_a:1-2", "job", JOBS[1:], [1, 2]),
        ("mine.record.json", "record", [], []),
        ("status == failed", "filter", [], []),
        ("model.width>16", "filter", [], []),
        ("status==failed", "filter", [], []),
    ],
)
def test_a_word_names_what_it_says(word, kind, runs, numbers):
    assert find(word) == (kind, runs, numbers, [])


@pytest.mark.parametrize(
    ("word", "overrides"),
    [
        ("own", ["experiment=own"]),
        ("experiment=own", ["experiment=own"]),
        ("conf/experiment/own.yaml", ["experiment=own"]),
        ("digits_mlp", ["experiment=digits_mlp"]),  # one of ours
        ("experiment=own optimizer.lr=0.1 ~loss=x", ["experiment=own", "optimizer.lr=0.1", "~loss=x"]),
    ],
)
def test_an_experiment_is_the_line_that_composes_it(word, overrides):
    assert find(word) == ("experiment", [], [], overrides)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sweep_b", "did you mean `outputs/digits/sweep_a`?"),
        ("2026-01-01_00-00-00_abcdeg", f"did you mean `{RUN}`?"),
        ("digits_mpl", "did you mean `digits_mlp`?"),
        ("sweep_a:7", "outputs/digits/sweep_a has the jobs 0 to 2"),
        ("sweep_a:0-99999999999", "at most 100,000 jobs"),
        ("outputs/digits", "a folder that is none"),
        ("notes.txt", "is another file"),
    ],
)
def test_a_word_that_names_nothing_is_told_the_nearest(word, said):
    with pytest.raises(ConfigError, match="RUN") as caught:
        find(word)
    assert said in str(caught.value)


def test_a_thing_of_another_kind_is_said_to_be_one():
    with pytest.raises(ConfigError, match="must be a run directory or a job of a sweep, SWEEP:12, but is the folder"):
        find_address("sweep_a", ("run", "job"))
