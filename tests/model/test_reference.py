"""The snippets that people keep in their notes, by hand and by us: the same tensors, the same losses, bitwise."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from runner.core import rng
from runner.model.freeze import freeze
from runner.model.init import Rule, apply_function, apply_rules
from runner.model.param_groups import Group, build_groups
from runner.model.pretrained.load import load, plan
from runner.model.pretrained.plan import Options


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


@pytest.fixture
def pair():
    """Two equal networks, and the weights of a third."""
    torch.manual_seed(0)
    ours = Net()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    return ours, theirs, Net().state_dict()


def five_losses(model, optimizer):
    torch.manual_seed(7)
    losses = []
    for _ in range(5):
        x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=1e-3)


def same(ours, theirs, our_optimizer=None, their_optimizer=None):
    states = [model.state_dict() for model in (ours, theirs)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    losses = five_losses(ours, our_optimizer or sgd(ours)), five_losses(theirs, their_optimizer or sgd(theirs))
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_a_filtered_dict_and_update(pair):
    ours, theirs, saved = pair
    saved = {name: value for name, value in saved.items() if name != "fc.bias"} | {"aux.weight": torch.ones(2)}
    model_dict = theirs.state_dict()
    pretrained_dict = {k: v for k, v in saved.items() if k in model_dict}
    model_dict.update(pretrained_dict)
    theirs.load_state_dict(model_dict)
    load(ours, plan(ours, saved, Options("filtered")))
    same(ours, theirs)


def test_a_filter_by_shape(pair):
    ours, theirs, _ = pair
    saved = Net(classes=9).state_dict()
    model_dict = theirs.state_dict()
    model_dict.update({k: v for k, v in saved.items() if k in model_dict and v.shape == model_dict[k].shape})
    theirs.load_state_dict(model_dict)
    load(ours, plan(ours, saved, Options("filtered", shape_mismatch="skip")))
    same(ours, theirs)


def test_strict_false(pair):
    ours, theirs, saved = pair
    del saved["fc.weight"]
    saved["extra"] = torch.ones(1)
    theirs.load_state_dict(saved, strict=False)
    load(ours, plan(ours, saved, Options("partial")))
    same(ours, theirs)


def test_a_single_layer(pair):
    ours, theirs, saved = pair
    theirs.conv1.weight.data.copy_(saved["conv1.weight"])
    load(ours, plan(ours, saved, Options("layers", layers=["conv1.weight"])))
    same(ours, theirs)


def test_a_layer_from_another_name(pair):
    ours, theirs, saved = pair
    theirs.layer1[0].load_state_dict({"weight": saved["layer1.0.weight"], "bias": saved["layer1.0.bias"]})
    renamed = {f"stem.{name.removeprefix('layer1.0.')}": value for name, value in saved.items() if "layer1.0" in name}
    load(ours, plan(ours, renamed, Options("layers", layers={"stem": "layer1.0"})))
    same(ours, theirs)


def test_freezing_named_children(pair):
    ours, theirs, _ = pair
    for name, child in theirs.named_children():
        if name in {"conv1", "bn1"}:
            for parameter in child.parameters():
                parameter.requires_grad = False
    freeze(ours, [r"(conv1|bn1)\..*"])
    same(ours, theirs)


def test_freezing_all_but_the_head(pair):
    ours, theirs, _ = pair
    for parameter in theirs.parameters():
        parameter.requires_grad = False
    for parameter in theirs.fc.parameters():
        parameter.requires_grad = True
    freeze(ours, [r"(?!fc\.).*"])
    same(ours, theirs)


def test_freezing_batch_norm_in_eval_mode(pair):
    ours, theirs, _ = pair

    class Theirs(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def train(self, mode=True):
            super().train(mode)
            self.net.bn1.eval()
            return self

        def forward(self, x):
            return self.net(x)

    wrapped = Theirs(theirs)
    theirs.bn1.requires_grad_(False)
    freeze(ours, [r"bn1\..*"], norm_stats=True)
    ours.train()
    wrapped.train()
    assert five_losses(ours, sgd(ours)) == five_losses(wrapped, sgd(wrapped))
    assert torch.equal(ours.bn1.running_mean, theirs.bn1.running_mean)


def test_two_groups_of_sgd(pair):
    ours, theirs, _ = pair
    by_hand = torch.optim.SGD(
        [
            {"params": [p for n, p in theirs.named_parameters() if "fc" not in n]},
            {"params": theirs.fc.parameters(), "lr": 0.1},
        ],
        lr=0.01,
        momentum=0.9,
    )
    groups = build_groups(
        ours, [Group("head", [r"fc\..*"], lr_mult=10)], torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}
    )
    same(ours, theirs, torch.optim.SGD(groups, lr=0.01, momentum=0.9), by_hand)


def test_no_decay_for_biases_and_norms(pair):
    ours, theirs, _ = pair
    decay = [p for p in theirs.parameters() if p.dim() > 1]
    no_decay = [p for p in theirs.parameters() if p.dim() <= 1]
    by_hand = torch.optim.AdamW(
        [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}], lr=1e-3, weight_decay=0.1
    )
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    groups = build_groups(
        ours, [Group("no_decay", [".*"], {"weight_decay": 0.0}, max_dims=1)], torch.optim.AdamW, settings
    )
    same(ours, theirs, torch.optim.AdamW(groups, **settings), by_hand)


def test_weight_init_with_apply(pair):
    """The classic constants, as rules and as the function itself."""
    ours, theirs, _ = pair

    def weight_init(m):
        if isinstance(m, nn.Conv2d):
            nn.init.constant_(m.weight, 0.01)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, 1)
            nn.init.constant_(m.bias, 0)
            nn.init.constant_(m.running_mean, 0)
            nn.init.constant_(m.running_var, 1)

    by_function = copy.deepcopy(ours)
    theirs.apply(weight_init)
    apply_function(by_function, weight_init, 0)
    norm = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    apply_rules(ours, [Rule("conv", nn.Conv2d, None, {"weight": 0.01}), Rule("norm", nn.BatchNorm2d, None, norm)], 0)
    same(by_function, copy.deepcopy(theirs))
    same(ours, theirs)


def test_kaiming_over_modules(pair):
    """`for m in model.modules()`, under the stream of each tensor."""
    ours, theirs, _ = pair
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d):
            with rng.stream(rng.derive_key(5, "init", f"{name}.weight")):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    apply_rules(ours, [Rule("conv", nn.Conv2d, None, {"weight": _kaiming})], 5)
    same(ours, theirs)


def _kaiming(tensor):
    return nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu")


def test_a_resnet_for_fine_tuning():
    """Weights of 9 classes, a new head, and a tenth of the rate for the backbone."""
    torch.manual_seed(0)
    saved = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=9).state_dict()
    ours = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    theirs = copy.deepcopy(ours)
    theirs.load_state_dict({k: v for k, v in saved.items() if not k.startswith("fc.")}, strict=False)
    load(ours, plan(ours, saved, Options("partial", exclude=[r"fc\..*"], expect_missing=[r"fc\..*"])))
    by_hand = torch.optim.SGD(
        [
            {"params": theirs.fc.parameters()},
            {"params": [p for n, p in theirs.named_parameters() if n[:3] != "fc."], "lr": 0.005},
        ],
        lr=0.05,
    )
    groups = [Group("head", [r"fc\..*"]), Group("backbone", [".*"], lr_mult=0.1)]
    same(ours, theirs, torch.optim.SGD(build_groups(ours, groups, torch.optim.SGD, {"lr": 0.05}), lr=0.05), by_hand)
