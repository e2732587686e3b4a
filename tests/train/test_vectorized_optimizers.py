"""Optimizers of a stack against `torch.optim`, step by step."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from runner.train.lr_schedule import ConstantLR
from runner.train.vectorized.alike import AlikeJobs
from runner.train.vectorized.optimizers import StackedClipping, make_stacked_optimizer
from runner.train.vectorized.stack import Stack

STEPS, JOBS = 50, 5


def draw_settings(kind: str, draw: random.Random) -> dict[str, Any]:
    """Draw settings that may differ among the jobs of a stack."""
    settings = {
        "lr": 10 ** draw.uniform(-4, -1),
        "weight_decay": draw.choice([0, 10 ** draw.uniform(-4, -1)]),
        "maximize": draw.random() < 0.3,
    }
    if kind == "SGD":
        momentum = draw.choice([0, draw.uniform(0.1, 0.95)])
        nesterov = momentum > 0 and draw.random() < 0.4
        settings |= {"momentum": momentum, "nesterov": nesterov}
        settings |= {"dampening": 0 if nesterov else draw.choice([0, draw.random() / 2])}
    elif kind == "RMSprop":
        settings |= {"momentum": draw.choice([0, draw.random() * 0.9]), "alpha": draw.uniform(0.8, 0.999)}
        settings |= {"eps": 10 ** draw.uniform(-8, -4)}
    else:
        settings |= {"betas": (draw.uniform(0.5, 0.95), draw.uniform(0.9, 0.9999)), "eps": 10 ** draw.uniform(-8, -4)}
    return settings


def make_run(kind: str, settings: dict[str, Any], seed: int, dtype: Any = torch.float64, **train: Any) -> Any:
    """Make what a stack asks of a run: a model, an optimizer with two param groups, a config."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)
    groups = [
        {"params": [*model[0].named_parameters("0")], "lr": settings["lr"] / 2},
        {"params": [*model[1].named_parameters("1")]},
    ]
    optimizer = getattr(torch.optim, kind)(groups, **settings)
    config = {"device": {"precision": "fp32", "memory_format": "contiguous"}, "train": {"duration": "1ep"} | train}
    config |= {"optimizer": settings, "param_groups": None, "scheduler": None}
    parts = {"model": model, "loss": None, "step": None, "optimizer": optimizer, "device": torch.device("cpu")}
    return SimpleNamespace(
        **parts, config=config, schedule=ConstantLR(), actions=(), rhythm=SimpleNamespace(accumulate=1)
    )


@torch.no_grad()
def compare(kind: str, settings: list[dict[str, Any]], dtype: Any = torch.float64) -> float:
    """Return the greatest difference of a weight or of the state, relative to 1, after any of 50 steps."""
    alone = [make_run(kind, one, seed, dtype) for seed, one in enumerate(settings)]
    runs = [make_run(kind, one, seed, dtype) for seed, one in enumerate(settings)]
    stack = Stack(runs)
    optimizer = make_stacked_optimizer(stack, AlikeJobs(runs))
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for step in range(STEPS):
        for name, parameter in stack.parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            for row, run in enumerate(alone):
                run.model.get_parameter(name.removeprefix("model.")).grad = parameter.grad[row].clone()
        for run, other in zip(alone, runs, strict=True):
            for group in (*run.optimizer.param_groups, *other.optimizer.param_groups):
                group["lr"] *= 0.98  # as a schedule does
            run.optimizer.step()
        optimizer.step()
        if step == STEPS // 2:  # one leaves
            stack.keep([0, 2, 3, 4])
            optimizer.keep([0, 2, 3, 4], AlikeJobs(stack.runs))
            alone, runs = ([them[row] for row in (0, 2, 3, 4)] for them in (alone, runs))
    for row, (run, other) in enumerate(zip(alone, runs, strict=True)):
        optimizer.write_steps(row)
        ours, theirs = other.optimizer.state_dict(), run.optimizer.state_dict()
        pairs = [*zip(other.model.parameters(), run.model.parameters(), strict=True)]
        for number, entry in theirs["state"].items():
            assert {name for name, part in entry.items() if part is not None} == ours["state"].get(number, {}).keys()
            pairs += [(ours["state"][number][name], part) for name, part in entry.items() if part is not None]
        worst = max(worst, *(float(((one - two).abs() / (1 + two.abs())).max()) for one, two in pairs))
    return worst


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_stack_updates_as_torch_does(kind):
    """25 random settings of each kind, 5 jobs a stack: all within 1e-6 after 50 steps, state and weights."""
    draw = random.Random(kind)
    flags = {"SGD": [{}], "RMSprop": [{}, {"centered": True}]}.get(kind, [{}, {"amsgrad": True}])
    worst = []
    for _ in range(5):
        shared = draw.choice(flags)
        worst.append(compare(kind, [draw_settings(kind, draw) | shared for _ in range(JOBS)]))

    assert max(worst) < 1e-6


def test_equal_settings_update_as_torch_does():
    """What does not differ is one number, which takes other kernels."""
    worst = [compare(kind, [draw_settings(kind, random.Random(3))] * JOBS) for kind in ("SGD", "AdamW", "RMSprop")]

    assert max(worst) < 1e-6


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_jobs_alike_are_updated_by_one_kernel(kind, monkeypatch):
    """Of two groups of equal settings each is updated by torch's fused kernel, in fp32, as torch does alone."""
    draw, calls = random.Random(kind), []
    kernel = getattr(torch, name := f"_fused_{kind.lower()}_")
    monkeypatch.setattr(torch, name, lambda *args, **named: (calls.append(args), kernel(*args, **named))[1])
    one, other = draw_settings(kind, draw), draw_settings(kind, draw)
    one |= {"momentum": 0.9} if kind == "SGD" else {}
    worst = compare(kind, [one, one, other, other, other], torch.float32)

    assert worst < 1e-6
    assert len(calls) > STEPS


def test_each_job_clips_by_its_own_norm():
    """A norm, a value, both and neither, in one stack, as torch's functions clip."""
    trains = [{"clip_norm": 0.5}, {"clip_value": 0.1}, {"clip_norm": 1.0, "clip_value": 0.3}, {}]
    plain = {"clip_norm": None, "clip_value": None}
    runs = [make_run("SGD", {"lr": 0.1}, seed, **(plain | train)) for seed, train in enumerate(trains)]
    stack = Stack(runs)
    expected = []
    for parameter in stack.parameters.values():
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64)
    for row, train in enumerate(trains):
        grads = [nn.Parameter(torch.zeros_like(parameter[row])) for parameter in stack.parameters.values()]
        for own, parameter in zip(grads, stack.parameters.values(), strict=True):
            own.grad = parameter.grad[row].clone()
        if "clip_value" in train:
            nn.utils.clip_grad_value_(grads, train["clip_value"])
        if "clip_norm" in train:
            nn.utils.clip_grad_norm_(grads, train["clip_norm"])
        expected.append([own.grad for own in grads])
    StackedClipping(stack)()

    for row, own in enumerate(expected):
        for grad, parameter in zip(own, stack.parameters.values(), strict=True):
            torch.testing.assert_close(parameter.grad[row], grad, rtol=1e-12, atol=1e-12)
