"""`show schedule` and `show model` say what a run does, and leave nothing behind but their picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import list_experiments, list_files, mark_slow, read_metrics

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "overrides",
    [
        ("scheduler.warmup=20st", "train.duration=4ep"),
        ("scheduler=one_cycle", "train.duration=4ep"),
        ("scheduler=step", "scheduler.step_size=2", "train.duration=60st", "loader.drop_last=true"),
        ("scheduler.interval=epoch", "train.duration=3.5ep", "scheduler.T_max=4", "dataset.limit=200"),
    ],
)
def test_the_planned_rates_are_those_of_the_run(overrides: tuple[str, ...], runner: Callable[..., Any]) -> None:
    """At every step and for every group; the steps of an epoch are counted from the dataset."""
    groups = "param_groups={head: {match: 'fc.*', weight_decay: 0}}"
    planned = json.loads(runner("show", "schedule", "--json", groups, *overrides).out)
    ran = runner("device=cpu", "log.every=1st", "log.progress=false", groups, *overrides)
    events = read_metrics(ran.folder)
    steps = [event for event in events if "lr/head" in event]

    assert ran.result["steps"] == planned["steps"] == len(steps) == len(planned["lr"]["head"]) - 1
    for name, rates in planned["lr"].items():
        assert rates[1:] == [event[f"lr/{name}"] for event in steps]


def test_a_picture_and_a_table(runner: Callable[..., Any]) -> None:
    """The table has the first and the last step and the end of the warmup; the momentum where it is cycled."""
    ran = runner("show", "schedule", "scheduler=one_cycle", "scheduler.warmup=5ep")
    lines = [line.split() for line in ran.out.splitlines()]

    assert ["after", "step", "epoch", "lr", "momentum/default"] == lines[0]
    assert {"0", "85", "680"} <= {line[0] for line in lines[1:]}
    assert {"outputs/show/digits_cnn/schedule.svg"} == list_files()
    assert "momentum" in Path("outputs/show/digits_cnn/schedule.svg").read_text()


def test_what_a_plateau_does_is_not_known(runner: Callable[..., Any]) -> None:
    """It depends on its metric, and that is said."""
    ran = runner("show", "schedule", "scheduler=plateau", "--json")

    assert "val/loss" == json.loads(ran.out)["follows"]
    assert "also depend on val/loss" in runner("show", "schedule", "scheduler=plateau").out


def test_a_run_that_ends_within_its_warmup_is_shown_with_a_note(runner):
    ran = runner("show", "schedule", "experiment=null", "scheduler.warmup=100st", "train.duration=2ep")

    assert ran.status == 0, ran.err
    assert "note: the run has 34 steps and ends within the warmup of 100" in ran.out


def test_without_the_data_an_epoch_is_assumed(runner: Callable[..., Any]) -> None:
    """Nothing is downloaded; `--epoch` says the steps; the data that is missing is named."""
    assumed = runner("show", "schedule", "experiment=cifar10_resnet18", "--json")
    told = runner("show", "schedule", "experiment=cifar10_resnet18", "--json", "--epoch=391")

    assert (100, 391) == tuple(json.loads(ran.out)["steps_per_epoch"] for ran in (assumed, told))
    assert "an epoch is taken to have 100 steps" in json.loads(assumed.out)["notes"][0]
    assert not json.loads(told.out)["notes"]
    assert not list_files()


@pytest.mark.parametrize("name", mark_slow(list_experiments()))
def test_every_shipped_experiment(name: str, runner: Callable[..., Any]) -> None:
    """A rate for each of its groups, and the table of its model where it has inputs."""
    planned = json.loads(runner("show", "schedule", "--json", "--epoch=3", f"experiment={name}", "device=cpu").out)
    shown = runner("show", "model", "--json", f"experiment={name}", "device=cpu")

    assert all(rates[0] > 0 for rates in planned["lr"].values())
    assert shown.status == (2 if name in ("minimise", "detection", "text_classifier") else 0)


def test_the_model_for_any_input(runner: Callable[..., Any]) -> None:
    """The size of the input, of the batch, and frozen parameters; the dataset's sample where no input is given."""
    size = ("--input", "3x64x64", "--batch=2")
    found = json.loads(runner("show", "model", "model=resnet18", *size, "--json", "freeze.params=['conv1.*']").out)
    own = json.loads(runner("show", "model", "--json").out)

    assert (11_181_642, 64 * 3 * 49) == (found["total"]["parameters"], found["total"]["frozen"])
    assert "2x64x32x32" == found["layers"][0]["output"]
    assert 2 * found["total"]["macs"] == found["total"]["flops_forward"]
    assert 84_224 == own["total"]["macs"]
    assert not list_files()


NETS = """
import torch


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 12)
        self.out = torch.nn.Linear(12 + 12, 2)

    def forward(self, image, words):
        return self.out(torch.cat([image.flatten(1), self.words(words).mean(1)], 1))
"""


@pytest.mark.parametrize(
    "inputs",
    [("--input", "3x2x2", "--input", "7:int64"), ("--input=words=7:torch.int64", "--input=image=3x2x2:float32")],
)
def test_a_model_of_several_inputs(
    inputs: tuple[str, ...], runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, or by name; each with its dtype."""
    Path("nets_of_show.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/two.yaml").write_text("_target_: nets_of_show.Two")

    found = json.loads(runner("show", "model", "model=two", *inputs, "--json").out)

    assert "" == found["problem"]
    assert {"words": "1x7x12", "out": "1x2"} == {layer["name"]: layer["output"] for layer in found["layers"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("schedule", "--epoch", "0"), "--epoch must be a whole number of at least 1, but is '0'"),
        (("schedule", "--epoch"), "--epoch needs a value"),
        (("schedule", "scheduler.T_max=fast"), "scheduler.T_max"),
        (("model", "--input", "3x2y2"), "--input must be sizes without the batch"),
        (("model", "--input", "3x2:flot32"), "--input must be sizes without the batch"),
        (("model", "--input", "3", "--input", "a=3"), "must name all of the model's arguments, or none"),
        (("model", "dataset.sample=null"), "--input must be given: the dataset states no `sample`"),
        (("modle",), "did you mean `show model`?"),
    ],
)
def test_a_question_that_cannot_be_answered(arguments: tuple[str, ...], said: str, runner: Callable[..., Any]) -> None:
    """Exit status 2, and what is wrong; nothing is created."""
    ran = runner("show", *arguments)

    assert 2 == ran.status
    assert said in ran.err
    assert not list_files()


def test_an_input_that_the_model_refuses(runner: Callable[..., Any]) -> None:
    """The parameters are shown, and why there is no more; exit status 1."""
    ran = runner("show", "model", "--input", "2x8x8")

    assert 1 == ran.status
    assert "the forward stopped" in ran.out
    assert "6,090" in ran.out
