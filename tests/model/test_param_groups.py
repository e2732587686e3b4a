"""Parameter groups: who is in which, with what settings, and what torch makes of them."""

import copy
import io
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from runner.core.errors import ConfigError
from runner.model.param_groups import Group, build_groups, compare_groups, number_layers

SGD = torch.optim.SGD


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.bn1 = nn.BatchNorm2d(2)
        self.layer1 = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.layer1(self.bn1(self.conv1(x))).mean((2, 3)))


def names(groups):
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


def mistakes(groups, model=None, optimizer=SGD, settings=None):
    with pytest.raises(ConfigError) as caught:
        build_groups(model or Net(), groups, optimizer, {"lr": 0.1} if settings is None else settings)
    return caught.value.mistakes


def test_the_first_group_that_matches_takes_a_parameter_and_the_rest_is_default():
    model = Net()
    groups = build_groups(
        model,
        [Group("no_decay", [r".*\.bias"], {"weight_decay": 0}), Group("head", [r"fc\..*"], lr_mult=0.5)],
        SGD,
        {"lr": 0.1},
    )
    assert names(groups) == {
        "no_decay": ["conv1.bias", "bn1.bias", "layer1.0.bias", "layer1.1.bias", "fc.bias"],
        "head": ["fc.weight"],
        "default": ["conv1.weight", "bn1.weight", "layer1.0.weight", "layer1.1.weight"],
    }
    assert groups[0]["weight_decay"] == 0
    assert groups[1]["lr"] == 0.05


def test_without_groups_there_is_one():
    assert list(names(build_groups(Net(), [], SGD, {"lr": 0.1}))) == ["default"]


def test_lr_mult_goes_by_the_optimizers_own_default():
    (head, _) = build_groups(Net(), [Group("head", [r"fc\..*"], lr_mult=0.1)], torch.optim.Adam, {})
    assert head["lr"] == pytest.approx(1e-4)


def test_one_dimension_at_most_is_biases_and_norms():
    no_decay, default = build_groups(
        Net(), [Group("no_decay", [".*"], {"weight_decay": 0}, max_dims=1)], SGD, {"lr": 1.0}
    )
    assert [name for name, _ in default["params"]] == ["conv1.weight", "layer1.0.weight", "fc.weight"]
    assert len(no_decay["params"]) == 7


NAMES = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD"
OPTIMIZERS = [getattr(torch.optim, name) for name in NAMES.split()]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_groups_work_with_every_optimizer_and_are_saved_by_name(kind):
    model = Net()
    groups = build_groups(
        model, [Group("head", [r"fc\..*"], {"lr": 0.5}), Group("slow", ["conv1.*"], lr_mult=0.1)], kind, {}
    )
    optimizer = kind(groups)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["param_groups"]
    assert [group["name"] for group in saved] == ["head", "slow", "default"]
    assert saved[0]["param_names"] == ["fc.weight", "fc.bias"]
    assert saved[0]["lr"] == 0.5
    compare_groups(saved, optimizer.state_dict()["param_groups"])


def test_the_other_optimizers_take_the_group_that_fits_them():
    """Muon is for matrices, SparseAdam for sparse gradients, and LBFGS has one group only."""
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True))
    for kind in (torch.optim.Muon, torch.optim.SparseAdam, torch.optim.LBFGS):
        assert kind(build_groups(model, [], kind, {"lr": 0.1}), lr=0.1).param_groups[0]["name"] == "default"


def test_schedulers_take_a_list_in_the_order_of_the_groups():
    model = Net()
    optimizer = SGD(build_groups(model, [Group("head", [r"fc\..*"], lr_mult=0.5)], SGD, {"lr": 0.1}), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.5, 0.1], total_steps=10)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    optimizer = SGD(build_groups(model, [Group("head", [r"fc\..*"], lr_mult=0.5)], SGD, {"lr": 0.1}), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 0.1, lambda _: 1.0])
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.005), 0.1]


def test_two_groups_are_bitwise_those_of_a_training_script():
    """Five losses of the two-group SGD that users write by hand."""
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    groups = build_groups(model, [Group("head", [r"fc\..*"], lr_mult=10)], SGD, {"lr": 0.01})
    ours = SGD(groups, lr=0.01, momentum=0.9)
    head = list(map(id, twin.fc.parameters()))
    base = filter(lambda p: id(p) not in head, twin.parameters())
    theirs = SGD([{"params": base}, {"params": twin.fc.parameters(), "lr": 0.1}], lr=0.01, momentum=0.9)
    losses = []
    for net, optimizer in ((model, ours), (twin, theirs)):
        torch.manual_seed(1)
        losses.append([])
        for _ in range(5):
            x, y = torch.randn(8, 1, 6, 6), torch.randint(3, (8,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_layers_are_counted_from_the_input_in_any_model():
    from torchvision import models

    with torch.device("meta"):
        resnet, vit = number_layers(models.resnet18()), number_layers(models.vit_b_16())
    residual = {"conv1.weight": 0, "bn1.weight": 0, "layer1.0.bn2.bias": 1, "layer4.1.conv2.weight": 8, "fc.bias": 9}
    transformer = {
        **dict.fromkeys(("class_token", "encoder.pos_embedding", "conv_proj.weight"), 0),
        **{f"encoder.layers.encoder_layer_{i}.mlp.0.weight": i + 1 for i in range(12)},
        "encoder.ln.weight": 12,
        "heads.head.weight": 13,
    }
    assert {name: resnet[name] for name in residual} == residual
    assert {name: vit[name] for name in transformer} == transformer
    assert number_layers(Net()) == {
        "conv1.weight": 0, "conv1.bias": 0, "bn1.weight": 0, "bn1.bias": 0,
        "layer1.0.weight": 1, "layer1.0.bias": 1, "layer1.1.weight": 1, "layer1.1.bias": 1,
        "fc.weight": 2, "fc.bias": 2,
    }  # fmt: skip
    assert number_layers(nn.Linear(2, 2)) == {"weight": 0, "bias": 0}


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "vgg11_bn", "efficientnet_b0", "swin_t", "convnext_tiny", "vit_b_16"]
)
def test_every_parameter_has_a_layer(name):
    from torchvision import models

    with torch.device("meta"):
        model = getattr(models, name)()
    layers = number_layers(model)
    assert list(layers) == [parameter for parameter, _ in model.named_parameters()]
    assert sorted(set(layers.values())) == list(range(max(layers.values()) + 1))


