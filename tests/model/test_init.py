"""Init rules: what they match, what they do to which tensors, and that every tensor has a stream of its own."""

import copy
import functools
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from runner.core import rng
from runner.core.errors import ConfigError, RunError
from runner.model.init import InitRow, Rule, apply_function, apply_rules, plan_rules

normal = functools.partial(nn.init.normal_, std=0.5)


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)


class Net(nn.Module):
    """A norm, blocks, an attention, a bare parameter, a buffer, and a head tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 4), 9.0))
        self.register_buffer("scale", torch.full((2,), 9.0))
        self.bn1 = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(), Block())
        self.attention = nn.MultiheadAttention(4, 2)
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def mistakes(*rules, model=None):
    with pytest.raises(ConfigError) as caught:
        plan_rules(model or Net(), rules)
    return caught.value.mistakes


def test_the_first_matching_rule_counts_for_each_tensor():
    model = Net()
    rows = apply_rules(
        model,
        [
            Rule("first", nn.BatchNorm2d, r"blocks\.0\.bn1", {"weight": 0.25}),
            Rule("norm", nn.BatchNorm2d, None, {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}),
        ],
        seed=0,
    )
    state = model.state_dict()
    expected = {
        "blocks.0.bn1.weight": [0.25],
        "blocks.0.bn1.bias": [2],
        "blocks.1.bn2.weight": [1],
        "bn1.running_mean": [3],
        "bn1.running_var": [4],
    }
    assert {name: state[name].unique().tolist() for name in expected} == expected
    by_name = {row.tensor: row for row in rows}
    assert by_name["blocks.0.bn1.weight"] == InitRow("blocks.0.bn1.weight", "first", "init.rules.first.weight", 0.25)
    assert by_name["token"] == InitRow("token")
    assert list(by_name) == [name for name in _names(model) if name != "head.weight"]


def _names(model):
    """Names in the order of modules, a module's parameters before its buffers."""
    for prefix, module in model.named_modules():
        for name, _ in [
            *module.named_parameters(prefix, recurse=False, remove_duplicate=False),
            *module.named_buffers(prefix, recurse=False),
        ]:
            yield name


def test_any_parameter_or_buffer_can_be_named():
    model = Net()
    rules = [
        Rule("root", None, "", {"token": 1, "scale": 2}),
        Rule("attention", nn.MultiheadAttention, None, {"in_proj_weight": nn.init.xavier_uniform_, "in_proj_bias": 3}),
        Rule("count", nn.BatchNorm2d, None, {"num_batches_tracked": 4}),
    ]
    apply_rules(model, rules, 0)
    assert model.token.unique().tolist() == [1]
    assert model.scale.unique().tolist() == [2]
    assert model.attention.in_proj_bias.unique().tolist() == [3]
    assert model.bn1.num_batches_tracked == 4


def test_subclasses_count_and_types_may_be_several():
    class Mine(nn.Conv2d):
        pass

    model = nn.Sequential(Mine(1, 1, 1), nn.Linear(1, 1), nn.Conv1d(1, 1, 1))
    apply_rules(model, [Rule("both", (nn.Conv2d, nn.Linear), None, {"bias": 7})], 0)
    assert [layer.bias.item() == 7 for layer in model] == [True, True, False]


def test_last_takes_the_last_of_each_parent():
    model = Net()
    rows = plan_rules(model, [Rule("zero", nn.BatchNorm2d, r".*\.bn\d", {"weight": 0}, last=True)])
    assert [row.tensor for row in rows if row.rule] == ["blocks.0.bn2.weight", "blocks.1.bn2.weight"]


def test_a_tensor_is_the_same_whatever_else_there_is():
    """Its stream is `(seed, 'init', name)`: other rules, other layers, and the global generator do not matter."""
    small, large = nn.Sequential(nn.Linear(3, 5)), nn.Sequential(nn.Linear(3, 5), nn.Conv2d(1, 9, 3))
    apply_rules(small, [Rule("linear", nn.Linear, None, {"weight": normal})], 3)
    torch.manual_seed(5)
    rules = [
        Rule("conv", nn.Conv2d, None, {"weight": normal}),
        Rule("rest", None, "0", {"weight": normal, "bias": normal}),
    ]
    apply_rules(large, rules, 3)
    assert torch.equal(small[0].weight, large[0].weight)
    expected = torch.empty(5, 3)
    with rng.stream(rng.derive_key(3, "init", "0.weight")):
        nn.init.normal_(expected, std=0.5)
    assert torch.equal(small[0].weight, expected)
    other = nn.Sequential(nn.Linear(3, 5))
    apply_rules(other, rules[1:], 4)
    assert not torch.equal(other[0].weight, expected)


