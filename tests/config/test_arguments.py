"""What is said of arguments that the shell or Hydra's grammar do not take is a line that they take."""

import os
import shlex

import pytest

from runner.__main__ import main
from runner.config.check.check import Check
from runner.config.compose import compose


def said(arguments, cwd):
    return [(m.key, m.remedy) for m in Check(compose(arguments, cwd), ()).at_once]


QUOTED = {
    'optimizer={"lr":0.1}': "optimizer={lr:0.1}",
    "pretrained.path=Ann's/best.pt": 'pretrained.path="Ann\'s/best.pt"',
    "dataset.sample.shape=(1,8,8)": "dataset.sample.shape=[1,8,8]",
}


def test_quoted_arguments_pass_the_shell_and_the_grammar(tmp_path):
    remedies = [remedy.removeprefix("quote it: ") for _, remedy in said([*QUOTED], tmp_path)]
    lines = [shlex.split(remedy) for remedy in remedies]

    assert lines == [[line] for line in QUOTED.values()]
    assert not compose([*QUOTED.values()], tmp_path).mistakes


# Arguments of one command line -> the key of the mistake and words of its remedy.
HABITS = {
    ("--lr", "0.1"): ("--lr", "optimizer.lr=0.1"),
    ("--batch-size", "32"): ("--batch-size", "loader.batch_size=32"),
    ("--epochs=10",): ("--epochs", "train.duration=10ep"),
    ("optimizer.momentum", "-0.1"): ("optimizer.momentum", "optimizer.momentum=-0.1"),
    ("-cn", "mine"): ("--config-name", "experiment=mine"),
    ("--config-name=other",): ("--config-name", "experiment=other"),
    ("--config-name=third.yml",): ("--config-name", "experiment=third"),
    ("--resume", "outputs/a/b/checkpoints/last.pt"): ("--resume", "python -m runner resume outputs/a/b`"),
    ("optimizer.weight_decay:0.1",): ("optimizer.weight_decay:0.1", "`optimizer.weight_decay=0.1`"),
    ("train.clip_norm==2",): ("train.clip_norm", "`train.clip_norm=2`"),
    ("train.accumulate=", "2"): ("train.accumulate", "`train.accumulate=2`"),
    ("train.keep", "=", "4"): ("train.keep", "`train.keep=4`"),
    ("log.every", "=5st"): ("log.every", "`log.every=5st`"),
    ("loader.shuffle =false",): ("loader.shuffle", "`loader.shuffle=false`"),
    ("scheduler=CosineAnnealingLR",): ("scheduler", "scheduler=cosine`"),
    ("loss=nn.MSELoss",): ("loss", "loss=mse`"),
    ("optimizer=optim.AdamW",): ("optimizer", "optimizer=adamw`"),
    ("model=mlp.yml",): ("model", "model=mlp`"),
    ("device=gpu",): ("device", "device=cuda"),
    ("pretrained.strict=false",): ("pretrained.strict", "pretrained.strategy=partial"),
    ("hydra.run.dir=here",): ("hydra.run.dir", "run=DIR"),
    ("hydra.job.chdir=true",): ("hydra.job.chdir", "leave it out"),
    ("name=a_${now:%Y}",): ("name", "leave it out"),
    ("run=${hydra:runtime.cwd}/x",): ("run", "leave it out"),
}


def test_habits_from_elsewhere_have_the_line_that_is_meant(tmp_path):
    found = said([argument for arguments in HABITS for argument in arguments], tmp_path)

    assert len(found) == len(HABITS)
    for key, remedy in HABITS.values():
        assert any(key == other and remedy in text for other, text in found), (key, remedy, found)


def test_a_number_of_the_environment_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("SIZE", "8")
    (_, remedy), (_, device) = said(["loader.batch_size=${oc.env:SIZE}", "device.type=0"], tmp_path)

    assert "cuda:0" in device
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
    found = said(["experiment=mine"], tmp_path)

    assert (right in os.linesep.join(remedy for _, remedy in found), bool(right)) == (True, bool(found))


def test_a_file_that_ends_in_yml_is_no_option_and_hides_behind_none(tmp_path):
    """By its name, with its ending, with its path, from another file; and beside one that is read."""
    for name in ("model/mine.yml", "model/two.yaml", "model/two.yml"):
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text("_target_: models.mlp.MLP\nsizes: [64, 10]\n")
    for choice in ("mine", "mine.yml", "mine.yaml", "conf/model/mine.yml"):
        assert any("mine.yml" in str(m) and "mine.yaml" in m[1] for m in said([f"model={choice}"], tmp_path)), choice
    assert any("two_other.yaml" in remedy for _, remedy in said(["model=two"], tmp_path))


def test_the_first_word_of_another_tool_is_no_verb_and_says_what_to_write(capsys):
    for word, remedy in (("train", "without a verb the runner trains"), ("eval", "did you mean `evaluate`?")):
        assert main([word, "x"]) == 2
        assert remedy in capsys.readouterr().err


def test_run_without_a_folder_is_a_mistake(tmp_path):
    assert [key for key, _ in said(["run="], tmp_path)] == ["run"]