def test_layer_decay_makes_a_group_a_layer():
    groups = build_groups(
        Net(),
        [
            Group("no_decay", [".*"], {"weight_decay": 0}, layer_decay=0.5, max_dims=1),
            Group("layer", [".*"], layer_decay=0.5),
        ],
        SGD,
        {"lr": 0.8},
    )
    assert {group["name"]: group["lr"] for group in groups} == {
        "no_decay_0": 0.2, "no_decay_1": 0.4, "no_decay_2": 0.8, "layer_0": 0.2, "layer_1": 0.4, "layer_2": 0.8,
    }  # fmt: skip


def test_tied_parameters_are_in_one_group():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    groups = build_groups(model, [Group("b", [r"b\..*"], lr_mult=0.1)], SGD, {"lr": 1.0})
    assert names(groups) == {"b": ["a.weight", "b.bias"], "default": ["a.bias"]}


@pytest.mark.parametrize(
    ("group", "key", "words"),
    [
        (Group("g", ["fcc.*"]), "param_groups.g.match", "did you mean `fc"),
        (Group("g", ["fc"]), "param_groups.g.match", r"did you mean `fc\..*`?"),
        (Group("g", ["fc\\..*", "nowhere"]), "param_groups.g.match", "must match a parameter, but is 'nowhere'"),
        (Group("g", ["(fc"]), "param_groups.g.match", "must be a regular expression"),
        (Group("g", ["fc\\..*"], {"weight_decy": 0}), "param_groups.g.weight_decy", "did you mean `weight_decay`?"),
        (Group("g", ["fc\\..*"], {"betas": [0.9, 0.9]}), "param_groups.g.betas", "must be a setting of SGD"),
        (Group("g", ["fc\\..*"], {"lr": 1.0}, lr_mult=2), "param_groups.g.lr_mult", "must not stand beside `lr`"),
        (Group("g", ["fc\\..*"], {"lr": -1.0}), "param_groups.g.lr", "Invalid learning rate"),
        (Group("g", ["fc\\.weight"], max_dims=1), "param_groups.g", "at most 1 dimensions"),
        (Group("default", ["fc\\..*"]), "param_groups.default", "choose another"),
    ],
)
def test_a_group_that_cannot_work_is_a_mistake(group, key, words):
    (mistake,) = mistakes([group])
    assert mistake.key == key
    assert words in str(mistake)


def test_a_group_without_trainable_parameter_is_a_mistake():
    model = Net()
    model.fc.requires_grad_(False)
    (mistake,) = mistakes([Group("head", [r"fc\..*"])], model)
    assert "all 2 that it matches are frozen" in str(mistake)
    (mistake,) = mistakes([Group("all", [".*"]), Group("dead", ["conv1.*"], optional=False)], Net())
    assert "`all` comes first" in str(mistake)
    assert list(names(build_groups(model, [Group("head", [r"fc\..*"], optional=True)], SGD, {"lr": 0.1}))) == [
        "default"
    ]
    (mistake,) = mistakes([], Net().requires_grad_(False))
    assert mistake.key == "freeze.params"


def test_lr_mult_needs_a_rate():
    def without_rate(params, momentum=0.9):
        return SGD(params, lr=0.1, momentum=momentum)

    (mistake,) = mistakes([Group("g", ["fc\\..*"], lr_mult=2)], None, without_rate, {})
    assert "needs a learning rate" in str(mistake)


def test_a_resume_with_changed_groups_is_refused_by_name():
    def saved(groups):
        return SGD(build_groups(Net(), groups, SGD, {"lr": 0.1}), lr=0.1).state_dict()["param_groups"]

    head, bias = Group("head", [r"fc\..*"]), Group("bias", [r".*\.bias"])
    compare_groups(saved([head]), saved([head]))
    for old, new in (([head], [bias]), ([head, bias], [bias, head]), ([], [head])):
        with pytest.raises(ConfigError, match=r"`fc\.(weight|bias)` was in group `\w+` when the checkpoint was taken"):
            compare_groups(saved(old), saved(new))
    with pytest.raises(ConfigError, match="must be in the checkpoint's order"):
        compare_groups(saved([head]), saved([head])[::-1])


@pytest.mark.parametrize("name", ["no_decay", "layer_decay", "head_backbone"])
def test_a_ready_option_works_on_any_classifier(name):
    from torchvision import models

    written = yaml.safe_load(Path(f"conf/param_groups/{name}.yaml").read_text())
    own = {"lr_mult", "layer_decay", "max_dims"}
    groups = [
        Group(
            label,
            [group["match"]],
            {k: v for k, v in group.items() if k not in own | {"match"}},
            **{k: v for k, v in group.items() if k in own},
        )
        for label, group in written.items()
    ]
    with torch.device("meta"):
        for build in (models.resnet18, models.vit_b_16, models.densenet121, models.swin_t):
            built = build_groups(build(), groups, SGD, {"lr": 0.1})
            assert len(built) >= 2
            rates = [group.get("lr", 0.1) for group in built]
            assert len(set(rates)) > 1 or name == "no_decay"
