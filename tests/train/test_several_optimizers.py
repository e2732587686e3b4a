"""Several optimizers in the place of one, and how an optimizer is made for a device."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from runner.experiment.builders import train as train_builder
from runner.train.optimizer_step.closure import is_custom_step, needs_closure
from runner.train.optimizer_step.several_optimizers import Optimizers
from runner.train.steps import supervised


def made(seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2)})
    groups = {
        name: [{"params": list(model[name].named_parameters(name)), "name": name}]  # as the runner hands them over
        for name in ("a", "b")
    }
    first = torch.optim.SGD(groups["a"], lr=0.1, momentum=0.9)
    return model, Optimizers(a=first, b=torch.optim.AdamW(groups["b"], lr=0.01))


def step(model, optimizer):
    model["b"](torch.relu(model["a"](torch.ones(5, 3)))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_its_groups_are_those_of_its_members_the_same_objects():
    """So a scheduler's rates hold for them, also after a checkpoint was loaded."""
    model, optimizer = made()
    _, again = made(1)
    step(model, optimizer)
    again.load_state_dict(optimizer.state_dict())
    for one in (optimizer, again):
        scheduler = torch.optim.lr_scheduler.StepLR(one, 1, 0.5)
        one.step()
        scheduler.step()

        assert [group["name"] for group in one.param_groups] == ["a", "b"]
        assert one["a"].param_groups[0] is one.param_groups[0]
        assert [one["a"].param_groups[0]["lr"], one["b"].param_groups[0]["lr"]] == [0.05, 0.005]


def test_its_state_is_plain_and_goes_back_and_forth():
    model, optimizer = made()
    for _ in range(3):
        step(model, optimizer)
    saved = deepcopy(optimizer.state_dict())  # as a file is: torch shares tensors otherwise
    other, again = made(1)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(saved)
    for pair in ((model, optimizer), (other, again)):
        step(*pair)

    assert saved.keys() == {"state", "param_groups"}
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    assert [group["param_names"] for group in saved["param_groups"]] == [["a.weight", "a.bias"], ["b.weight", "b.bias"]]
    assert set(optimizer.state) == set(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_parameter_has_one_optimizer():
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="more than one"):
        Optimizers(a=torch.optim.SGD([parameter]), b=torch.optim.SGD([parameter]))


@pytest.mark.parametrize(
    ("node", "device", "fused"),
    [
        ({"_target_": "torch.optim.AdamW", "lr": 0.1}, "cuda", True),
        ({"_target_": "torch.optim.SGD", "lr": 0.1}, "cuda:1", True),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "foreach": True}, "cuda", None),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "fused": False}, "cuda", False),
        ({"_target_": "torch.optim.Adam", "capturable": True}, "cuda", None),
        ({"_target_": "torch.optim.RMSprop"}, "cuda", None),
        ({"_target_": "torch.optim.AdamW", "lr": 0.1}, "cpu", None),
        ({"_target_": "torch.optim.AdamW", "lr": 0.1}, "mps", None),
    ],
)
def test_fused_is_chosen_on_a_gpu_where_nothing_is_said(node, device, fused):
    assert train_builder.set_fused(node, torch.device(device)).get("fused") is fused


def test_what_asks_for_a_closure_or_for_the_optimizer():
    parameter = [nn.Parameter(torch.ones(2))]

    class Stepping:
        def __call__(self, batch, model, loss, optimizer):
            pass

    assert needs_closure(torch.optim.LBFGS(parameter))
    assert not needs_closure(torch.optim.Adam(parameter))
    assert is_custom_step(Stepping())
    assert not is_custom_step(supervised)
