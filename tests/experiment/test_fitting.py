"""Fitting to the training split: once, on the fold's samples only; in the checkpoint, and put back from it."""

import json

import pytest
import torch

from runner.__main__ import main
from tests.experiment.scripts.harness import read_losses
from tests.experiment.test_progress import run, stop_at
from tests.support import install_project, read_result

PARTS = '''
from collections import Counter

import torch
from torch import nn
from torch.utils.data import Dataset

CALLS = []


class Vocabulary:
    """The words of the samples that train, by frequency; filled in place."""

    def __init__(self):
        self.index = {"<unk>": 0}

    def fit(self, train_split):
        CALLS.append(("vocabulary", len(train_split)))
        counts = Counter(train_split.dataset.words[index] for index in train_split.indices)
        for word, _ in sorted(counts.items()):
            self.index[word] = len(self.index)

    def __call__(self, word):
        return self.index.get(word, 0)


class Words(Dataset):
    def __init__(self, vocabulary, count=20):
        self.vocabulary, self.words = vocabulary, [f"w{number % 13}" for number in range(count)]

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        number = self.vocabulary(self.words[index])
        return torch.tensor([float(number), 1.0]), index


class Scale(nn.Module):
    """A torch module as a transform, with what it has learnt in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("most", torch.zeros(()))

    def fit(self, train_split):
        CALLS.append(("scale", len(train_split)))
        self.most = torch.stack([inputs for inputs, _ in train_split]).amax() + torch.rand(())

    def forward(self, inputs):
        return inputs / self.most


class Own:
    def __init__(self, limit=0):
        self.center = None

    def fit(self, train_split):
        CALLS.append(("own", len(train_split)))
        self.center = float(sum(inputs.sum() for inputs, _ in train_split))

    def state_dict(self):
        return {"center": self.center}

    def load_state_dict(self, saved):
        self.center = saved["center"]

    def __call__(self, inputs):
        return inputs - 0.001 * self.center


class Broken(Own):
    def fit(self, train_split):
        raise ValueError("too few words")


class NotFitted(Own):
    def fit(self, inputs, targets):
        raise AssertionError

    def __call__(self, inputs):
        return inputs


def step(batch, model, loss):
    output = model(batch[0])
    return {"loss": output.square().mean(), "output": output, "target": batch[1], "size": len(batch[0])}
'''
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /step: null
  - override /metrics: none
  - override /loss: none
name: fitted
model: {_target_: torch.nn.Linear, in_features: 2, out_features: 1}
dataset: {source: {_target_: fit_parts.Words, vocabulary: {_target_: fit_parts.Vocabulary}}, folds: 4, fold: 1}
transform:
  train: {scale: {_target_: fit_parts.Scale}, own: {_target_: fit_parts.Own}}
  eval: {scale: {_target_: fit_parts.Scale}, own: {_target_: fit_parts.Own, limit: 3}}
step: {_target_: fit_parts.step}
optimizer: {lr: 0.01, momentum: 0.9}
loader: {batch_size: 4}
train: {duration: 3ep}
device: {type: cpu}
log: {every: 1st, progress: false, tensorboard: false, model_table: false}
"""
FITTED = ["experiment=fitted"]


@pytest.fixture
def parts(tmp_path):
    with install_project(tmp_path, "fit_parts", PARTS, {"experiment/fitted.yaml": EXPERIMENT}) as module:
        yield module


def test_each_is_fitted_once_to_the_folds_samples_and_recorded(parts):
    folder = run(verb=FITTED)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["step"]["fitted"]
    provenance = json.loads((folder / "provenance.json").read_text())["fitted"]

    assert parts.CALLS == [("vocabulary", 15), ("scale", 15), ("own", 15), ("own", 15)]
    names = {"dataset.source.vocabulary", "transform.train.scale", "transform.train.own", "transform.eval.own"}
    assert set(saved) == set(provenance) == names
    assert provenance["transform.train.scale"]["learnt"] == {
        "most": pytest.approx(float(saved["transform.train.scale"]["most"]))
    }
    assert provenance["dataset.source.vocabulary"]["learnt"]["index"].startswith("dict of 1")
    assert "words" not in saved["dataset.source.vocabulary"]


def test_a_resume_and_an_evaluation_put_it_back_without_fitting(parts, monkeypatch, capsys):
    whole = run(verb=FITTED)
    stopped = stop_at(7, monkeypatch, verb=FITTED)
    parts.CALLS.clear()
    run(verb=("resume", str(stopped)))
    capsys.readouterr()
    assert main(["evaluate", str(whole), "--json"]) == 0
    evaluated = capsys.readouterr().out
    assert (main(["predict", str(whole), "--split", "train"]), parts.CALLS) == (0, [])
    assert json.loads(evaluated)["metrics"] == read_result(whole)["metrics"]
    assert read_result(whole)["weights_sha256"] == read_result(stopped)["weights_sha256"]
    assert read_losses(whole) == read_losses(stopped)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_have_it_too(parts):
    assert read_losses(run(verb=FITTED)) == read_losses(run("loader.num_workers=2", verb=FITTED))


def test_a_fit_that_fails_is_named(parts, capsys):
    run("transform.train.own._target_=fit_parts.Broken", verb=FITTED, status=1)
    assert "transform.train.own: `fit` of Broken failed: ValueError: too few words" in capsys.readouterr().err


def test_another_method_of_that_name_is_left_alone(parts):
    run("transform.train.own._target_=fit_parts.NotFitted", verb=FITTED)
    assert parts.CALLS == [("vocabulary", 15), ("scale", 15), ("own", 15)]


def test_an_export_uses_what_was_learnt_and_says_that_it_is_no_code(parts, tmp_path, capsys):
    folder = run(
        "step={_target_: runner.train.steps.supervised, input: 0, target: 0}",
        "loss=mse",
        "model.out_features=2",
        verb=FITTED,
    )
    parts.CALLS.clear()
    assert main(["export", str(folder), "--to", "torch_export", "--out", str(tmp_path / "made")]) == 0
    assert "scale was fitted to the training split" in " ".join(capsys.readouterr().err.split())
    assert parts.CALLS == []
