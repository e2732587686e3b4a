import io
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner.model.summary import build_model_table


def meta(*shape):
    return torch.empty(shape, device="meta")


def build(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def rows(table):
    return {row.name: row for row in table.rows}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3)) * self.scale
        return {"logits": self.head(x), "features": (x, None)}


def test_one_row_a_layer_with_shapes_parameters_and_multiplications():
    model = build(Net)
    model.norm.requires_grad_(requires_grad=False)
    table = build_model_table(model, meta(2, 3, 6, 6))
    found = [(row.name, row.type, row.output, row.trainable, row.frozen, row.macs) for row in table.rows]
    total = table.total

    assert found == [
        ("(model)", "Net", "logits: 2x10, features: 2x8", 8, 0, 0),
        ("conv", "Conv2d", "2x8x6x6", 8 * 3 * 9 + 8, 0, 2 * 36 * 8 * 27),
        ("norm", "BatchNorm2d", "2x8x6x6", 0, 16, 0),
        ("head", "Linear", "2x10", 90, 0, 2 * 80),
        ("unused", "Linear", "", 6, 0, 0),
    ]
    assert (total.trainable, total.frozen, total.macs) == (8 + 224 + 90 + 6, 16, 2 * 36 * 8 * 27 + 160)
    assert table.problem == ""


@pytest.mark.parametrize(
    ("inputs", "call"),
    [
        (lambda: meta(2, 4), "tensor"),
        (lambda: [meta(2, 4)], "list"),
        (lambda: (meta(2, 4),), "tuple"),
        (lambda: {"input": meta(2, 4)}, "dict"),
    ],
)
def test_inputs_may_be_a_tensor_arguments_or_keyword_arguments(inputs, call):
    table = build_model_table(build(nn.Linear, 4, 3), inputs())

    assert table.total.macs == 24, call


class Shared(nn.Module):
    """A layer called twice, another one tied to it, attention in a module that is not a leaf, a product of its own."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.again = self.block
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.block[0].weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        x = self.tied(self.again(self.block(x)))
        x = self.encoder(self.attention(x, x, x, need_weights=False)[0])
        return x @ x.transpose(1, 2)


def test_the_rows_add_up_to_the_counters_total_and_the_models_parameters():
    model = build(Shared)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.train()(meta(2, 5, 8))

    table = build_model_table(model, meta(2, 5, 8))

    assert table.total.macs == counter.get_total_flops() // 2 > 0
    assert table.total.trainable == sum(p.numel() for p in model.parameters())
    found = rows(table)
    assert found["block.0"].macs == 2 * 10 * 64
    assert found["tied"].trainable == 8  # its weight stands at the first
    assert found["(model)"].macs == 2 * 5 * 5 * 8
    assert found["encoder.linear1"].macs == 10 * 8 * 16


def test_a_forward_that_fails_leaves_the_parameters_and_says_why():
    model = build(nn.Sequential, nn.Linear(4, 3), nn.Linear(4, 3))

    table = build_model_table(model, meta(2, 4))

    assert table.total.trainable == 30
    assert "RuntimeError" in table.problem
    assert "\n" not in table.problem
    assert table.problem in str(table)


def test_the_model_is_left_as_it_was():
    model = build(Net)
    model.train()
    model.norm.eval()
    build_model_table(model, meta(1, 3, 6, 6))

    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_batch_of_one_goes_through_a_batch_norm_of_one_pixel():
    assert build_model_table(build(nn.BatchNorm1d, 4), meta(1, 4)).problem == ""


def test_it_draws_no_random_number():
    model = build(nn.Sequential, nn.Dropout(), nn.Linear(4, 3))
    before = torch.get_rng_state()
    build_model_table(model, meta(2, 4))

    assert torch.equal(before, torch.get_rng_state())


def test_plain_text_is_aligned_and_rich_draws_the_same_cells():
    from rich.console import Console

    table = build_model_table(build(Net), meta(1, 3, 32, 32))

    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "type", "output", "shape", "trainable", "frozen", "MACs"]
    assert lines[-1].split() == ["total", "344", "0", f"{table.total.macs:,}"]
    assert len({len(line) for line in lines}) == 1
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    drawn = console.export_text()
    assert all(cell in drawn for cells in table.cells() for cell in cells)


def test_resnet50_at_224_has_the_published_numbers():
    """25.557 M parameters, 4.09 G multiply-accumulates: torchvision's model card of IMAGENET1K_V2."""
    torchvision = pytest.importorskip("torchvision")

    table = build_model_table(build(torchvision.models.resnet50), meta(1, 3, 224, 224))

    assert table.total.trainable == 25_557_032
    assert math.isclose(table.total.macs, 4.09e9, rel_tol=1e-3)
    assert rows(table)["layer4.2.conv3"].output == "1x2048x7x7"


# From the model cards in torchvision's documentation (torchvision/models/*.py): `num_params`, and `_ops` in billions of
# multiply-accumulates to three decimals, at 224x224.
PUBLISHED = {
    "resnet50": (25_557_032, 4.089),
    "vgg16": (138_357_544, 15.470),
    "densenet161": (28_681_000, 7.728),
}
# One of each family for every day, all of them under `exhaustive`. Without `init_weights` the two build on meta.
FAMILIES = {
    "alexnet": {},
    "convnext_tiny": {},
    "efficientnet_b0": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"init_weights": False},
    "maxvit_t": {},
    "mnasnet0_5": {},
    "mobilenet_v3_small": {},
    "regnet_y_400mf": {},
    "resnext50_32x4d": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "swin_t": {},
    "vit_b_32": {},
    "wide_resnet50_2": {},
}


