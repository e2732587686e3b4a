"""Mistakes that users make in files and on the command line: the key, the place, the remedy; nothing that follows."""

from pathlib import Path

import pytest

from tests.support import find_mistakes

pytestmark = pytest.mark.usefixtures("elsewhere")

RECIPE = "# @package _global_\n"
# text of conf/experiment/mine.yaml -> key, line, words of the remedy or the rule
FILES = {
    "optimizer: {lr: 0.1}\n": ("conf/experiment/mine.yaml", 1, "# @package _global_"),
    "# @package _gobal_\noptimizer: {lr: 0.1}\n": ("conf/experiment/mine.yaml", 1, "# @package _global_"),
    f"{RECIPE}defaults:\n  - override model: mlp\n": ("model", 3, "write `override /model: mlp`"),
    f"{RECIPE}defaults:\n  - /model: mlp\n": ("model", 3, "write `override /model: mlp`"),
    f"{RECIPE}defaults:\n  - overide /model: mlp\n": ("model", 3, "write `override /model: mlp`"),
    f"{RECIPE}defaults:\n  - _sel_\n": ("_sel_", 3, "did you mean `_self_`?"),
    f"{RECIPE}defaults:\n  - _self_\n  - _self_\n": ("_self_", 4, "twice"),
    f"{RECIPE}defaults: {{model: mlp}}\n": ("defaults", 2, "must be a list"),
    f"{RECIPE}optimizer.lr: 0.1\n": ("optimizer.lr", 2, "`optimizer: {lr: 0.1}`"),
    f"{RECIPE}optimizer:\n  lr:0.1\n": ("optimizer", 2, "`lr: 0.1`"),
    f"{RECIPE}optimizer: {{lr: '${{optimizer.lr'}}\n": ("optimizer.lr", 2, "cannot be read"),
    f"{RECIPE}optimizer: {{lr: '${{optimizer.lr}}'}}\n": ("optimizer.lr", 2, "cannot be followed"),
    f"{RECIPE}init: {{rules: {{a: {{name: fc, weight: torch.nn.init.zeros_}}}}}}\n": (
        "init.rules.a.weight",
        2,
        "write `{_target_: torch.nn.init.zeros_}`",
    ),
}
ARGUMENTS = {
    "~optimizer.momentun": ("optimizer.momentun", "did you mean `~optimizer.momentum`?"),
    "--optimizer.lr=0.1": ("--optimizer.lr", "write `optimizer.lr=0.1`"),
    "experiment=conf/experiment/digits_mlp.yaml": ("experiment", "did you mean `experiment=digits_mlp`?"),
    "trainer.max_epochs=5": ("trainer", "did you mean `train.duration`?"),
    "train.epocs=5": ("train.epocs", "did you mean `train.duration`?"),
    "model._target_=nets:Net": ("model._target_", "did you mean `nets.Net`?"),
    "model._target_=nets/blocks/Net": ("model._target_", "did you mean `nets.blocks.Net`?"),
}


def write(name, text):
    path = Path("conf") / name
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_in_a_file_is_one_mistake_on_its_line(text):
    key, line, words = FILES[text]
    write("experiment/mine.yaml", text)
    found = find_mistakes("experiment=mine")

    assert [key] == [mistake.key for mistake in found]
    assert found[0].where.startswith(f"conf/experiment/mine.yaml:{line}")
    assert words in str(found[0])


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_mistaken_argument_is_one_mistake_with_its_remedy(argument):
    key, remedy = ARGUMENTS[argument]
    found = find_mistakes(argument)

    assert [(key, remedy)] == [(mistake.key, mistake.remedy) for mistake in found]
    assert f"argument `{argument}`" in found[0].where


@pytest.mark.parametrize("text", ["- a\n", "hello\n", "_target_: models.mlp.MLP\n---\na: 1\n", "a: [1\n"])
def test_nothing_is_missing_from_a_file_that_cannot_be_read(text):
    write("model/mine.yaml", text)

    assert ["conf/model/mine.yaml"] == [mistake.key for mistake in find_mistakes("model=mine")]


def test_an_empty_file_is_blamed_for_what_it_lacks():
    write("model/mine.yaml", "")

    assert [("model._target_", "conf/model/mine.yaml:1 (chosen by argument `model=mine`)")] == [
        (mistake.key, mistake.where) for mistake in find_mistakes("model=mine")
    ]


SEQUENTIAL = """
_target_: torch.optim.lr_scheduler.SequentialLR
schedulers:
  - {_target_: torch.optim.lr_scheduler.LinearLR, start_factor: 0.1, total_iters: 1ep}
  - {_target_: torch.optim.lr_scheduler.CosineAnnealingLR, T_max: 2ep}
milestones: [1ep]
"""


