"""`check --fix`: what is sure is corrected in its place, a guess is left, and nothing of others is touched."""

import json
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.config.editor.corrections import CorrectedFile, correct_argument, find_sure_name
from runner.core.errors import Mistake

MINE = Path("conf/experiment/mine.yaml")
WRONG = """\
# @package _global_
# mine: é
defaults:
  - override /model: smal_cnn  # the small one
  - override /optimzer: sgd
name: mine
epochs: 5  # enough
optimizer: {lrr: 0.1, momentm: 0.9}   # keep me
loader:
  shufle: "yes"
  batch_size: '32'
loss: {_target_: "torch.nn.CrossEntropyLos"}
log: {every: 10}
"""
RIGHT = """\
# @package _global_
# mine: é
defaults:
  - override /model: small_cnn  # the small one
  - override /optimizer: sgd
name: mine
train:
  duration: 5ep  # enough
optimizer: {lr: 0.1, momentum: 0.9}   # keep me
loader:
  shuffle: "yes"
  batch_size: 32
loss: {_target_: "torch.nn.CrossEntropyLoss"}
log: {every: 10}
"""


@pytest.fixture
def fixed(tmp_path, monkeypatch, capsys):
    """`fixed(*words)`: the exit status, what was printed, and the text of the experiment after `check --fix`."""
    monkeypatch.chdir(tmp_path)
    MINE.parent.mkdir(parents=True)
    MINE.write_bytes(WRONG.encode())

    def run(*words):
        capsys.readouterr()
        status = main(["check", "--fix", *words])
        return status, capsys.readouterr().out, MINE.read_bytes().decode()

    return run


def test_what_is_sure_is_corrected_in_its_place_and_a_guess_is_left(fixed):
    MINE.chmod(0o640)
    status, said, text = fixed("experiment=mine")

    assert text == RIGHT
    assert (2, True) == (status, "did you mean `10ep`?" in said)  # epochs or steps?
    assert "\n-  batch_size: '32'\n+" in said
    assert 0o640 == MINE.stat().st_mode & 0o777
    assert text == fixed("experiment=mine")[2]
    assert [] == [file.name for file in MINE.parent.iterdir() if file != MINE]


def test_of_a_command_line_the_corrected_one_is_printed(fixed):
    status, said, text = fixed("--json", "train.acumulate=2", "modle=mlp", "device.type=cpu")

    answer = json.loads(said)
    assert (2, "python -m runner train.accumulate=2 model=mlp device.type=cpu") == (status, answer["command"])
    assert (0, 2, WRONG) == (answer["count"], len(answer["fixed"]), text)


def test_nothing_wrong_is_nothing_to_correct(fixed):
    status, said, _ = fixed("train.duration=1ep")

    assert (0, "No corrections.") == (status, said.split("\n")[0])


def place(key, rule="is not a key that the runner knows", value="", suggestion="", kind="unknown-key"):
    return Mistake(key, rule, value, "", f"did you mean `{suggestion}`?", suggestion, kind)


@pytest.mark.parametrize(
    ("mistake", "sure"),
    [
        (place("train.acumulate", suggestion="train.accumulate"), True),
        (place("train.patience", suggestion="train.early_stop"), True),  # another tool's name
        (place("shuffle", suggestion="loader.shuffle"), True),  # in one place only
        (place("batch_size", suggestion="loader.batch_size"), False),  # or loader.eval.batch_size
        (place("train.epocs", suggestion="train.duration"), False),
        (place("log.imges", suggestion="log.images"), True),
        (place("log.grph", suggestion="log.graph"), True),
        (place("sweep.sed", suggestion="sweep.seeds"), False),  # two letters of three
        (place("freeze.untl", suggestion="freeze.until"), True),
        (place("x", "must be one of `mean`, `sum`", "sun", "sum", "value"), True),
        (place("x", "must be `cat` or `car`", "caz", "cat", "value"), False),  # either
        (place("x", "must be an integer", "64", "64", "type"), True),
        (place("x", "must be an integer", "6 4", "64", "type"), False),
        (place("loss._target_", "", "torch.nn.CrossEntropyLos", "torch.nn.CrossEntropyLoss", "unknown-target"), True),
        (place("loss._target_", "", "torch.nn.L1los", "torch.nn.L1Loss", "unknown-target"), True),
        (place("loss._target_", "", "torch.nn.Conv4d", "torch.nn.Conv3d", "unknown-target"), False),  # or Conv2d
        (place("loss._target_", "", "torch.nn.ReLU", "torch.nn.MSELoss", "slot"), False),
        (place("loss._target_", "", "torch.nn.L2Loss", "torch.nn.L1Loss", "unknown-target"), False),  # or MSELoss
        (place("model", "has no option `resnet20` (there are resnet50)", "", "resnet50", "unknown-option"), False),
        (place("x", "must be one of `cifar10_resnet18`", "cifar100_resnet18", "cifar10_resnet18", "value"), False),
        (place("x", "must be one of `cifar10_resnet18`", "cifar10_resmet18", "cifar10_resnet18", "value"), True),
        (place("model", "has no option `mpl` (there are mlp, mcl)", suggestion="mlp", kind="unknown-option"), False),
    ],
)
def test_sure_is_one_nearest_name(mistake, sure):
    import torch  # noqa: F401  whose names are compared

    assert sure == bool(find_sure_name(mistake, None))