def counted(model, inputs):
    """What `torch.utils.flop_counter` counts, as multiply-accumulates forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        output = model.eval()(inputs)
        forward = counter.get_total_flops()
        (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
    return forward // 2, (counter.get_total_flops() - forward) // 2


def check_torchvision(name, **kwargs):
    models = pytest.importorskip("torchvision").models
    if name.startswith("regnet"):  # asks tensors for their values while it is built
        model = models.get_model(name, **kwargs).to("meta")
    else:
        model = build(models.get_model, name, **kwargs)
    card = next(iter(models.get_model_weights(name))).meta
    side = max(card["min_size"][0], 299 if name == "inception_v3" else 224)
    side = getattr(model, "image_size", side)  # a transformer's own: the first weights of vit_h_14 are for a larger one

    table = build_model_table(model, meta(1, 3, side, side), training=True)

    assert (table.total.macs, table.total.backward) == counted(model, meta(1, 3, side, side))
    assert table.problem == ""
    assert table.total.activations > 0
    return table.total, card


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    """Parameters exactly, multiply-accumulates to three decimals of a billion, and backward as the counter has it."""
    total, card = check_torchvision(name)

    assert PUBLISHED[name] == (total.trainable, round(total.macs / 1e9, 3))
    assert PUBLISHED[name] == (card["num_params"], card["_ops"])


SLOW = ("inception_v3", "maxvit_t")  # seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SLOW)) for name in FAMILIES]
)
def test_every_family_of_torchvision(name):
    """Forward and backward of each family run on the meta device and agree with the counter and with its card."""
    total, card = check_torchvision(name, **FAMILIES[name])

    assert card["num_params"] == total.trainable
    assert card["_ops"] == pytest.approx(total.macs / 1e9, abs=1.5e-3)


@pytest.mark.exhaustive
def test_every_classifier_of_torchvision():
    """All eighty of them."""
    models = pytest.importorskip("torchvision").models
    for name in models.list_models(module=models):
        init = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        check_torchvision(name, **init)


def test_backward_and_activations_of_each_layer_by_hand():
    """A linear layer multiplies twice as often backwards, unless its input needs no gradient; it keeps its input."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Dropout(0.5)).to("meta")
    model.train()

    found = rows(build_model_table(model, meta(5, 4), training=True))

    assert [found[name].macs for name in "0123"] == [5 * 4 * 8, 0, 5 * 8 * 3, 0]
    assert [found[name].backward for name in "0123"] == [5 * 4 * 8, 0, 2 * 5 * 8 * 3, 0]
    # The input; the ReLU's output, which the next layer keeps too; nothing more; the dropout's factors.
    assert [found[name].activations for name in "0123"] == [5 * 4 * 4, 5 * 8 * 4, 0, 5 * 3 * 4]


def test_frozen_layers_cost_less():
    """No gradient of a frozen weight, and none at all before the first that trains."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).to("meta")
    model[0].requires_grad_(requires_grad=False)

    total = build_model_table(model, meta(5, 4), training=True).total

    assert (total.backward, total.activations) == (5 * 8 * 3, 5 * 8 * 4)


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


def test_a_checkpointed_layer_pays_again_in_the_backward():
    """Activation checkpointing keeps the input alone, and multiplies once more."""
    model = build(Recomputed)

    total = build_model_table(model, meta(2, 8), training=True).total

    assert (total.macs, total.backward) == counted(model, meta(2, 8))
    assert total.backward == 2 * 8 * 16 * (1 + 1 + 2)  # the first layer again, its weight; both of the second
    assert total.activations == 2 * 8 * 4


def test_the_model_is_left_as_it_was_by_a_backward():
    model = build(Net)
    model.train()
    before = torch.get_rng_state()

    build_model_table(model, meta(2, 3, 6, 6), training=True)

    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or not m.training for m in model.modules())
    assert torch.equal(before, torch.get_rng_state())


def test_plain_data_has_flops_and_the_total():
    data = build_model_table(build(nn.Linear, 4, 3), meta(1, 4), training=True).as_json()

    assert data["total"]["parameters"] == 15
    assert (data["total"]["flops_forward"], data["total"]["flops_backward"]) == (24, 24)
    assert data["layers"][0]["activations"] == 16


@pytest.mark.parametrize(
    ("depth", "names"),
    [
        (1, ["stem", "body", "head"]),
        (2, ["stem", "body.0", "body.1", "head"]),
        (3, ["stem", "body.0.conv", "body.0.act", "body.1.conv", "body.1.act", "head"]),
        (9, ["stem", "body.0.conv", "body.0.act", "body.1.conv", "body.1.act", "head"]),
    ],
)
def test_folded_rows_have_the_numbers_of_all_that_they_hold(depth, names):
    def block():
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3, padding=1), act=nn.ReLU()))

    body, head = nn.Sequential(block(), block()), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3, padding=1), body=body, head=head))
    image = meta(1, 1, 8, 8)
    whole, folded = (build_model_table(model.to("meta"), image, training=True, depth=depth) for depth in (None, depth))
    assert names == [row.name for row in folded.rows]
    assert whole.total == folded.total
    first = rows(folded)[names[1]]
    held = [row for row in whole.rows if f"{row.name}.".startswith(f"{names[1]}.")]
    assert (sum(row.macs for row in held), held[-1].output) == (first.macs, first.output)