def test_initialising_draws_nothing_from_the_global_generator():
    model = Net()
    before = torch.get_rng_state()
    apply_rules(model, [Rule("all", nn.Conv2d, None, {"weight": normal})], 0)
    apply_function(model, lambda module: [nn.init.normal_(p) for p in module.parameters(recurse=False)], 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tied_tensor_is_filled_once_by_the_first_rule_that_names_it():
    calls = []
    model = Net()
    rules = [
        Rule("head", nn.Linear, "head", {"weight": lambda tensor: calls.append(tensor) or tensor.fill_(1)}),
        Rule("embedding", nn.Embedding, None, {"weight": 2}, optional=True),
    ]
    rows = apply_rules(model, rules, 0)
    assert len(calls) == 1
    assert model.embedding.weight.unique().tolist() == [1]
    assert [row.rule for row in rows if row.tensor == "embedding.weight"] == ["head"]


def test_a_function_is_handed_to_apply_as_it_is():
    """The same as `model.apply(f)`, each module under its own stream."""

    def weight_init(module):
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
            module.bias.fill_(0.5)

    model = Net()
    twin = copy.deepcopy(model)
    changed = apply_function(model, weight_init, 7)
    names = {module: name for name, module in twin.named_modules()}

    def seeded(module):
        with torch.no_grad(), rng.stream(rng.derive_key(7, "init", names[module])):
            weight_init(module)

    twin.apply(seeded)
    assert all(torch.equal(a, b) for a, b in zip(values(model).values(), values(twin).values(), strict=True))
    assert changed == [n for n in _names(model) if "conv" in n or ("bn" in n and n.endswith(("weight", "bias")))]


def test_a_function_that_changes_nothing_is_a_mistake():
    with pytest.raises(ConfigError, match=r"init\.apply must change a tensor of the model"):
        apply_function(Net(), nn.Module.eval, 0)


def test_rules_are_matched_on_the_meta_device():
    with torch.device("meta"):
        model = Net()
    rows = plan_rules(model, [Rule("norm", nn.BatchNorm2d, None, {"weight": 1})])
    assert sum(row.rule == "norm" for row in rows) == 5


@pytest.mark.parametrize(
    ("rule", "key", "words"),
    [
        (Rule("r", nn.Conv3d, None, {"weight": 0}), "init.rules.r.module", "but the model has no Conv3d"),
        (Rule("r", None, "haed", {"weight": 0}), "init.rules.r.name", "did you mean `head`?"),
        (Rule("r", None, r"head\.bias", {"weight": 0}), "init.rules.r.name", "is a tensor: write `name: 'head'`"),
        (Rule("r", None, "head(", {"weight": 0}), "init.rules.r.name", "must be a regular expression"),
        (Rule("r", nn.Conv2d, None, {"wieght": 0}), "init.rules.r.wieght", "did you mean `weight`?"),
        (Rule("r", nn.Conv2d, None, {"bias": 0}), "init.rules.r.bias", "None in every Conv2d"),
        (Rule("r", None, "blocks", {"weight": 0}), "init.rules.r.weight", "its children do"),
        (Rule("r", nn.Conv2d, None, {}), "init.rules.r", "must say what happens to a tensor"),
        (
            Rule("r", nn.BatchNorm2d, None, {"num_batches_tracked": 0.5}),
            "init.rules.r.num_batches_tracked",
            "whole numbers",
        ),
        (
            Rule("r", nn.BatchNorm2d, None, {"weight": functools.partial(nn.init.kaiming_normal_, mode="fan_out")}),
            "init.rules.r.weight",
            "bn1.weight [4] (and 4 more): Fan in and fan out can not be computed",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_a_mistake(rule, key, words):
    (mistake,) = mistakes(rule)
    assert mistake.key == key
    assert words in str(mistake)


def test_a_shadowed_rule_is_a_mistake_and_all_mistakes_come_together():
    first = Rule("first", nn.BatchNorm2d, None, {"weight": 1})
    found = mistakes(
        first, Rule("dead", None, r"bn1", {"weight": 0, "bias": 0}), Rule("none", None, "nowhere", {"bias": 0})
    )
    assert [mistake.key for mistake in found] == ["init.rules.dead.weight", "init.rules.none.name"]
    assert "`first` comes first for every tensor" in str(found[0])


def test_optional_excuses_what_matches_nothing():
    rules = [
        Rule("norm", nn.BatchNorm2d, None, {"weight": 1}),
        Rule("dead", nn.BatchNorm2d, None, {"weight": 1}, optional=True),
        Rule("bias", nn.Conv2d, None, {"bias": 0}, optional=True),
        Rule("none", nn.Conv3d, None, {"weight": 0}, optional=True),
    ]
    assert {row.rule for row in plan_rules(Net(), rules)} == {None, "norm"}


def test_a_mistake_leaves_the_model_untouched():
    model = Net()
    before = values(model)
    with pytest.raises(ConfigError):
        apply_rules(
            model, [Rule("good", nn.Conv2d, None, {"weight": 0}), Rule("bad", nn.Conv3d, None, {"weight": 0})], 0
        )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), values(model).values(), strict=True))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.zeros_like, "gives a new tensor"),
        (lambda tensor: tensor.nothing, "refuses head.bias [10]: AttributeError"),
    ],
)
def test_a_function_that_does_not_change_its_tensor_in_place_fails(function, words):
    with pytest.raises(RunError, match=r"init\.rules\.r\.bias: ") as caught:
        apply_rules(Net(), [Rule("r", None, "head", {"bias": function})], 0)
    assert words in str(caught.value)