@pytest.mark.parametrize(
    ("text", "key", "line", "right", "after"),
    [
        ("train: {acumulate: 2}\n", "train.acumulate", 1, "train.accumulate", "train: {accumulate: 2}\n"),
        ("acumulate: 2\r\nkeep: 3\r\n", "train.acumulate", 1, "train.accumulate", "accumulate: 2\r\nkeep: 3\r\n"),
        ("train: {acumulate: 2, accumulate: 3}\n", "train.acumulate", 1, "train.accumulate", None),
        ("train: {a: {x: 1}, b: {x: 1}}\n", "train.b.x", 1, "train.b.y", "train: {a: {x: 1}, b: {y: 1}}\n"),
        ("a: 1\n", "train.acumulate", 1, "train.accumulate", None),
        ("epochs: 5\ntrain: {keep: 1}\n", "epochs", 1, "train.duration", "train: {duration: 5ep, keep: 1}\n"),
        ("max_steps: 5\n", "max_steps", 1, "train.duration", "train:\n  duration: 5st\n"),
        (
            "train:\n  keep: 1\nepochs: 5 # x\n",
            "epochs",
            3,
            "train.duration",
            "train:\n  duration: 5ep  # x\n  keep: 1\n",
        ),
        ("epochs: 5 # x\ntrain: {keep: 1}\n", "epochs", 1, "train.duration", None),  # a comment that would be lost
        ("epochs: 5\ntrain: {duration: 1ep}\n", "epochs", 1, "train.duration", None),
        ("{epochs: 5}\n", "epochs", 1, "train.duration", None),
        ("train: {max_steps: 500}\n", "train.max_steps", 1, "train.duration", "train: {duration: 500st}\n"),
        ("train: {max_steps: '500'}\n", "train.max_steps", 1, "train.duration", None),
        ("train: {max_steps: ${n}}\n", "train.max_steps", 1, "train.duration", None),
        ("train: {epochs: 5ep}\n", "train.epochs", 1, "train.duration", "train: {duration: 5ep}\n"),
        ("train: {durationn: 5ep}\n", "train.durationn", 1, "train.duration", "train: {duration: 5ep}\n"),
        ("log_every_n_steps: 50\n", "log_every_n_steps", 1, "log.every", "log:\n  every: 50st\n"),
        ("train:\n  batch_size: 5\nloader: {workers: 1}\n", "train.batch_size", 2, "loader.batch_size", None),  # null
        ("epochs: 5\r\nkeep: 1\r\n", "epochs", 1, "train.duration", "train:\r\n  duration: 5ep\r\nkeep: 1\r\n"),
        (
            "epochs: 5\r\ntrain:\r\n  keep: 1\r\n",
            "epochs",
            1,
            "train.duration",
            "train:\r\n  duration: 5ep\r\n  keep: 1\r\n",
        ),
        ("wd: 0.1\n", "wd", 1, "optimizer.weight_decay", "optimizer:\n  weight_decay: 0.1\n"),
    ],
)
def test_the_text_is_edited_where_its_place_is_clear(tmp_path, monkeypatch, text, key, line, right, after):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(text.encode())
    file = CorrectedFile(Path("mine.yaml"))

    assert (after is not None) == file.correct(place(key, suggestion=right), line, right)
    file.write()
    assert (after or text) == Path("mine.yaml").read_bytes().decode()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("mode: mim  # x\n", "mode: min  # x\n"),
        ("mode: 'mim'\n", "mode: 'min'\n"),
        ("mode: ${oc.env:MD}\n", None),  # it is `mim` elsewhere
        ("x: &m mim\nmode: *m\n", None),  # x means it, too
        ("mode: &m mim\n", None),
    ],
)
def test_a_value_is_edited_where_it_stands_as_it_is(tmp_path, monkeypatch, text, after):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    file = CorrectedFile(Path("mine.yaml"))
    mistake = place("train.mode", "must be `min` or `max`", "mim", "min", "value")

    assert (after is not None) == file.correct(mistake, 2 if "*m" in text else 1, "min")
    assert (after or text) == file.text


def test_files_of_others_and_files_that_changed_are_not_written(tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "other.yaml").write_text("acumulate: 1\n")
    (project / "link.yaml").symlink_to(tmp_path / "other.yaml")
    (project / "mine.yaml").write_text("acumulate: 1\n")
    monkeypatch.chdir(project)
    file = CorrectedFile(Path("mine.yaml"))
    file.correct(place("train.acumulate"), 1, "train.accumulate")
    (project / "mine.yaml").write_text("acumulate: 2\n")

    for other in (Path("link.yaml"), tmp_path / "other.yaml"):
        with pytest.raises((ValueError, OSError), match="own"):
            CorrectedFile(other)
    with pytest.raises(OSError, match="changed meanwhile"):
        file.write()


def test_an_argument_of_a_sweep_is_corrected_by_its_key():
    mistake = Mistake("optimizer.lrr", "", where="argument `optimizer.lrr=0.1`", kind="unknown-argument")

    assert ["optimizer.lr=0.1,0.2", "a=1"] == correct_argument(
        ["optimizer.lrr=0.1,0.2", "a=1"], mistake, "optimizer.lr"
    )


@pytest.mark.parametrize(
    ("argument", "after"),
    [
        ("train.max_steps=500,1000", ["train.duration=500st,1000st"]),
        ("train.max_steps=${n}", None),
        ("train.max_steps=range(5)", None),
        ("train.max_epochs=5ep", ["train.duration=5ep"]),
    ],
)
def test_the_unit_of_another_tools_key_is_kept_in_an_argument(argument, after):
    key = argument.partition("=")[0]
    mistake = Mistake(key, "", where=f"argument `{argument}`", kind="unknown-key")

    assert after == correct_argument([argument], mistake, "train.duration")


def test_an_interpolation_of_a_command_line_is_left():
    mistake = Mistake("train.mode", "", "mim", where="argument `train.mode=${oc.env:MD}`", kind="value")

    assert correct_argument(["train.mode=${oc.env:MD}"], mistake, "min") is None
