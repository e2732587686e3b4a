"""Exact resume with everything that a recipe adds to the loop; training that ends before its duration."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from runner.train.optimizer_step.accumulated import AccumulatedStep
from tests.experiment.crash.project import HARD, differences, ending, events
from tests.support import find_newest, read_result

RECIPE = [
    HARD,
    "loader.batch_size=4",  # 11 batches: five pairs and one alone
    "train.accumulate=2",
    "train.ema=0.9",
    "train.ema_every=2st",
    "train.clip_norm=0.5",
    "train.evaluate_at_start=true",
    "train.evaluate_every=2st",
    "train.early_stop=5",
    "optimizer.lr=0.3",
]


@pytest.fixture
def command(hard, project):
    """`command("experiment=hard")`: its exit status and its run directory."""
    return lambda *argv: (hard(*argv).status, find_newest(project))


def stop_within(step, monkeypatch):
    """A signal between the two micro-batches of that step."""
    original, calls = AccumulatedStep.__call__, []

    def called(self, group):
        calls.append(1)
        if len(calls) == step:
            group = [group[0], *group[1:]]
            inner, seen = self.step, []

            def stepped(*args, **named):
                seen.append(1)
                if len(seen) == 2 or len(group) == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return inner(*args, **named)

            self.step = stepped
            try:
                return original(self, group)
            finally:
                self.step = inner
        return original(self, group)

    monkeypatch.setattr(AccumulatedStep, "__call__", called)


WHOLE = {}


@pytest.fixture
def whole(command):
    if not WHOLE:
        status, folder = command(*RECIPE)
        assert status == 0
        WHOLE["run"] = folder
    return WHOLE["run"]


def test_early_stopping_ends_the_run_and_says_why(whole):
    result = read_result(whole)
    saved = torch.load(whole / "checkpoints" / "last.pt", weights_only=True)

    assert result["status"] == "completed"
    assert result["stopped"].startswith("train.early_stop: val/loss has not become better in 5 evaluations")
    assert result["steps"] == result["best"]["step"] + 10 < 18
    assert saved["progress"]["stale"] == 5
    assert f"training ended after step {result['steps']}" in (whole / "log.txt").read_text()
    assert (
        torch.load(whole / "checkpoints" / "best.pt", weights_only=True)["progress"]["step"] == result["best"]["step"]
    )


@pytest.mark.parametrize("step", [1, 4, 6, 7])
def test_a_stop_within_a_step_finishes_it_and_goes_on_to_the_same_bits(command, whole, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_within(step, patch)
        status, folder = command(*RECIPE)
    assert status == 75
    assert read_result(folder)["steps"] == step
    assert command("resume", str(folder))[0] == 0

    assert differences(ending(whole), ending(folder)) == []
    assert events(whole) == events(folder)
    one, other = (read_result(run) for run in (whole, folder))
    assert (one["ema_sha256"], one["stopped"]) == (other["ema_sha256"], other["stopped"])


def test_evaluate_takes_the_average_unless_told(hard, whole):
    wanted = read_result(whole)["metrics"]
    found = {}
    for which in ("", "ema", "raw"):
        ran = hard("evaluate", str(whole), "--json", *(["--weights", which] if which else []))
        assert ran.status == 0
        found[which] = json.loads(ran.out)["metrics"]

    assert wanted == found[""] == found["ema"]
    assert wanted != found["raw"]


def test_weights_of_the_average_start_another_run(command, whole):
    """`pretrained: {path: RUN, key: ema}`, trained for no step, has these weights."""
    ema = torch.load(whole / "checkpoints" / "best.pt", weights_only=True)["ema"]
    status, folder = command(
        HARD, "pretrained.strategy=full", f"pretrained.path={whole}", "pretrained.key=ema", "train.duration=0st"
    )

    assert status == 0
    model = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, model[name]) for name, value in ema.items())


def test_a_run_that_ended_early_goes_on_with_more_patience(command, project):
    status, folder = command(*RECIPE, "train.early_stop=1")
    assert status == 0
    early = read_result(folder)["steps"]
    assert command("resume", str(folder), "train.early_stop=null")[0] == 0
    result = read_result(folder)

    assert early < result["steps"] == 18
    assert "stopped" not in result


def test_time_that_is_used_up_ends_the_run_over_all_resumes(command, monkeypatch):
    """Evaluated, saved, completed: nothing is left to requeue; more time continues it."""
    from runner.train.optimizer_step.base import OptimizerStepWithHooks

    slow = OptimizerStepWithHooks.apply

    def apply(self):
        time.sleep(0.02)
        slow(self)

    monkeypatch.setattr(OptimizerStepWithHooks, "apply", apply)
    settings = [HARD, "train.ema=0.9", "train.duration=1000ep", "train.max_time=2s"]
    status, folder = command(*settings)
    result = read_result(folder)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)

    assert (status, result["status"], result["stopped"]) == (0, "completed", "train.max_time is used up")
    assert 0 < result["steps"] == saved["progress"]["step"] < 200
    assert saved["progress"]["seconds"] == pytest.approx(2, abs=1)
    assert "val/loss" in result["metrics"]
    assert command("resume", str(folder), "train.max_time=3s")[0] == 0
    later = read_result(folder)
    assert result["steps"] < later["steps"] < result["steps"] + 100


def test_saving_and_evaluating_at_other_rhythms_changes_no_bit_of_the_average(command, project):
    settings = [*RECIPE, "train.early_stop=null", "train.duration=1ep"]
    one = command(*settings)[1]
    other = command(*settings, "train.evaluate_at_start=false", "train.evaluate_every=1st", "log.every=1st")[1]
    sums = [read_result(Path(run)) for run in (one, other)]

    assert sums[0]["ema_sha256"] == sums[1]["ema_sha256"]
    assert sums[0]["weights_sha256"] == sums[1]["weights_sha256"]


# ---- other kinds of optimizer step

KINDS = {
    "fp16": ["device.precision=fp16", "train.clip_norm=1.0", "train.accumulate=2", "loader.batch_size=6"],
    "bf16": ["device.precision=bf16", "train.ema=0.9"],
    "several": ["optimizer=two", "param_groups=none"],
    "closure": ["optimizer=closure"],
    "split": ["train.split_on_oom=true", "model.most=7"],
    "loss": ["loss=tempered"],
}
PARTS = """
import torch
from torch import nn

