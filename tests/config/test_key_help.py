"""Help for keys: all of them, with what the schema says, and what a component's signature says of its arguments."""

import json

import pytest

from runner.config import key_help
from runner.config.origins import list_schema_keys


@pytest.fixture
def helped(capsys):
    """`helped("train.duration")`: what `python -m runner help …` prints, and its exit status."""
    from runner.__main__ import main

    def run(*argv):
        capsys.readouterr()
        status = main(["help", *argv])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_every_key_of_the_schema_has_help():
    assert set() == list_schema_keys() - {known.key for known in key_help.list_key_help()}


def test_every_key_has_a_comment():
    assert [one.key for one in key_help.list_key_help() if not one.comment] == []


def test_a_key_has_its_type_rule_default_comment_and_line():
    known = key_help.find_key_help("train.ema")

    assert ("a number or null", "above 0, below 1", None) == (known.kind, known.rule, known.default)
    assert "moving average of the weights" in known.comment
    assert known.where.startswith("schema/train.py:")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("param_groups.head.match", "a pattern (regular expression) or a list"),
        ("pretrained.rename.0.from", "a text; must be given"),
        ("train.stop_when.train/loss.below", "a number or null"),
        ("dataset.downloads.mine.url", "each address is a mirror"),
    ],
)
def test_a_name_that_people_choose_stands_for_any(helped, key, said):
    status, text = helped(key)

    assert (0, True) == (status, said in text), text


def test_a_group_shows_its_options_and_keys(helped):
    _, text = helped("train")

    assert "train.accumulate: an integer; at least 1; default 1" in text
    assert "sgd" in helped("optimizer")[1]


def test_an_argument_of_a_component_is_in_its_signature(helped):
    assert "default 16" in helped("model.width")[1]
    assert "Argument of models.mlp.MLP; [64, 128, 128, 10] in this config." in helped("model.sizes", "model=mlp")[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("optimizer",), "optimizer.nesterov: bool; default false (torch/optim/sgd.py:"),
        (("optimizer", "optimizer=adam", "experiment=null"), "optimizer.betas: "),
        (("scheduler", "scheduler=one_cycle", "experiment=null"), "scheduler.pct_start: float; default 0.3"),
        (("model", "model=resnet18"), "model.num_classes: int; default 1000 (torchvision/models/resnet.py:"),
    ],
)
def test_a_group_of_a_component_shows_its_arguments(helped, argv, said):
    assert said in helped(*argv)[1]


def test_the_nearest_argument_is_named(helped):
    assert "optimizer.lr" in helped("optimizer.lrr")[1]


def test_the_nearest_key_is_named(helped):
    status, text = helped("train.acumulate")

    assert (2, True) == (status, "did you mean `train.accumulate`?" in text)


def test_without_a_word_verbs_and_groups_are_listed(helped):
    _, text = helped()

    assert "evaluate    compute the metrics of a checkpoint" in text
    assert "optimizer     " in text


def test_the_json_of_all_keys_has_no_default_where_one_must_be_given(helped):
    listed = {known["key"]: known for known in json.loads(helped("--json")[1])}

    assert ("default" in listed["model"], listed["loader.batch_size"]["default"]) == (False, 64)