def test_components_and_durations_stand_in_lists(runner):
    write("scheduler/mine.yaml", SEQUENTIAL)

    assert [] == find_mistakes("scheduler=mine")
    assert 0 == runner("scheduler=mine", "train.duration=2st", "dataset.limit=64", "device=cpu").status


@pytest.mark.parametrize(
    ("right", "wrong", "keys"),
    [
        ("start_factor", "start_facto", ["scheduler.schedulers.0.start_facto"]),
        ("T_max", "T_mex", ["scheduler.schedulers.1.T_mex"]),
        ("[1ep]", "[1epoch]", ["scheduler.milestones"]),
        ("LinearLR", "LinerLR", ["scheduler.schedulers.0._target_"]),
        ("total_iters: 1ep", "optimizer: 1", ["scheduler.schedulers.0.optimizer"]),
    ],
)
def test_what_is_wrong_in_a_list_is_blamed_there(right, wrong, keys):
    write("scheduler/mine.yaml", SEQUENTIAL.replace(right, wrong))

    assert keys == [mistake.key for mistake in find_mistakes("scheduler=mine")]


def test_nested_datasets_are_accepted_and_checked():
    nested = """
train:
  _target_: torch.utils.data.ConcatDataset
  datasets:
    - {_target_: datasets.synthetic.Images, count: 4}
    - {_target_: torch.utils.data.Subset, dataset: {_target_: datasets.digits.Digits}, indexes: [0, 1]}
"""
    write("dataset/mine.yaml", nested)

    assert ["dataset.train.datasets.1.indexes"] == [
        m.key for m in find_mistakes("experiment=null", "dataset=mine") if "indexes" in m.key
    ]
    assert not [m for m in find_mistakes("experiment=null", "dataset=mine") if m.key == "dataset.train.datasets"]


def test_a_text_is_no_function():
    write("scheduler/mine.yaml", "_target_: torch.optim.lr_scheduler.LambdaLR\nlr_lambda: 'lambda epoch: 0.9**epoch'\n")

    assert ["scheduler.lr_lambda"] == [mistake.key for mistake in find_mistakes("scheduler=mine")]


def test_settings_of_a_group_have_the_optimizers_types():
    found = find_mistakes("param_groups={head: {match: '.*', lr: fast, momentum: 0.5}}")

    assert ["param_groups.head.lr"] == [mistake.key for mistake in found]


def test_a_list_for_a_tensor_gets_the_node_to_write():
    found = find_mistakes("loss.weight=[1,2]")

    assert "write `{_target_: torch.tensor, data: [1, 2]}`" == found[0].remedy


def test_a_pattern_must_follow_trust(capsys):
    from runner.__main__ import main

    assert 2 == main(["check", "--trust"])
    assert "--trust needs a value, PATTERN" in capsys.readouterr().err


def test_a_misspelt_metric_of_a_collection_is_found(runner):
    write(
        "metrics/mine.yaml",
        "all: {_target_: torchmetrics.MetricCollection, metrics: "
        "[{_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10}]}\n",
    )
    ran = runner("metrics=mine", "train.objective=val/all/MulticlassAcuracy")

    assert (2, True) == (ran.status, "did you mean `val/all/MulticlassAccuracy`?" in ran.err)


CIRCLES = {
    "itself": ({"model/a.yaml": "defaults: [a]\nsizes: [64, 10]\n"}, "model=a", "`model/a` names `model/a`"),
    "two": (
        {"optimizer/a.yaml": "defaults: [b]\nlr: 1\n", "optimizer/b.yaml": "defaults: [a]\n"},
        "optimizer=a",
        "`optimizer/a` names `optimizer/b` names `optimizer/a`",
    ),
    "three recipes": (
        {f"experiment/{a}.yaml": f"{RECIPE}defaults:\n  - {b}\n" for a, b in ("xy", "yz", "zx")},
        "experiment=x",
        "`experiment/x` names `experiment/y` names `experiment/z` names `experiment/x`",
    ),
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_a_circle_of_defaults_lists_names_its_files(kind):
    """Whoever begins it: a group, a recipe, a file that names itself."""
    files, argument, words = CIRCLES[kind]
    for name, text in files.items():
        path = Path("conf") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    circles = [mistake for mistake in find_mistakes(argument) if "leads back to its own file" in mistake.rule]

    assert [words in mistake.rule for mistake in circles] == [True]
    assert "conf/" in circles[0].where
