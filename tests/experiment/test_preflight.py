"""What a constructor or a shape refuses is said before a run directory exists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WRONG = [
    (
        "optimizer.lr=-1",
        "optimizer.lr is refused (ValueError: Invalid learning rate: -1)",
        "argument `optimizer.lr=-1`",
    ),
    ("optimizer.momentum=-2", "optimizer.momentum is refused", "argument `optimizer.momentum=-2`"),
    ("model.width=-4", "model.width is refused", "argument `model.width=-4`"),
    ("scheduler.T_max=0", "scheduler is refused (ZeroDivisionError", "conf/scheduler/cosine.yaml"),
    ("loss.reduction=none", "loss must give one number", "conf/loss/cross_entropy.yaml"),
    ("loss.label_smoothing=3", "loss.label_smoothing is refused", "argument `loss.label_smoothing=3`"),
    ("step.input=5", "step.input must name members of a sample, which are 0, 1", "argument `step.input=5`"),
    ("optimizer.lr=nan", "optimizer.lr must be a finite number", "argument `optimizer.lr=nan`"),
    ("model=lenet", "model refuses a batch of two samples (0: [2, 1, 8, 8] torch.float32", "argument `model=lenet`"),
    ("model.image_size=12", "model refuses", "small_cnn.yaml"),
    ("loss=mse", "loss or the step refuses", "argument `loss=mse`"),
    ("init.rules={a:{name:fc,weight:0},b:{name:fc,weight:1}}", "init.rules.b has no effect", "argument `init.rules="),
    ("init.rules={a:{name:'f.',weight:0},b:{name:fc,weight:1}}", "init.rules.b.weight must have an effect", "argument"),
    ("freeze.params=['fc.*','fc.bias']", "freeze.params[1] must freeze something", "argument `freeze.params="),
    (
        "param_groups={a:{match:'fc.*'},b:{match:'fc.bias'}}",
        "param_groups.b must have a trainable parameter",
        "argument",
    ),
    ("device.type=cuda:99", "device.type cannot be had", "argument `device.type=cuda:99`"),
    ("dataset.sample={shape:[1,9,9],dtype:float32} model.image_size=12", "model refuses", "[2, 1, 9, 9]"),
]


@pytest.mark.parametrize(("overrides", "rule", "where"), WRONG, ids=[wrong[0] for wrong in WRONG])
def test_refused_before_anything_exists(runner: Callable[..., Any], overrides: str, rule: str, where: str) -> None:
    """One mistake, with its rule and its place; exit status 2; no directory."""
    ran = runner(*overrides.split())

    assert ran.status == 2
    assert rule in ran.err
    assert where in ran.err
    assert ran.err.rstrip().endswith("1 mistake.")
    assert not Path("outputs").exists()


def test_the_random_state_is_left_alone(runner: Callable[..., Any]) -> None:
    """Preflight draws nothing: without it the weights are the same (the table comes from it)."""
    short = ("train.duration=2st", "dataset.limit=64", "device=cpu")

    assert runner(*short).result["weights_sha256"] == runner(*short, "dataset.sample=null").result["weights_sha256"]


def test_a_sample_unknown_is_said(runner: Callable[..., Any]) -> None:
    """Where the dataset states no sample, one line says so and the run goes on."""
    ran = runner("debug=noop", "dataset.sample=null", "device=cpu")

    assert ran.status == 0
    assert "note: the dataset states no `sample`" in ran.out


def test_a_metric_of_several_labels_takes_their_zeros_and_ones_as_floats():
    import torch

    from runner.experiment.preflight.step import check_metric_fit

    made = torch.empty(4, 3, device="meta")
    node = {"_target_": "torchmetrics.classification.MultilabelF1Score", "num_labels": 3}

    assert check_metric_fit("f1", node, (made, made)) is None


def test_the_rates_that_one_cycle_is_offered_are_those_of_the_groups(runner):
    ran = runner("check", "scheduler=one_cycle", r"param_groups={head: {match: 'fc\..*', lr_mult: 10}}")

    assert "write one for each group, such as `[2.0, 0.2]`" in ran.err + ran.out
