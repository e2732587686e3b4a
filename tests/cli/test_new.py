"""A project laid out by `new` runs as it is, and nothing that is there is overwritten."""

import json
import sys

import pytest

from tests.support import list_files, write_files

FILES = {
    ".gitignore",
    "README.md",
    "components/dataset.py",
    "components/model.py",
    "conf/dataset/spirals.yaml",
    "conf/experiment/mine.yaml",
    "conf/model/net.yaml",
    "tests/test_experiments.py",
}


@pytest.fixture(name="folder")
def laid_out(runner, tmp_path, monkeypatch):
    """A new project, `mine`, which is the working directory."""
    assert runner("new", "mine").status == 0
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield tmp_path / "mine"
    for name in [name for name in sys.modules if name.partition(".")[0] == "components"]:
        del sys.modules[name]


def test_a_new_project_trains_as_it_is(folder, runner):
    assert FILES == list_files()
    ran = runner("experiment=mine", "train.duration=12ep", "train.evaluate_every=12ep", "log=quiet", "--json")
    last = json.loads(ran.out.splitlines()[-1])
    assert (0, "completed") == (ran.status, last["status"])
    assert last["metrics"]["val/accuracy"] > 0.5  # three classes; 0.98 at its end


@pytest.mark.exhaustive
def test_a_new_project_has_a_sweep_and_the_keys_of_its_readme(folder, runner):
    assert 0 == runner("check", "-m", "experiment=mine", "model.hidden=16,64", "seed=0,1").status
    assert 0 == runner("check", "experiment=mine", "model.hidden=64", "optimizer.lr=0.02").status


def test_nothing_is_overwritten(folder, runner):
    (folder / "README.md").unlink()
    before = {name: (folder / name).read_bytes() for name in FILES - {"README.md"}}
    refused = runner("new", "--name", "mine")
    assert (2, True) == (refused.status, "conf/model/net.yaml" in refused.err)
    assert before == {name: (folder / name).read_bytes() for name in list_files()}


def test_a_project_is_laid_out_beside_what_is_there(runner, tmp_path):
    write_files(tmp_path, {"conf/model/own.yaml": "_target_: own.Own\n", "notes.txt": ""})
    ran = runner("new", "--name", "first", "--json")
    assert sorted(json.loads(ran.out)["files"]) == sorted(
        {*FILES - {"conf/experiment/mine.yaml"}, "conf/experiment/first.yaml"}
    )
    assert (tmp_path / "conf/model/own.yaml").read_text() == "_target_: own.Own\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["new", "a", "b"], "must be one"),
        (["new", "1st"], "no digit first"),
        (["new", "x", "--name", "../up"], "must be letters"),
        (["new", "digits_cnn"], "hide the shipped experiment"),
        (["new", "taken"], "is a file"),
        (["new", "own"], "in place of the runner"),
        (["new", "linked"], "README.md already"),
        (["new", "led"], "which is a link"),
        (["new", "null"], "is a word of YAML"),
        (["new", "x", "--name", "Yes"], "is a word of YAML"),
    ],
)
def test_what_cannot_be_a_project_is_told_and_nothing_is_written(argv, said, runner, tmp_path):
    write_files(tmp_path, {"taken": "", "own/runner.py": "", "linked/x": ""})
    (tmp_path / "linked" / "README.md").symlink_to("nowhere")
    write_files(tmp_path, {"led/x": "", "elsewhere/x": ""})
    (tmp_path / "led" / "conf").symlink_to("../elsewhere")
    before = list_files()
    ran = runner(*argv)
    assert (2, True, before) == (ran.status, said in ran.err, list_files())


def test_the_next_line_is_one_that_a_shell_takes(runner):
    assert "cd 'my project' && python -m runner experiment=my_project" in runner("new", "my project").out
