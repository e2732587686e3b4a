"""Actions are called at their rhythm, keep what they return, and leave training as it was, whatever they do."""

import json
import os
import signal

import pytest
import torch

from runner.config.check.check import Check, to_resolved_data
from runner.config.component_settings import ACTION_ARGUMENTS
from runner.config.compose import compose
from runner.config.identity import compute_job_id
from runner.train import actions, loop
from tests.support import find_mistakes, list_names, read_metrics, read_result, write_files

CODE = '''
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


class Points(Dataset):
    def __init__(self, count=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(count, 4, generator=generator)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index], (self.points[index].sum() > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(x))


CALLS = []


def ruin(model, loss, device, step, epoch, progress, splits, datasets, metrics, run_dir, folder, seed, generator):
    """Uses everything that it is given, and does to the model what nobody should."""
    assert not any(module.training for module in model.modules())
    assert (progress.step, progress.epoch, progress.folder) == (step, epoch, run_dir)
    assert sum(len(inputs) for inputs, _ in splits["val"]) == len(datasets["val"]) == 10
    CALLS.append((step, torch.rand(1).item(), random.random(), np.random.rand(), generator.initial_seed() == seed))
    model.train()
    with torch.enable_grad():
        model(torch.randn(8, 4, device=device)).sum().backward()
    for tensor in model.state_dict().values():
        tensor.add_(1)
    model.body[1].running_mean = torch.full((6,), 7.0)
    model.head.weight.requires_grad_(False)
    (folder / "own.txt").write_text("kept")
    return {"noise": torch.rand(3, 5, 5), "note": f"after {step}", "value": float(step)}


class Weight:
    def __init__(self, name):
        self.name = name

    def __call__(self, model):
        return {"sum": model.get_parameter(self.name).double().sum()}


def fail(model):
    raise ValueError("no luck")


def want(model, modell):
    pass


def show(batch, model, loss):
    output = model(batch[0])
    parts = {"picture": lambda: torch.rand(3, 4, 4), "note": "train" if model.training else "eval"}
    measured = {"output": output, "target": batch[1], "size": len(output)}
    return {"loss": loss(output, batch[1]), **measured, "artifacts": parts}
'''
YAML = """# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
name: acting
dataset: {train: {_target_: acting.Points}, val: {_target_: acting.Points, count: 10, seed: 1}}
model: {_target_: acting.Net}
optimizer: {lr: 0.1}
loader: {batch_size: 8}
train: {duration: 3ep}
log: {tensorboard: false, progress: false, model_table: false, hparams: false, every: 2st}
"""
RUIN = "+actions.ruin={_target_: acting.ruin, every: 1ep}"


@pytest.fixture
def acting(runner, tmp_path, monkeypatch):
    """`acting(*overrides)`: a run of the project; `acting.calls()`: what its action has drawn."""
    write_files(tmp_path, {"acting.py": CODE, "conf/experiment/acting.yaml": YAML})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "acting", raising=False)
    return lambda *more: runner("experiment=acting", "device=cpu", *more)


@pytest.mark.parametrize(
    "more",
    ["train.ema=0.8", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("seed=1", "train.accumulate=2"))],
)
def test_whatever_an_action_does_no_weight_moves(acting, more):
    """With dropout, batch norm, an average of the weights and the global generators."""
    without, with_it = acting(more), acting(more, RUIN)
    hashes = [{key: ran.result.get(key) for key in ("weights_sha256", "ema_sha256")} for ran in (without, with_it)]

    assert [without.status, with_it.status] == [0, 0], with_it.err
    assert hashes[0] == hashes[1]


def test_an_action_keeps_what_it_returns(acting):
    ran = acting(RUIN, "log.tensorboard=true")
    kept = {name: list_names(ran.folder / "artifacts" / "ruin" / name) for name in ("noise", "note")}

    assert kept == {"noise": [f"step_{n}.png" for n in (3, 6, 9)], "note": [f"step_{n}.txt" for n in (3, 6, 9)]}
    assert [(line["step"], line["ruin/value"]) for line in read_metrics(ran.folder) if "ruin/value" in line] == [
        (3, 3.0),
        (6, 6.0),
        (9, 9.0),
    ]
    assert ran.result["metrics"]["ruin/value"] == 9.0
    events = b"".join(file.read_bytes() for file in (ran.folder / "tb").iterdir())
    assert [events.count(name) > 0 for name in (b"ruin/noise", b"ruin/note", b"ruin/value")] == [True] * 3


def test_a_stop_leaves_each_action_done_once(acting, monkeypatch, runner):
    """A signal in the step after which an action is due: it is called by the resume, and draws what it would have."""
    whole = acting(RUIN)
    calls = __import__("acting").CALLS
    expected, batches = calls[:], loop.iterate_batches
    calls.clear()

    def stopping(run):
        for batch in batches(run):
            if run.progress.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iterate_batches", stopping)
        stopped = acting(RUIN)
    (folder,) = (path for path in whole.folder.parent.iterdir() if path != whole.folder)
    assert (stopped.status, [call[0] for call in calls]) == (75, [3])
    again = runner("resume", str(folder))

    assert (again.status, expected) == (0, calls)
    assert read_result(folder)["weights_sha256"] == whole.result["weights_sha256"]
    assert [line.get("ruin/value") for line in read_metrics(folder)] == [
        line.get("ruin/value") for line in read_metrics(whole.folder)
    ]


