"""Freezing: no gradient, no optimizer state, no decay, kept statistics; and thawing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from runner.core.errors import ConfigError
from runner.model.freeze import freeze, unfreeze
from runner.model.param_groups import build_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(self.embedding(x)[:, None]).flatten(1))


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.tensor([0, 1, 2])), torch.tensor([0, 1, 2])).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_frozen_parameter_gets_no_gradient_no_state_and_no_decay(kind):
    model = Net()
    before = model.embedding.weight.clone()
    frozen = freeze(model, [r"embedding\..*"])
    optimizer = kind(build_groups(model, [], kind, {}), lr=0.1, weight_decay=0.5)
    step(model, optimizer)
    assert list(frozen.params) == ["embedding.weight"]
    assert model.embedding.weight.grad is None
    assert torch.equal(model.embedding.weight, before)
    assert "embedding.weight" not in optimizer.param_groups[0]["param_names"]
    assert all(parameter is not model.embedding.weight for parameter in optimizer.state)


def test_frozen_norms_keep_their_statistics_through_every_train():
    model = Net()
    frozen = freeze(model, [r"body\..*"], norm_stats=True)
    assert list(frozen.norms) == ["body.1", "body.2"]  # the second has no parameters: its statistics match
    before = model.body[1].running_mean.clone()
    for module in (model, model.body, model.body[1], copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        module.train()
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)).train()):
        assert one.training
        assert not one.body[1].training
        one(torch.tensor([0, 1, 2]))
        assert torch.equal(one.body[1].running_mean, before)
    unfreeze(model, frozen)
    model(torch.tensor([0, 1, 2]))
    assert not torch.equal(model.body[1].running_mean, before)
    assert model.eval().train().body[1].training


def test_without_norm_stats_frozen_norms_go_on_measuring():
    model = Net().train()
    freeze(model, [r"body\..*"])
    before = model.body[1].running_mean.clone()
    model(torch.tensor([0, 1, 2]))
    assert not torch.equal(model.body[1].running_mean, before)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_thawed_parameters_train_in_the_group_that_was_theirs(kind):
    """The optimizer has them from the start and leaves them alone: bitwise the same as adding them at the thaw."""
    model = Net()
    twin = copy.deepcopy(model)
    frozen = freeze(model, [r"embedding\..*"])
    optimizer = kind(build_groups(model, [], kind, {}, thawing=frozen.params), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        step(model, optimizer)
    unfreeze(model, frozen)
    unfreeze(model, frozen)  # again is harmless
    twin.embedding.weight.requires_grad_(False)
    by_hand = kind([p for p in twin.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        step(twin, by_hand)
    assert torch.equal(twin.embedding.weight, model.embedding.weight)
    twin.embedding.weight.requires_grad_(True)
    by_hand.add_param_group({"params": [twin.embedding.weight]})
    for _ in range(2):
        step(model, optimizer)
        step(twin, by_hand)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert model.embedding.weight.requires_grad


def test_a_tied_parameter_answers_to_each_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert list(freeze(model, [r"b\.weight"]).params) == ["a.weight"]


def test_what_the_model_froze_itself_stays_frozen_after_the_thaw():
    model = Net()
    model.fc.bias.requires_grad_(False)
    unfreeze(model, freeze(model, [r"fc\..*"]))
    assert not model.fc.bias.requires_grad
    assert model.fc.weight.requires_grad


@pytest.mark.parametrize(
    ("patterns", "norm_stats", "key", "words"),
    [
        (["embeding\\..*"], False, "freeze.params[0]", "did you mean `embedding"),
        (["embedding"], False, "freeze.params[0]", r"did you mean `embedding\..*`?"),
        (["fc\\.(", "fc\\..*"], False, "freeze.params[0]", "must be a regular expression"),
        (["fc\\..*", "fc\\.bias"], False, "freeze.params[1]", "that earlier patterns do not"),
        (["fc\\..*"], True, "freeze.norm_stats", "finds no frozen normalisation layer"),
        ([], True, "freeze.norm_stats", "finds no frozen normalisation layer"),
    ],
)
def test_a_setting_without_effect_is_a_mistake_and_freezes_nothing(patterns, norm_stats, key, words):
    model = Net()
    with pytest.raises(ConfigError) as caught:
        freeze(model, patterns, norm_stats=norm_stats)
    (mistake,) = caught.value.mistakes
    assert mistake.key == key
    assert words in str(mistake)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_patterns_are_matched_on_the_meta_device():
    with torch.device("meta"):
        model = Net()
    assert list(freeze(model, ["fc\\..*"]).params) == ["fc.weight", "fc.bias"]
