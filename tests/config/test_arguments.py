"""What is said of arguments that the shell or Hydra's grammar do not take is a line that they take."""

import os
import shlex

import pytest

from runner.__main__ import main
from runner.config.check.check import Check
from runner.config.compose import compose


def said(arguments, cwd):
    return [(m.key, m.remedy) for m in Check(compose(arguments, cwd), ()).at_once]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ('optimizer={"lr":0.1}', "optimizer={lr:0.1}"),
        ("pretrained.path=Ann's/best.pt", 'pretrained.path="Ann\'s/best.pt"'),
        ("dataset.sample.shape=(1,8,8)", "dataset.sample.shape=[1,8,8]"),
    ],
)
def test_a_quoted_argument_passes_the_shell_and_the_grammar(argument, line, tmp_path):
    ((_, remedy),) = said([argument], tmp_path)

    assert [line] == shlex.split(remedy.removeprefix("quote it: "))
    assert not compose([line], tmp_path).mistakes


@pytest.mark.parametrize(
    ("arguments", "remedies"),
    [
        (["--lr", "0.1", "--batch-size", "32"], ["optimizer.lr=0.1", "loader.batch_size=32"]),
        (["--epochs=10"], ["train.duration=10ep"]),
        (["optimizer.lr", "-0.1"], ["optimizer.lr=-0.1"]),
        (["-cn", "mine"], ["experiment=mine"]),
        (["--config-name=mine"], ["experiment=mine"]),
        (["device=gpu"], ["device=cuda"]),
        (["device.type=0"], ["cuda:0"]),
        (["pretrained.strict=false"], ["pretrained.strategy=partial"]),
        (["hydra.run.dir=here"], ["run=DIR"]),
        (["hydra.job.chdir=true"], ["leave it out"]),
        (["name=a_${now:%Y}"], ["leave it out"]),
        (["pretrained={strategy:full,path:'${hydra:runtime.cwd}/x.pt'}"], ["leave it out"]),
    ],
)
def test_habits_from_elsewhere_have_the_line_that_is_meant(arguments, remedies, tmp_path):
    found = said(arguments, tmp_path)

    assert len(found) == len(remedies)
    assert all(remedy in text for remedy, (_, text) in zip(remedies, found, strict=True)), found


def test_a_number_of_the_environment_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("SIZE", "8")
    ((_, remedy),) = said(["loader.batch_size=${oc.env:SIZE}"], tmp_path)

    (line,) = shlex.split(remedy.partition("`")[2].rstrip("`"))
    assert line == 'loader.batch_size="${oc.decode:${oc.env:SIZE}}"'
    assert not said([line], tmp_path)


def test_a_verb_explains_itself_and_a_first_key_is_no_verb(capsys):
    assert main(["convert", "--help"]) == 0
    assert "python -m runner convert FILE" in capsys.readouterr().out
    assert main(["optimizer.lr", "0.1"]) == 2
    assert "optimizer.lr=0.1" in capsys.readouterr().err


@pytest.mark.parametrize(("encoding", "right"), [("utf-8-sig", ""), ("utf-16", "UTF-16")])
def test_a_file_as_windows_writes_it(encoding, right, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrain: {duration: 1st}\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text, encoding=encoding)

    assert right in os.linesep.join(remedy for _, remedy in said(["experiment=mine"], tmp_path))
    assert bool(right) == bool(said(["experiment=mine"], tmp_path))


def test_run_without_a_folder_is_a_mistake(tmp_path):
    assert [key for key, _ in said(["run="], tmp_path)] == ["run"]
