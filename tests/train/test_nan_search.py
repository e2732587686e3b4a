"""A number that is none: attributed to its step, its tensor and its samples; what `train.on_fault` does about it."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.train.checkpoint import Checkpoints
from runner.train.finite import collect_tensors, find_infinite_buffers, find_non_finite
from runner.train.nan_search import NonFiniteFound, check_input
from tests.experiment.crash.project import HARD
from tests.support import find_newest, read_metrics, read_result

PLACES = {  # where it is put → what is to be named, and in which module
    "input": ("the model's input", "Net"),
    "loss": ("the loss", None),
    "gradient": ("the gradient of `conv.bias`", "conv (Conv2d)"),
    "parameter": ("parameter `norm.weight`", "norm (BatchNorm2d)"),
    "buffer": ("buffer `norm.running_var`", "norm (BatchNorm2d)"),
}


@pytest.fixture
def hard(hard, project):
    """`hard("seed=1")`: the project's run; its exit status, directory and result."""

    def run(*argv):
        status = hard(HARD, *argv).status
        folder = find_newest(project)
        return status, folder, read_result(folder)

    return run


SAMPLE = ["step.sample=17", "step.place=loss"]  # in one batch of each of the three epochs


def put(place, value, step):
    return [f"step.place={place}", f"step.value={value}", f"step.at={step}"]


def check_attributed(hard, place, value, step):
    status, folder, result = hard(*put(place, value, step))
    fault = result["fault"]
    saved = [entry.step for entry in Checkpoints(folder / "checkpoints").entries()]

    assert status == 1
    assert (fault["step"], fault["tensor"], fault["module"]) == (step, *PLACES[place])
    assert fault["value"] == {"nan": "NaN", "inf": "Infinity"}[value] or place in {"gradient", "loss"}
    assert fault["samples"] == (samples(step)[3:4] if place == "input" else samples(step))
    assert all(step_saved < step for step_saved in saved), "nothing was saved after it"
    assert f"at step {step}" in result["error"]


def samples(step):
    """Those of that step's batch, of which the last one of each epoch has 8."""
    from runner.core import rng

    epoch, batch = divmod(step - 1, 4)
    return rng.draw_permutation(rng.derive_key(0, epoch, "order"), 44)[batch * 12 : (batch + 1) * 12].tolist()


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_none_is_named_with_its_step_and_samples(hard, place, value, seed):
    check_attributed(hard, place, value, random.Random(f"{seed}{place}{value}").randint(1, 12))


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(100))
def test_a_hundred_of_them_are_named(hard, number, seed):
    draw = random.Random(f"{seed}{number}")
    check_attributed(hard, draw.choice(list(PLACES)), draw.choice(["nan", "inf"]), draw.randint(1, 12))


def test_a_bad_sample_that_the_data_let_through_is_named():
    """The input that has it, of which only that sample is named."""
    with pytest.raises(NonFiniteFound) as caught:
        check_input([torch.ones(3, 2), {"x": torch.tensor([[1.0], [torch.nan], [1.0]])}])

    assert (caught.value.tensor, caught.value.rows) == ("the input `batch[1]['x']`", [1])


def test_every_step_is_checked_where_that_is_asked_for(hard):
    """The fault is found in its step, though nothing is logged or saved there."""
    quiet = ["log.every=100st", "train.evaluate_every=null", "train.checkpoint_every=null", "train.duration=100ep"]
    status, _, result = hard(*put("buffer", "inf", 6), "train.check_finite=every_step", *quiet)

    assert (status, result["fault"]["step"], result["steps"]) == (1, 6, 6)


def test_a_batch_is_left_out_after_going_back(hard):
    """The run makes as many steps as were asked for, so it needs a fourth epoch, which has that sample again."""
    status, folder, result = hard(*SAMPLE, "train.on_fault=rollback", "train.max_faults=5")
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    lines = read_metrics(folder)

    assert (status, result["steps"]) == (0, 12)
    assert len(saved["progress"]["left_out"]) == 4
    assert find_non_finite(saved["model"]) == []
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 12]
    assert "left out (train.on_fault=rollback)" in (folder / "log.txt").read_text()


def test_the_update_of_a_step_is_left_out_after_going_back(hard):
    """The step counts, so the schedule goes on as if nothing had happened."""
    status, folder, result = hard(*SAMPLE, "train.on_fault=skip")
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)

    assert (status, result["steps"]) == (0, 12)
    assert saved["scheduler"]["taken"] == 12
    assert [int(entry["step"]) for entry in saved["optimizer"]["state"].values()] == [9] * 6


def test_so_often_and_no_more(hard):
    status, _, result = hard(*SAMPLE, "train.on_fault=skip", "train.max_faults=2")

    assert status == 1
    assert "train.max_faults=2" in result["error"]


def test_a_fault_that_does_not_show_again_is_said_to(hard, monkeypatch):
    """Put in from outside, once: training again is clean."""
    original, calls = torch.optim.AdamW.step, []

    def once(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            self.param_groups[0]["params"][0].data[0] = float("nan")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", once)
    status, _, result = hard()

    assert (status, result["fault"]) == (1, None)
    assert "did not show it" in result["error"]


@pytest.mark.parametrize("ways", [["transform=none"], ["transform=none", "loader.in_memory=false"]])
def test_the_samples_of_digits_are_named_however_batches_are_made(project, monkeypatch, ways):
    """Gathered from memory or sample by sample: the same ones."""
    from runner.__main__ import main

    monkeypatch.chdir(project)
    before = set((project / "outputs").glob("digits_cnn/*"))
    assert main(["optimizer.lr=1e20", "device=cpu", "train.duration=4st", "dataset.limit=200", *ways]) == 1
    folder = (set((project / "outputs").glob("digits_cnn/*")) - before).pop()
    fault = read_result(folder)["fault"]

    assert (fault["step"], fault["tensor"], len(fault["samples"])) == (2, "the output of `fc`", 64)
    FOUND.append(fault["samples"])
    assert FOUND[0] == fault["samples"]


FOUND = []


# ---- the check itself


def test_whatever_is_not_finite_is_found():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert find_non_finite(collect_tensors(model, optimizer)) == []
    model[0].bias.data[1] = -torch.inf
    model[1].running_mean[0] = torch.nan
    optimizer.state[model[0].weight]["exp_avg"][2, 2] = torch.nan

    expected = ["parameter `0.bias`", "buffer `1.running_mean`", "optimizer state `exp_avg` of `0.weight`"]
    assert find_non_finite(collect_tensors(model, optimizer)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_finite(dtype):
    """Where a sum of squares would overflow."""
    assert find_non_finite({"a": torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)}) == []


def test_a_mask_of_infinities_is_there_on_purpose():
    model = nn.Module()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    assert find_infinite_buffers(model) == ("mask",)
    assert find_non_finite(collect_tensors(model, torch.optim.SGD([nn.Parameter(torch.ones(1))]), skip=("mask",))) == []


def test_what_has_no_numbers_to_check_is_passed_over():
    assert find_non_finite({"a": torch.tensor([1, 2]), "b": torch.zeros(0), "c": torch.ones(2, 2).to_sparse()}) == []


def test_a_full_disk_ends_the_run_or_is_said(hard, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write", full)
    status, folder, result = hard()
    assert (status, "could not be written (No space left on device)" in result["error"]) == (1, True)

    status, folder, result = hard("train.on_save_error=go_on")
    assert (status, result["steps"]) == (0, 12)
    assert "The run goes on" in (Path(folder) / "log.txt").read_text()
