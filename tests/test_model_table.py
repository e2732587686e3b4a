import io
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner.model_table import model_table


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

    table = model_table(model, meta(2, 3, 6, 6))

    found = rows(table)
    assert list(found) == ["(model)", "conv", "norm", "head", "unused"]
    assert found["conv"].type == "Conv2d"
    assert [found[n].output for n in ("conv", "head", "unused")] == ["2x8x6x6", "2x10", ""]
    assert found["(model)"].output == "logits: 2x10, features: 2x8"
    assert [found[n].trainable for n in found] == [8, 8 * 3 * 9 + 8, 0, 90, 6]
    assert [found[n].frozen for n in found] == [0, 0, 16, 0, 0]
    assert [found[n].macs for n in found] == [0, 2 * 36 * 8 * 27, 0, 2 * 80, 0]
    assert (table.total.trainable, table.total.frozen) == (8 + 224 + 90 + 6, 16)
    assert table.total.macs == 2 * 36 * 8 * 27 + 160
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
    table = model_table(build(nn.Linear, 4, 3), inputs())

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

    table = model_table(model, meta(2, 5, 8))

    assert table.total.macs == counter.get_total_flops() // 2 > 0
    assert table.total.trainable == sum(p.numel() for p in model.parameters())
    found = rows(table)
    assert found["block.0"].macs == 2 * 10 * 64
    assert found["tied"].trainable == 8  # its weight stands at the first
    assert found["(model)"].macs == 2 * 5 * 5 * 8
    assert found["encoder.linear1"].macs == 10 * 8 * 16


def test_a_forward_that_fails_leaves_the_parameters_and_says_why():
    model = build(nn.Sequential, nn.Linear(4, 3), nn.Linear(4, 3))

    table = model_table(model, meta(2, 4))

    assert table.total.trainable == 30
    assert "RuntimeError" in table.problem
    assert "\n" not in table.problem
    assert table.problem in str(table)


def test_the_model_is_left_as_it_was():
    model = build(Net)
    model.train()
    model.norm.eval()
    model_table(model, meta(1, 3, 6, 6))

    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_batch_of_one_goes_through_a_batch_norm_of_one_pixel():
    assert model_table(build(nn.BatchNorm1d, 4), meta(1, 4)).problem == ""


def test_it_draws_no_random_number():
    model = build(nn.Sequential, nn.Dropout(), nn.Linear(4, 3))
    before = torch.get_rng_state()
    model_table(model, meta(2, 4))

    assert torch.equal(before, torch.get_rng_state())


def test_plain_text_is_aligned_and_rich_draws_the_same_cells():
    from rich.console import Console

    table = model_table(build(Net), meta(1, 3, 32, 32))

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

    table = model_table(build(torchvision.models.resnet50), meta(1, 3, 224, 224))

    assert table.total.trainable == 25_557_032
    assert math.isclose(table.total.macs, 4.09e9, rel_tol=1e-3)
    assert rows(table)["layer4.2.conv3"].output == "1x2048x7x7"
