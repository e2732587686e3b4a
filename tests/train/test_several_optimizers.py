"""Several optimizers in the place of one, and how an optimizer is made for a device."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.config.check.check import parse
from runner.core.errors import ConfigError
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.model.freeze import FrozenParameters
from runner.train.optimizer_step.closure import is_custom_step, needs_closure
from runner.train.optimizer_step.several_optimizers import Optimizers
from runner.train.state_dict import change_settings
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


# ---- with the default step: Muon for matrices, AdamW for the rest

MUON = {"_target_": "torch.optim.Muon", "match": ".*", "min_dims": 2, "lr": 0.02, "weight_decay": 0.1}
ADAMW = {"_target_": "torch.optim.AdamW", "match": None, "lr": 0.01, "weight_decay": 0.1}
LINEAR = {"_target_": "torch.optim.lr_scheduler.LinearLR", "start_factor": 1.0, "end_factor": 0.0}
SEVERAL = "runner.train.optimizer_step.several_optimizers.Optimizers"


def settings(muon=None, adamw=None, **more):
    node = {"_target_": "torch.nn.Identity"}
    optimizer = {"_target_": SEVERAL, "muon": MUON | (muon or {}), "adamw": ADAMW | (adamw or {})}
    return parse({"model": node, "loss": None, "optimizer": optimizer, "train": {"duration": "2ep"}} | more)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))


def built(config, model):
    groups = model_builder.make_groups(config, model, FrozenParameters())
    optimizer = train_builder.make_optimizer(config, groups, torch.device("cpu"))
    return optimizer, train_builder.make_schedule(config, optimizer, 4, 8)


def train(model, steps, act):
    for _ in range(steps):
        model(torch.linspace(-1, 1, 12).view(4, 3)).square().mean().backward()
        act()


def test_muon_and_adamw_each_with_groups_and_a_schedule_are_those_by_hand():
    """To the bit; one follows its own schedule and the other that of all."""
    config = settings(
        {"scheduler": LINEAR | {"total_iters": "2ep"}},
        {"param_groups": {"biases": {"match": r".*bias", "weight_decay": 0, "lr_mult": 0.5}}},
        scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": "1ep", "interval": "epoch"},
    )
    model, other = net(), net()
    optimizer, schedule = built(config, model)

    def act():
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    train(model, 4, act)
    schedule.epoch()
    train(model, 4, act)
    muon = torch.optim.Muon([other[0].weight, other[3].weight], lr=0.02, weight_decay=0.1)
    biases = {"params": [other[0].bias, other[2].bias, other[3].bias], "lr": 0.005, "weight_decay": 0}
    adamw = torch.optim.AdamW([biases, {"params": [other[2].weight]}], lr=0.01, weight_decay=0.1)
    linear = torch.optim.lr_scheduler.LinearLR(muon, 1.0, 0.0, 8)
    stepwise = torch.optim.lr_scheduler.StepLR(adamw, 1)

    def by_hand():
        for one in (muon, adamw):
            one.step()
            one.zero_grad()
        linear.step()

    train(other, 4, by_hand)
    stepwise.step()
    train(other, 4, by_hand)

    assert ["muon", "adamw/biases", "adamw"] == [group["name"] for group in optimizer.param_groups]
    assert [p.tolist() for p in other.parameters()] == [p.tolist() for p in model.parameters()]


def test_a_momentum_that_is_cycled_is_that_of_each_optimizer():
    """OneCycleLR looks for it in an optimizer's defaults, which several together do not have."""
    config = settings(
        scheduler={"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": "2ep"}
    )
    optimizer, schedule = built(config, net())
    schedule.step()

    assert optimizer["muon"].param_groups[0]["momentum"] < 0.95
    assert optimizer["adamw"].param_groups[0]["betas"][0] < 0.95


@pytest.mark.parametrize(
    ("muon", "adamw", "key", "said"),
    [
        (
            {"min_dims": None},
            {"match": "0.weight"},
            "optimizer.adamw",
            "`optimizer.muon` comes first for all that it matches",
        ),
        ({}, {"match": "0.bias"}, "optimizer", "none matches 2.weight, 2.bias, 3.bias"),
        ({"min_dims": None}, {}, "optimizer.adamw", "the other optimizers take all of them"),
        ({"match": None}, {}, "optimizer.adamw.match", "must not be null too"),
        ({"min_dims": 3}, {}, "optimizer.muon", "none that it matches has at least 3 dimensions"),
        ({"match": "o.*"}, {}, "optimizer.muon.match", "must match a parameter"),
        ({"param_groups": {"x": {"match": ".*bias"}}}, {}, "optimizer.muon.param_groups.x.match", "must match"),
        (
            {"param_groups": {"x": {"match": "0.*", "lrr": 1}}},
            {},
            "optimizer.muon.param_groups.x.lrr",
            "a setting of Muon",
        ),
    ],
)
def test_each_parameter_has_one_optimizer_or_the_mistake_names_it(muon, adamw, key, said):
    with pytest.raises(ConfigError) as caught:
        built(settings(muon, adamw), net())

    assert [key] == [mistake.key for mistake in caught.value.mistakes]
    assert said in str(caught.value)


def test_the_first_optimizer_that_matches_takes_a_parameter():
    optimizer, _ = built(settings({}, {"match": ".*"}), net())

    assert {2} == {p.dim() for group in optimizer["muon"].param_groups for p in group["params"]}
    assert {1} == {p.dim() for group in optimizer["adamw"].param_groups for p in group["params"]}


def test_groups_at_the_root_are_of_each_optimizer_that_they_match():
    config = settings(param_groups={"first": {"match": r"0\..*", "lr_mult": 0.1}})
    groups = model_builder.make_groups(config, net(), FrozenParameters())

    assert {"muon/first": 0.002, "muon": None, "adamw/first": 0.001, "adamw": None} == {
        group["name"]: group.get("lr") for group in groups
    }


def test_a_new_rate_of_one_optimizer_is_that_of_its_groups_and_of_its_schedule():
    config = settings(scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": "1ep"})
    optimizer, schedule = built(config, net())
    change_settings(SimpleNamespace(optimizer=optimizer, schedule=schedule), {"muon.lr": (0.02, 0.04)})
    for _ in range(4):
        schedule.step()

    assert [pytest.approx(0.004), pytest.approx(0.001)] == [group["lr"] for group in optimizer.param_groups]
