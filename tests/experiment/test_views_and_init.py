"""Views of an evaluation, and an init function that gets a batch, in whole runs."""

import json

import pytest
import torch

from tests.support import find_mistakes, write_files

PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Points(TensorDataset):
    def __init__(self, count=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(count, 4, generator=generator)
        super().__init__(points, (points.sum(1) > 0).long())


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)


def views(inputs, weight=3.0):
    return [(weight, inputs), inputs.flip(-1)]


def twice(inputs):
    return [inputs, inputs]


def standardize(module, batch, floor=0.0):
    if isinstance(module, nn.Linear):
        module.weight.copy_((batch[0].std(0) + floor).expand(2, 4))


def noisy(sample):
    return sample + torch.randn(4)
"""
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /transform: none
dataset: {train: {_target_: vparts.Points}, val: {_target_: vparts.Points, count: 20, seed: 1}}
model: {_target_: vparts.Net}
loader: {batch_size: 8}
optimizer: {lr: 0.01}
train: {duration: 1ep}
log: {tensorboard: false, progress: false, model_table: false}
"""
RUN = ("experiment=points", "device=cpu")


@pytest.fixture
def points(tmp_path, monkeypatch):
    write_files(tmp_path, {"vparts.py": PARTS, "conf/experiment/points.yaml": EXPERIMENT})
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("points")
def test_an_evaluation_averages_the_outputs_of_its_views(runner):
    made = runner(*RUN, "transform.views={_target_: vparts.views}")
    again = runner("evaluate", str(made.folder), "--json")
    weights = torch.load(made.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    import vparts

    inputs, targets = vparts.Points(20, 1).tensors
    net = vparts.Net()
    net.load_state_dict(weights)
    logits = (3 * net(inputs) + net(inputs.flip(-1))) / 4
    loss = torch.nn.functional.cross_entropy(logits, targets).item()

    assert made.result["metrics"]["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert json.loads(again.out)["metrics"]["val/loss"] == made.result["metrics"]["val/loss"]


@pytest.mark.usefixtures("points")
def test_views_move_no_weight_and_predictions_have_them(runner, tmp_path):
    plain = runner(*RUN)
    seen = runner(*RUN, "transform.views={_target_: vparts.views}")
    twice = runner("predict", str(seen.folder), "--split", "val", "--out", "by_split.csv")
    import numpy as np
    import vparts

    np.save("rows.npy", vparts.Points(20, 1).tensors[0].numpy())
    rows = runner("predict", str(seen.folder), "rows.npy", "--out", "by_file.csv")
    outputs = [
        [line.split(",")[-1] for line in (tmp_path / name).read_text().splitlines()[1:]]
        for name in ("by_split.csv", "by_file.csv")
    ]

    assert plain.result["weights_sha256"] == seen.result["weights_sha256"]
    assert (0, 0) == (twice.status, rows.status), (twice.err, rows.err)
    assert [float(a) for a in outputs[0]] == pytest.approx([float(b) for b in outputs[1]], rel=1e-5)


@pytest.mark.usefixtures("points")
def test_an_init_function_gets_training_samples_without_augmentation(runner):
    """The first ones, as `init.samples` says; a run that goes on asks for none."""
    made = runner(
        *RUN,
        "init.apply={_target_: vparts.standardize, floor: 0.5}",
        "init.samples=10",
        "+transform.train.noise={_target_: vparts.noisy}",
        "train.duration=0st",
    )
    import vparts

    weights = torch.load(made.folder / "checkpoints" / "last.pt", weights_only=True)["model"]

    assert made.status == 0
    assert torch.equal(weights["weight"], (vparts.Points().tensors[0][:10].std(0) + 0.5).expand(2, 4))
    assert runner("explain", *RUN, "init.apply={_target_: vparts.standardize}").status == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["+init.apply={_target_: vparts.standardize, batch: 3}"],
            "is supplied by the runner (a batch of training samples)",
        ),
        (
            ["+transform.views={_target_: torch.nn.functional.relu}"],
            "a function of your own that takes the model's input",
        ),
        (["device.weights=fp16", "device.precision=fp16"], "must not be fp16 with device.weights=fp16"),
        (["device.weights=half"], "must be"),
    ],
)
@pytest.mark.usefixtures("points")
def test_what_is_wrong_is_named(settings, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mistake,) = find_mistakes("experiment=points", *settings)

    assert said in f"{mistake.key} {mistake.rule} {mistake.remedy}"
