"""What is compared between evaluations: values that were said since the last one, and each name has one value."""

import math
from types import SimpleNamespace

import pytest
import torch

from runner.core.errors import RunError
from runner.train import evaluation, pauses
from tests.support import read_metrics

TRAINING_ALONE = (
    "dataset.val_fraction=0",
    "dataset.stratify=false",
    "train.objective=train/loss",
    "train.mode=min",
    "dataset.limit=64",
    "loader.batch_size=16",
)


def test_an_objective_of_training_is_said_at_each_evaluation(runner):
    """Four epochs of four steps, a line of the log every 50: each epoch has a loss of its own to be compared."""
    ran = runner("train.duration=4ep", *TRAINING_ALONE, "train.early_stop=2", "log.every=50st", "optimizer.lr=0.01")

    assert (0, 16) == (ran.status, ran.result["steps"])
    said = [(line["step"], line["train/loss"]) for line in read_metrics(ran.folder)]
    assert [4, 8, 12, 16] == [step for step, _ in said]
    losses = [loss for _, loss in said]
    assert sorted(losses, reverse=True) == losses
    assert 16 == ran.result["best"]["step"]


def test_early_stopping_counts_evaluations_that_have_a_value(runner, tmp_path, monkeypatch):
    """A field that the step says from step 9 on: the two evaluations before do not count, the three after it do."""
    (tmp_path / "late.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    settings = (
        "dataset.sample=null",
        "step._target_=late.step",
        "train.objective=train/late",
        "train.mode=max",
        "train.early_stop=2",
    )
    ran = runner("train.duration=9ep", *TRAINING_ALONE, *settings, "log.every=4st")

    assert (0, 20) == (ran.status, ran.result["steps"])  # the first value after step 12, none better after 16 and 20
    assert 12 == ran.result["best"]["step"]
    assert "train/late has not become better in 2 evaluations (1 at step 12)" in ran.result["stopped"]


LATE = """
from runner.train.steps import supervised

calls = 0

def step(batch, model, loss, input=0, target=1):
    global calls
    outcome = supervised(batch, model, loss, input, target)
    calls += model.training
    return outcome | ({"late": 1.0} if calls > 8 else {})
"""


def test_a_plateau_waits_for_a_value_and_refuses_a_word():
    seen = []
    schedule = SimpleNamespace(monitor="train/late", evaluated=lambda values: seen.append(values["train/late"]))
    run = SimpleNamespace(schedule=schedule, inputs={}, derived=())
    pauses.follow_metric(run, {"val/loss": 1.0})
    pauses.follow_metric(run, {"train/late": 2.0})
    assert [2.0] == seen
    with pytest.raises(RunError, match=r"scheduler\.monitor: train/late is none of the numbers there are: val/loss"):
        pauses.follow_metric(run, {"train/late": "warm", "val/loss": 1.0})
    schedule.monitor = "val/late"
    with pytest.raises(RunError, match="val/late is none of the numbers"):
        pauses.follow_metric(run, {"val/loss": 1.0})


def test_every_number_of_a_metric_has_a_name():
    """A collection with a vector in it, as of torchmetrics with `average=None`."""
    value = {"recall": torch.tensor([0.1, 0.2]), "f1": 0.5, "top": {"1": 0.6, "5": 0.9}}
    names = ["val/m/recall/0", "val/m/recall/1", "val/m/f1", "val/m/top/1", "val/m/top/5"]
    assert names == list(evaluation.flatten_metric("val/m", value))
    with pytest.raises(RunError, match="`val/m/1` has two values"):
        evaluation.flatten_metric("val/m", {1: 0.5, "1": 0.6})
    assert math.isclose(0.2, evaluation.flatten_metric("val/m", value)["val/m/recall/1"], rel_tol=1e-6)


def test_a_name_has_one_value():
    values = {"val/loss": 1.0}
    with pytest.raises(RunError, match="`val/loss` has two values"):
        evaluation.add(values, {"val/loss": 2.0})


NAMED = """
from runner.train.steps import supervised

def step(batch, model, loss, input=0, target=1):
    return supervised(batch, model, loss, input, target) | {"top": 1.0}
"""


def test_a_metric_that_takes_a_name_is_a_mistake_of_the_config(runner, tmp_path, monkeypatch):
    """The loss, and a field of the step: before anything is created."""
    (tmp_path / "named_step.py").write_text(NAMED)
    monkeypatch.syspath_prepend(tmp_path)
    ran = runner("check", "+metrics.loss={_target_:runner.train.metrics.Accuracy}")
    assert 2 == ran.status
    assert "metrics.loss must have another name" in ran.out + ran.err
    ran = runner("check", "step._target_=named_step.step", "+metrics.top={_target_:runner.train.metrics.Accuracy}")
    assert 2 == ran.status
    assert "metrics.top must have another name: the step has a field `top` of its own" in ran.out + ran.err


def test_a_field_that_the_step_has_in_evaluations_alone_is_an_objective_of_these(runner, tmp_path, monkeypatch):
    """`val/own` is produced, `train/own` is not."""
    (tmp_path / "fields.py").write_text(FIELDS)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("step._target_=fields.step", "train.mode=min", "train.duration=1st", "dataset.limit=32")

    assert runner("check", *settings, "train.objective=val/own").status == 0
    refused = runner("check", *settings, "train.objective=train/own")
    assert (2, True) == (refused.status, "train.objective must be one of" in refused.err + refused.out)


FIELDS = """
from runner.train.steps import supervised

def step(batch, model, loss, input=0, target=1):
    made = supervised(batch, model, loss)
    return made if model.training else made | {"own": made["loss"].detach()}
"""