from parts import Net


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * self.scale, target)


class Roomy(Net):
    def __init__(self, most=100):
        super().__init__()
        self.most = most

    def forward(self, x):
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)
"""


@pytest.fixture
def kinds(project):
    (project / "more.py").write_text(PARTS)
    options = {
        "optimizer/two": "_target_: runner.train.optimizer_step.several_optimizers.Optimizers\n"
        "matrices: {_target_: torch.optim.Muon, match: 'head.weight', lr: 0.02}\n"
        "rest: {_target_: torch.optim.AdamW, match: '.*', lr: 0.01}",
        "optimizer/closure": "{_target_: torch.optim.LBFGS, lr: 0.5, max_iter: 3}",
        "loss/tempered": "_target_: more.Tempered",
        "model/roomy": "{_target_: more.Roomy, most: 100}",
    }
    for name, text in options.items():
        (project / "conf" / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (project / "conf" / f"{name}.yaml").write_text(text)
    yield
    sys.modules.pop("more", None)


def stop_after(step, monkeypatch):
    from runner.train.state import Losses

    original, calls = Losses.add, []

    def add(self, outcome):
        original(self, outcome)
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Losses, "add", add)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("kinds")
def test_every_kind_of_step_goes_on_to_the_same_bits(command, monkeypatch, kind):
    base = [HARD, *KINDS[kind], *(["model=roomy"] if kind == "split" else [])]
    status, straight = command(*base)
    assert status == 0
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        status, folder = command(*base)
    assert status == 75
    assert command("resume", str(folder))[0] == 0

    assert differences(ending(straight), ending(folder)) == []
    assert events(straight) == events(folder)


def test_the_skipped_steps_of_fp16_are_counted_and_no_fault(command, project, monkeypatch):
    """The first scale is made too large: infinite gradients, which the scaler answers by halving it."""
    original = torch.amp.GradScaler.__init__

    def large(self, device):
        original(self, device, init_scale=2.0**40)

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", large)
    status, folder = command(HARD, "device.precision=fp16", "train.duration=10ep", "log.every=1st")
    result = read_result(folder)

    assert (status, result["steps"]) == (0, 40)
    assert 3 < result["steps_skipped"] < 40
    assert f"skipped {result['steps_skipped']} of 40 steps" in (folder / "log.txt").read_text()


def test_gradients_that_no_scale_makes_finite_are_a_fault(command, project):
    """NaN at every step: the scale falls until that is said, and the gradient is named."""
    bad = ["step.sample=17", "step.place=gradient", "step.value=nan", "loader.batch_size=44"]
    status, folder = command(HARD, "device.precision=fp16", *bad, "log.every=1st", "train.duration=80st")
    result = read_result(folder)

    assert (status, result["fault"]["tensor"]) == (1, "the gradient of `conv.bias`")
    assert 16 < result["fault"]["step"] < 40
