import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from runner.core import without_dynamo

ROOT = Path(__file__).parents[2]


class Refusal:
    """Finder behind which nobody imports the compiler."""

    @staticmethod
    def find_spec(name, *_):
        if name == "torch._dynamo":
            raise AssertionError(name)


@pytest.fixture
def compiler(monkeypatch):
    """As in a process that has compiled nothing; its import fails."""
    without_dynamo.restore_functions()
    without_dynamo._seen.clear()
    for name in [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusal, *sys.meta_path])
    yield
    without_dynamo.restore_functions()
    without_dynamo._seen.clear()


def train(kind, **settings):
    """Weights after three steps of an optimizer, whose state is put back in between."""
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 0.3)
    nn.init.constant_(model.bias, 0.1)
    without_dynamo.keep_from_dynamo()
    optimizer = kind([{"params": model.parameters(), "lr": 0.1}], **settings)
    without_dynamo.keep_step_from_dynamo(optimizer)
    for _ in range(3):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    return [parameter.detach().clone() for parameter in model.parameters()]


class Mine(torch.optim.SGD):
    """Optimizer of a user, whose step calls torch's."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.LBFGS])
@pytest.mark.usefixtures("compiler")
def test_optimizer_takes_its_steps_without_the_compiler(kind):
    closure = {} if kind is not torch.optim.LBFGS else {"max_iter": 1}
    if closure:
        kind = type("Once", (kind,), {"step": lambda self: torch.optim.LBFGS.step(self, lambda: torch.ones(()))})

    assert 2 == len(train(kind, **closure))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, Mine])
def test_weights_are_those_of_torch(kind, monkeypatch):
    """Bit by bit, also of a class whose step calls torch's."""
    with_it = train(kind, weight_decay=0.1)
    for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
        monkeypatch.delitem(sys.modules, name)
    try:
        without = train(kind, weight_decay=0.1)
    finally:
        without_dynamo.restore_functions()
        without_dynamo._seen.clear()

    assert all(map(torch.equal, with_it, without))


@pytest.mark.usefixtures("compiler")
def test_a_step_hook_is_called_and_gradients_are_back():
    without_dynamo.keep_from_dynamo()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    without_dynamo.keep_step_from_dynamo(optimizer)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(torch.is_grad_enabled()))
    optimizer.step()

    assert called == [True]


@pytest.mark.usefixtures("compiler")
def test_meta_device_needs_no_compiler():
    without_dynamo.keep_from_dynamo()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.GELU(), nn.Dropout(), nn.Linear(4, 2))
    inputs, target = torch.empty(5, 3, device="meta"), torch.empty(5, device="meta", dtype=torch.long)
    loss = nn.functional.cross_entropy(model.to("meta")(inputs), target)
    loss.backward()

    assert loss.is_meta


@pytest.mark.usefixtures("compiler")
def test_whoever_imports_the_compiler_finds_torch_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder is not Refusal])
    before = torch.optim.SGD.step.__wrapped__, vars(torch.optim.Optimizer.zero_grad.__wrapped__).copy()
    train(torch.optim.SGD)
    between = torch.optim.SGD.step.__wrapped__
    importlib.util.find_spec("torch._dynamo")

    assert before == (torch.optim.SGD.step.__wrapped__, vars(torch.optim.Optimizer.zero_grad.__wrapped__))
    assert between is not before[0]


@pytest.mark.usefixtures("compiler")
def test_a_step_that_somebody_has_set_meanwhile_stays(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder is not Refusal])
    train(torch.optim.SGD)
    theirs = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", patched := functools.wraps(theirs)(Mock(wraps=theirs)))
    importlib.util.find_spec("torch._dynamo")

    assert torch.optim.SGD.step is patched


@pytest.mark.usefixtures("compiler")
def test_determinism_is_told_to_the_compiler_that_comes_later(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "0")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        without_dynamo.set_deterministic(on=True, warn_only=True)
        is_set = torch.are_deterministic_algorithms_enabled()
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])

    assert (True, "1") == (is_set, without_dynamo.os.environ["TORCHINDUCTOR_DETERMINISTIC"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("line", ["optimizer=adamw", "experiment=digits_mlp", "experiment=digits_gan"])
@pytest.mark.usefixtures("elsewhere")
def test_a_run_imports_no_compiler(line):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from runner.__main__ import main
status = main(["{line}", "train.duration=2st", "device.type=cpu"])
sys.exit(status or "torch._dynamo" in sys.modules)
"""

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode
