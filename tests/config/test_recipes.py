"""What a recipe set for one option of a group does not move to another, which an argument or a later file chooses."""

from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from runner.config.recipes import GROUPS
from runner.sweep.space.request import make_request
from tests.support import find_mistakes

pytestmark = pytest.mark.usefixtures("elsewhere")

HEADER = "# @package _global_\n"
# A group, what a recipe sets below its first option, and the key that must be gone with the second.
CASES = {
    "dataset": ("digits", "synthetic", "{classes: 11, val_fraction: 0.3}", "val_fraction"),
    "transform": ("shift", "none", "{train: {shift: {pixels: 3}}}", "train"),
    "model": ("small_cnn", "mlp", "{width: 8}", "width"),
    "step": ("supervised", "minimise", "{input: 1}", "input"),
    "init": ("kaiming", "default", "{rules: {head: {name: fc, bias: 0}}}", "rules"),
    "pretrained": ("conv1", "none", "{path: w.pt}", "path"),
    "freeze": ("backbone", "none", "{until: 2ep}", "until"),
    "optimizer": ("sgd", "adamw", "{fused: true, nesterov: true}", "nesterov"),
    "param_groups": ("no_decay", "none", "{mine: {match: '.*', lr: 0.3}}", "mine"),
    "scheduler": ("cosine", "step", "{eta_min: 0.1}", "eta_min"),
    "loss": ("cross_entropy", "mse", "{label_smoothing: 0.1}", "label_smoothing"),
    "metrics": ("classification", "none", "{f: {_target_: runner.train.metrics.Accuracy}}", "f"),
}


def experiment(text, name="mine"):
    file = Path("conf/experiment") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HEADER + text)


def test_every_group_of_components_has_a_case():
    assert set(GROUPS) == set(CASES)


@pytest.mark.parametrize("group", CASES)
def test_what_a_recipe_set_for_an_option_goes_with_it(group):
    ours, other, settings, key = CASES[group]
    experiment(f"defaults:\n  - override /{group}: {ours}\n{group}: {settings}\n")
    stays = compose(["experiment=mine", f"{group}={ours}"])
    goes = compose(["experiment=mine", f"{group}={other}"])
    plain = compose(["experiment=null", f"{group}={other}"])

    assert key in stays.config[group]
    assert [] == stays.notes
    assert plain.config.get(group) == goes.config.get(group)
    (note,) = goes.notes
    assert f"{group}.{key}" in note
    assert "conf/experiment/mine.yaml:4" in note
    assert f"written for {group}={ours}, and {group}={other} is chosen" in note


def test_a_setting_given_as_an_argument_stays():
    assert 0.3 == compose(["optimizer=adamw", "optimizer.lr=0.3"]).config["optimizer"]["lr"]


def test_the_default_recipe_leaves_another_optimizer_its_own_rate():
    composed = compose(["model=mlp", "optimizer=adamw"])

    assert compose(["experiment=null", "optimizer=adamw"]).config["optimizer"] == composed.config["optimizer"]
    assert "optimizer.lr, optimizer.weight_decay, optimizer.fused of " in composed.notes[0]


def test_keys_of_the_runner_itself_stay_whatever_option_is_chosen():
    experiment("loader: {batch_size: 8}\ndataset: {limit: 16, classes: 10}\ntrain: {duration: 3ep}\n")
    config = compose(["experiment=mine", "loader=workers", "dataset=synthetic"]).config

    assert (8, 16) == (config["loader"]["batch_size"], config["dataset"]["limit"])


def test_a_recipe_on_another_leaves_behind_what_that_was_written_for():
    experiment("optimizer: {lr: 0.7}\nseed: 5\n", "base")
    experiment("defaults:\n  - base\n  - override /optimizer: adam\n  - _self_\noptimizer: {eps: 0.1}\n")
    config = compose(["experiment=mine"]).config

    assert (0.001, 0.1, 5) == (config["optimizer"]["lr"], config["optimizer"]["eps"], config["seed"])


def test_a_class_that_a_recipe_names_itself_gives_way_to_an_option_that_is_asked_for():
    experiment("model: {_target_: nets.Mine, depth: 3}\n")

    assert "nets.Mine" == compose(["experiment=mine"]).config["model"]["_target_"]
    for option in ("small_cnn", "mlp"):
        expected = compose(["experiment=null", f"model={option}"]).config["model"]
        assert expected == compose(["experiment=mine", f"model={option}"]).config["model"]


def test_keys_of_the_primary_config_are_a_recipe_too():
    text = (find_our_conf() / "config.yaml").read_text()
    Path("conf").mkdir()
    Path("conf/config.yaml").write_text(f"{text}\noptimizer: {{lr: 0.4}}\n")

    assert 0.4 == compose(["experiment=null"]).config["optimizer"]["lr"]
    assert 0.001 == compose(["experiment=null", "optimizer=adamw"]).config["optimizer"]["lr"]


def test_each_job_of_a_sweep_over_a_group_has_the_settings_of_its_own_option(tmp_path):
    rates = [
        job.composed.config["optimizer"]["lr"]
        for job in make_request(["optimizer=sgd,adamw", "seed=0,1"], tmp_path).jobs()
    ]

    assert [0.2, 0.2, 0.001, 0.001] == rates


def test_settings_of_a_class_that_an_argument_replaces_are_said():
    (note,) = compose(["optimizer._target_=torch.optim.RMSprop"]).notes

    assert note.startswith("written for torch.optim.SGD, and used for torch.optim.RMSprop: optimizer.lr = 0.2 (")


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ("experiment=mine", "`override /optimizer: null` in the defaults of conf/experiment/mine.yaml leaves it out"),
        (
            "experiment=null optimizer={_target_:torch.optim.AdamW}",
            "`optimizer=null` before that argument leaves it out",
        ),
        (
            "experiment=null optimizer._target_=torch.optim.AdamW",
            "`~optimizer.momentum` on the command line leaves it out",
        ),
    ],
)
def test_an_argument_written_for_another_class_is_refused_with_the_way_to_leave_it_out(overrides, remedy):
    experiment("optimizer: {_target_: torch.optim.AdamW}\n")
    said = {mistake.key: mistake.remedy for mistake in find_mistakes(*overrides.split())}

    assert said["optimizer.momentum"] == f"it was written for `torch.optim.SGD`: {remedy}"


def test_a_rate_of_another_group_that_was_meant_for_another_optimizer_is_said():
    experiment("optimizer: {lr: 0.1}\nparam_groups: {head: {match: 'fc.*', lr: 0.5}}\n")
    notes = compose(["experiment=mine", "optimizer=adamw"]).notes

    rate = "param_groups.head.lr = 0.5 (conf/experiment/mine.yaml:3) is a rate written for optimizer=sgd"
    assert f"{rate}, and optimizer=adamw is chosen" == notes[1]


def test_why_has_what_was_left_out_before_the_winner(runner):
    lines = runner("why", "optimizer.lr", "optimizer=adamw").out.splitlines()

    assert "optimizer.lr = 0.001" == lines[0]
    assert lines[-2].endswith("0.2  (left out: written for optimizer=sgd, and optimizer=adamw is chosen)")
    assert "conf/optimizer/adamw.yaml:3" in lines[-1]


def test_check_says_what_was_left_out_also_for_a_sweep(runner):
    for argv in (["optimizer=adamw"], ["-m", "optimizer=sgd,adamw"]):
        assert "digits_cnn.yaml:11 left out: written for optimizer=sgd" in runner("check", *argv).out