def test_an_action_sees_the_averaged_weights(acting):
    ran = acting("train.ema=0.5", "+actions.head={_target_: acting.Weight, name: head.weight, every: 1ep}")
    saved = torch.load(ran.folder / "checkpoints" / "last.pt")

    assert ran.result["metrics"]["head/sum"] == saved["ema"]["head.weight"].double().sum().item()
    assert ran.result["metrics"]["head/sum"] != saved["model"]["head.weight"].double().sum().item()


def test_a_rhythm_of_null_is_the_end(acting):
    ran = acting("+actions.head={_target_: acting.Weight, name: head.weight, every: null}")

    assert [line["step"] for line in read_metrics(ran.folder) if "head/sum" in line] == [9]


def test_an_action_that_fails_ends_the_run_or_is_said(acting):
    ran = acting("+actions.bad={_target_: acting.fail}")
    assert ran.status == 1
    assert "actions.bad failed after step 3: ValueError: no luck (acting.py:" in ran.err
    going = acting("+actions.bad={_target_: acting.fail, on_error: go_on}")
    assert going.status == 0
    assert (going.folder / "log.txt").read_text().count("actions.bad failed after step") == 3


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+actions.bad={_target_: acting.want}", "actions.bad.modell"),
        ("+actions.bad={_target_: acting.fail, model: 3}", "actions.bad.model"),
        ("+actions.bad={_target_: acting.fail, evry: 1ep}", "actions.bad.evry"),
        ("+actions.bad={_target_: acting.fail, every: 0st}", "actions.bad.every"),
        ("+actions.bad={_target_: acting.fail, on_error: warn}", "actions.bad.on_error"),
        ("+actions.val={_target_: acting.fail}", "actions.val"),
        ("+actions.bad={_target_: torch.nn.functional.relu}", "actions.bad._target_"),
    ],
)
def test_a_wrong_action_is_refused_before_anything_is_made(acting, tmp_path, override, key):
    ran = acting(override)

    assert ran.status == 2
    assert f"1. {key} " in ran.err
    assert not (tmp_path / "outputs").exists()


def test_actions_change_no_identity(acting):
    acting("train.duration=1st")
    jobs = []
    for more in ((), (RUIN,)):
        composed = compose(["experiment=acting", *more])
        jobs.append(compute_job_id(to_resolved_data(Check(composed).config)))

    assert jobs[0] == jobs[1]


def test_all_arguments_of_an_action_are_known():
    run = type("Run", (), {"progress": None, "splits": {}})()
    names = ", ".join(ACTION_ARGUMENTS)
    call = eval(f"lambda {names}: None")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "list_arguments", lambda _: [])
        assert actions.collect_arguments(run, actions.Action("a", call)) == {}
    assert actions.list_unknown_arguments(call, ACTION_ARGUMENTS) == []


def test_a_step_may_give_artifacts_too(acting):
    """At the lines of the log, and for the first batch of an evaluation; the weights stay what they are."""
    plain, ran = acting(), acting("step._target_=acting.show", "~step.input", "~step.target")
    kept = {split: list_names(ran.folder / "artifacts" / split / "note") for split in ("train", "val")}

    assert ran.status == 0, ran.err
    assert kept == {"train": [f"step_{n}.txt" for n in (2, 4, 6, 8, 9)], "val": [f"step_{n}.txt" for n in (3, 6, 9)]}
    assert (ran.folder / "artifacts/val/note/step_3.txt").read_text() == "eval"
    assert plain.result["weights_sha256"] == ran.result["weights_sha256"]


# ---- the test with the best weights


def test_the_test_is_done_with_the_best_weights(acting, runner, capsys):
    """A rate that is too large: the best epoch is not the last. `evaluate` says the same numbers."""
    settings = (
        "+dataset.test={_target_: acting.Points, count: 9, seed: 2}",
        "optimizer.lr=1",
        "train.duration=6ep",
        "train.objective=val/loss",
    )
    last, best = acting(*settings), acting(*settings, "train.test_with=best")
    step = best.result["best"]["step"]
    assert step < best.result["steps"], "the test needs a run that became worse"
    of_best = runner("evaluate", str(best.folder), "--checkpoint", "best", "--json")
    whole = runner("evaluate", str(best.folder), "--json")
    said = {name: value for name, value in json.loads(of_best.out)["metrics"].items() if name.startswith("test/")}

    assert best.result["test_with"] == {"checkpoint": "best", "step": step}
    assert best.result["metrics"] == last.result["metrics"] | said == json.loads(whole.out)["metrics"]
    assert said["test/loss"] != last.result["metrics"]["test/loss"]
    assert best.result["weights_sha256"] == last.result["weights_sha256"]


def test_the_best_weights_need_a_test_split(acting):
    assert "1. train.test_with has no effect without a test split" in acting("train.test_with=best").err


def test_the_choice_of_weights_is_part_of_an_identity_where_it_is_made():
    plain, last, best = (
        compute_job_id(to_resolved_data(Check(compose(["dataset.test_fraction=0.1", *more])).config))
        for more in ((), ("train.test_with=last",), ("train.test_with=best",))
    )

    assert (plain == last, plain == best) == (True, False)
    assert find_mistakes("train.test_with=best", "dataset.test_fraction=0.1") == []