def test_a_lazy_layer_has_no_tensor_to_initialise_yet():
    (mistake,) = mistakes(Rule("r", nn.Linear, None, {"weight": 0}), model=nn.Sequential(nn.LazyLinear(3)))
    assert "no shape before the first forward" in str(mistake)


def _shipped(name):
    """The rules of a file in conf/init, with torch's own functions."""

    def resolve(path):
        package, _, last = path.rpartition(".")
        return getattr(__import__(package, fromlist=[last]), last)

    written = yaml.safe_load(Path(f"conf/init/{name}.yaml").read_text())["rules"]
    for label, rule in written.items():
        types = rule.pop("module", None)
        module = tuple(resolve(t) for t in ([types] if isinstance(types, str) else types)) if types else None
        options = {key: rule.pop(key) for key in ("optional", "last") if key in rule}
        pattern = rule.pop("name", None)
        tensors = {
            key: functools.partial(resolve(value.pop("_target_")), **value) if isinstance(value, dict) else value
            for key, value in rule.items()
        }
        yield Rule(label, module, pattern, tensors, **options)


@pytest.mark.parametrize("name", ["constant", "kaiming", "xavier", "orthogonal", "truncated_normal", "zero_gamma"])
def test_a_ready_option_works_on_resnets_and_plain_networks(name):
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    for block in (BasicBlock, Bottleneck):
        model = ResNet(block, [2, 1, 1, 1], num_classes=3)
        model.layer2 = model.layer3 = model.layer4 = nn.Identity()  # 10 s of orthogonal matrices
        rows = {row.tensor: row for row in apply_rules(model, list(_shipped(name)), 0)}
        assert rows["bn1.weight"].rule == "norm"
        assert model.bn1.weight.unique().tolist() == [1]
        last = "layer1.0.bn2.weight" if "layer1.0.bn3.weight" not in rows else "layer1.0.bn3.weight"
        assert model.state_dict()[last].unique().tolist() == [0 if name == "zero_gamma" else 1]
        assert model.state_dict()["layer1.0.bn1.weight"].unique().tolist() == [1]
        weight = model.conv1.weight
        assert (weight.unique().tolist() == [pytest.approx(0.01)]) if name == "constant" else weight.std() > 0.001
    if name != "zero_gamma":
        apply_rules(nn.Sequential(nn.Linear(2, 2)), list(_shipped(name)), 0)
