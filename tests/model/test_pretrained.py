"""Pretrained weights: sources, nested keys, prefixes, strategies, shapes, and what must load."""

import hashlib
import http.server
import json
import re
import shlex
import threading
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn
from torch.nn.utils import prune

from runner.config.schema import Pretrained
from runner.core.errors import ConfigError, RunError
from runner.model.pretrained.contents import find_state
from runner.model.pretrained.files import read
from runner.model.pretrained.load import load, plan, prepare
from runner.model.pretrained.locate import locate
from runner.model.pretrained.plan import Options
from runner.model.pretrained.strategies import STRATEGIES, Strategy


class Net(nn.Module):
    """A convolution, a norm, a layer with a name of its own, a head."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, classes)


def trained(**arguments):
    """A network whose every tensor differs from a fresh one's."""
    torch.manual_seed(11)
    model = Net(**arguments)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.full_like(tensor, 7) if "num_batches" in name else torch.rand_like(tensor))
    return model


FRESH = {name: value.clone() for name, value in Net().state_dict().items()}


def fresh(**arguments):
    model = Net(**arguments)
    own = model.state_dict()
    model.load_state_dict({n: v if v.shape == own[n].shape else own[n] for n, v in FRESH.items()})
    return model


def take(state, options, model=None):
    """Load, check that the model holds what the report says, and give the names that were loaded."""
    model = model or fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = plan(model, state, options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    load(model, made)
    after = model.state_dict()
    rows = {row.name: row for row in made.rows if row.name}
    assert rows.keys() == after.keys()
    for name, row in rows.items():
        if row.action in {"loaded", "tied"}:
            assert torch.equal(after[name], state[row.source].to(after[name].dtype))
        elif row.action in {"left", "skipped", "absent"}:
            assert torch.equal(after[name], before[name])
    return {name for name, row in rows.items() if row.action not in {"left", "skipped", "absent"}}


def refused(state, options, model=None):
    """The mistakes; the model is untouched."""
    model = model or fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        plan(model, state, options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return caught.value.mistakes


ALL = set(FRESH)
STATE = trained().state_dict()


def without(*names):
    return {name: value for name, value in STATE.items() if name not in names}


# Strategies and what they expect


def test_full_loads_every_tensor():
    assert take(STATE, Options("full")) == ALL


def test_full_wants_every_key_of_both_sides():
    state = without("fc.bias") | {"extra": torch.ones(1)}
    missing, unused = refused(state, Options("full"))
    assert "1 of 16 are: fc.bias" in str(missing)
    assert "1 are unused: extra" in str(unused)
    assert "fc.bias  left" in str(unused)  # the table


def test_full_lets_what_is_expected_be_missing():
    assert take(without("fc.weight", "fc.bias"), Options("full", expect_missing=[r"fc\..*"])) == ALL - {
        "fc.weight",
        "fc.bias",
    }
    (mistake,) = refused(without("fc.bias", "conv1.bias"), Options("full", expect_missing=[r"fc\..*"]))
    assert "1 of 16 are: conv1.bias" in str(mistake)


def test_filtered_takes_what_exists_in_the_model_and_matches():
    state = STATE | {"extra": torch.ones(1)}
    assert take(state, Options("filtered")) == ALL
    assert take(state, Options("filtered", exclude=[r"fc\..*"])) == ALL - {"fc.weight", "fc.bias"}
    assert take(state, Options("filtered", include=[r"conv1\..*", "fc.bias"])) == {
        "conv1.weight",
        "conv1.bias",
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (Options("filtered", include=["conv1.*", "convv.*"]), "pretrained.include[1]"),
        (Options("filtered", include=["extra", "conv1.*"]), "pretrained.include[0]"),
        (Options("filtered", exclude=["head.*"]), "pretrained.exclude[0]"),
        (Options("layers", layers=["conv1", "conv2"]), "pretrained.layers[1]"),
        (Options("layers", layers=["extra"]), "pretrained.layers[0]"),
        (Options("layers", layers={"conv1": "conv2"}), "pretrained.layers.conv1"),
        (Options("partial", strip_prefix="module."), "pretrained.strip_prefix"),
        (Options("partial", rename=[("^module", "")]), "pretrained.rename[0].from"),
        (Options("full", expect_missing=["head.*"]), "pretrained.expect.missing[0]"),
    ],
)
def test_a_pattern_or_name_that_matches_nothing_is_a_mistake_unless_optional(options, key):
    state = STATE if options.strategy == "full" else STATE | {"extra": torch.ones(1)}
    assert [mistake.key for mistake in refused(state, options)] == [key]
    made = plan(fresh(), state, Options(**vars(options) | {"optional": True}))
    assert any(note.startswith(key) for note in made.notes)


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        (Options("full", layers=["conv1"]), "pretrained.layers", "no effect with the strategy full"),
        (Options("layers"), "pretrained.layers", "must name what"),
        (Options("full", exclude=["fc.*"]), "pretrained.exclude", "no effect with the strategy full"),
        (Options("layers", layers=["conv1"], include=["fc.*"]), "pretrained.include", "no effect"),
        (Options("partial", rename=[("(", "")]), "pretrained.rename[0].from", "regular expression"),
        (Options("partial", rename=[("fc", r"\3")]), "pretrained.rename[0].to", "replacement"),
        (Options("partial", rename=[("weight|bias", "x")]), "pretrained.rename", "both become `conv1.x`"),
        (Options("partial", expect_loaded=1.5), "pretrained.expect.loaded", "fraction"),
    ],
)
def test_options_that_contradict_each_other_are_mistakes(options, key, words):
    found = refused(STATE, options)
    assert found[0].key == key
    assert words in str(found[0])


def test_layers_takes_tensors_and_whole_layers_also_under_another_name():
    assert take(STATE, Options("layers", layers=["conv1.weight"])) == {"conv1.weight"}
    layer = {f"layer1.{n}" for n in nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).state_dict()}
    assert take(STATE, Options("layers", layers=["layer1", "fc.bias"])) == layer | {"fc.bias"}
    other = {f"stem.{name.removeprefix('conv1.')}": value for name, value in STATE.items() if "conv1" in name}
    assert take(other, Options("layers", layers={"stem": "conv1"})) == {"conv1.weight", "conv1.bias"}
    assert take(other, Options("layers", layers={"stem.bias": "layer1.0.bias"})) == {"layer1.0.bias"}
    (mistake,) = refused(other, Options("layers", layers={"conv1": "stem"}))
    assert "the file's name stands first: `stem: conv1`" in str(mistake)
    (mistake,) = refused(STATE, Options("layers", layers=["conv1", "layr1"]))
    assert mistake.suggestion == "layer1"


def test_partial_takes_what_it_can_and_at_least_one():
    assert take({"fc.bias": STATE["fc.bias"], "x": torch.ones(1)}, Options("partial")) == {"fc.bias"}
    (mistake,) = refused({"x": torch.ones(3)}, Options("partial"))
    assert "must load at least 1 of 16 tensors, but loads 0" in str(mistake)
    assert plan(fresh(), {"x": torch.ones(3)}, Options("partial", optional=True)).loaded == 0


@pytest.mark.parametrize(
    ("wanted", "enough"), [(14, True), (15, False), (14 / 16, True), (0.9, False), (1, True), (1.0, False)]
)
def test_expect_loaded_counts_or_is_a_fraction(wanted, enough):
    state = without("fc.bias", "fc.weight")
    if enough:
        assert len(take(state, Options("partial", expect_loaded=wanted))) == 14
    else:
        (mistake,) = refused(state, Options("partial", expect_loaded=wanted))
        assert mistake.key == "pretrained.expect.loaded"


def test_expect_missing_is_all_that_may_be_missing():
    options = Options("partial", expect_missing=[r"fc\..*"])
    assert len(take(without("fc.bias", "fc.weight"), options)) == 14
    assert len(take(STATE, options)) == 16  # it may, it need not
    (mistake,) = refused(without("conv1.bias"), options)
    assert "conv1.bias" in str(mistake)


# Names


def test_prefixes_then_rename_rules_in_order():
    state = {f"module.{name.replace('layer1', 'old.stage')}": value for name, value in STATE.items()}
    options = Options("full", strip_prefix="module.", rename=[(r"^old\.", "new."), (r"^new\.stage", "layer1")])
    assert take(state, options) == ALL
    backbone = nn.ModuleDict({"backbone": fresh()})
    assert len(take(STATE, Options("full", add_prefix="backbone."), backbone)) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.backbone.{name}",
        lambda name: name.replace("layer1.", "stage.").replace("bn1", "norm"),
        lambda name: name.replace("conv1", "features.conv"),
        lambda name: f"net.{name}".replace("fc", "head.linear"),
        lambda name: name.replace("weight", "kernel"),
        lambda name: name.replace("bn1.weight", "bn1.gamma").replace("bn1.bias", "bn1.beta"),
        lambda name: name.replace("bn1", "bn.1"),
        lambda name: name.removeprefix("layer1."),
    ],
)
def test_the_rename_block_of_an_error_makes_it_load_as_yaml_and_as_argument(change):
    state = {change(name): value for name, value in STATE.items()}
    found = refused(state, Options("full"))
    text = str(found[-1])
    block = found[-1].remedy
    assert "to load 16 of 16:" in text
    lines = block.splitlines()
    pasted = yaml.safe_load("\n".join(lines[lines.index("pretrained:") : -1]))["pretrained"]["rename"]
    argument = shlex.split(lines[-1].removeprefix("or the argument "))
    override = OverridesParser.create().parse_override(argument[0])
    assert argument == [found[-1].suggestion]
    assert override.key_or_group == "pretrained.rename"
    assert override.value() == pasted
    rules = [(rule["from"], rule["to"]) for rule in pasted]
    assert take(state, Options("full", rename=rules)) == ALL
    right = fresh()
    load(right, plan(right, state, Options("full", rename=rules)))
    assert all(torch.equal(STATE[name], value) for name, value in right.state_dict().items())


def test_a_proposal_comes_after_the_rules_that_are_there():
    state = {f"module.{name.replace('fc', 'head')}": value for name, value in STATE.items()}
    found = refused(state, Options("full", rename=[("head", "fc")]))
    assert found[-1].suggestion.startswith('pretrained.rename=[{from: "head", to: "fc"}, {from: ')


def test_names_that_shapes_do_not_explain_get_no_proposal():
    (mistake,) = refused({"a": torch.ones(3), "b": torch.ones(2, 2)}, Options("partial"))
    assert not mistake.suggestion


# Layers that the file holds in parts


class Parts(nn.Module):
    """Two layers, of which one is to be written under a reparametrization."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.3)


REPARAMETRIZATIONS = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "prune": pruned,
    "parametrizations.weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrizations.spectral_norm": nn.utils.parametrizations.spectral_norm,
    "parametrizations.orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, about its older weight_norm
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("way", REPARAMETRIZATIONS)
def test_parts_of_a_weight_are_never_taken_for_it(way, prefix):
    """weight = g v / |v|, orig / sigma, orig mask, …: no rename rule makes these numbers."""
    source = Parts()
    REPARAMETRIZATIONS[way](source.a)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    options = {"strip_prefix": prefix or None}
    for strategy in ("full", "filtered"):
        least = {"expect_loaded": 1.0} if strategy == "filtered" else {}
        said = str(refused(state, Options(strategy, **options, **least), Parts())[-1])
        assert "to load" not in said
        assert "which no rename gives; where it was saved, call torch.nn.utils." in said
    assert "`" + prefix + "a.weight`" in " ".join(plan(Parts(), state, Options("filtered", **options)).notes)
    part = next(name for name in state if "a." in name and state[name].shape == (5, 6))
    rename = [(rf"a\..*{re.escape(part.rpartition('.')[2])}$", "a.weight")]
    (mistake,) = refused(state, Options("filtered", **options, rename=rename), Parts())
    assert f"must not take {part} for a.weight" in str(mistake)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", REPARAMETRIZATIONS)
def test_a_model_that_holds_parts_takes_parts_and_no_whole_weight(way):
    source, model = Parts(), Parts()
    REPARAMETRIZATIONS[way](source.a)
    REPARAMETRIZATIONS[way](model.a)
    state = source.state_dict()
    assert take(state, Options("full"), model) == state.keys()
    renamed = {f"net.{name}": value for name, value in state.items()}
    assert f"to load {len(state)} of {len(state)}" in str(refused(renamed, Options("full"), model)[-1])
    assert "to load" not in str(refused(Parts().state_dict(), Options("full"), model)[-1])


def test_a_rename_that_would_load_far_more_is_said_before_a_partial_load():
    """29 of 105 tensors without a word, where a rename loads all: a mistake, unless `expect` says that it is meant."""
    state = {name.replace("layer1.", "stage.").replace("bn1", "norm"): value for name, value in STATE.items()}
    for strategy in ("filtered", "partial"):
        (mistake,) = refused(state, Options(strategy))
        assert "loads 4 of 16 tensors, and a rename would load 16" in str(mistake)
        assert "pretrained.expect.loaded=4" in str(mistake)
        assert len(take(state, Options(strategy, expect_loaded=4))) == 4
    head = {name.replace("fc.", "head."): value for name, value in STATE.items()}
    made = plan(fresh(), head, Options("filtered"))
    assert made.loaded == 14
    assert any("2 more would load with pretrained.rename=" in note for note in made.notes)
    assert not plan(fresh(), head, Options("filtered", exclude=[r"head\..*"])).notes


# Shapes and dtypes


def test_another_shape_is_a_mistake_or_skipped_and_then_missing():
    model = fresh(classes=9)
    (mistake,) = refused(STATE, Options("partial"), model)
    assert "fc.weight [9, 8] from fc.weight [4, 8]" in str(mistake)
    assert len(take(STATE, Options("partial", shape_mismatch="skip"), model)) == 14
    (mistake,) = refused(STATE, Options("full", shape_mismatch="skip"), model)
    assert "2 of 16 are: fc.weight, fc.bias" in str(mistake)
    assert len(take(STATE, Options("full", shape_mismatch="skip", expect_missing=["fc.*"]), model)) == 14


def test_slice_takes_the_overlap_and_leaves_the_rest():
    model = fresh(classes=9)
    before = model.fc.weight.detach().clone()
    take(STATE, Options("full", shape_mismatch="slice"), model)
    assert torch.equal(model.fc.weight[:4], STATE["fc.weight"])
    assert torch.equal(model.fc.weight[4:], before[4:])
    smaller = fresh(classes=2)
    take(STATE, Options("full", shape_mismatch="slice"), smaller)
    assert torch.equal(smaller.fc.weight, STATE["fc.weight"][:2])


def test_a_plan_made_on_the_meta_device_serves_the_live_model():
    with torch.device("meta"):
        made = plan(Net(classes=9), STATE, Options("full", shape_mismatch="slice"))
    model = fresh(classes=9)
    before = model.fc.weight.detach().clone()
    load(model, made)
    assert torch.equal(model.fc.weight[:4], STATE["fc.weight"])
    assert torch.equal(model.fc.weight[4:], before[4:])


def test_each_shape_has_its_own_way_by_pattern():
    model = fresh(channels=1, classes=9)
    modes = {r"conv1\.weight": "sum", r"fc\..*": "skip"}
    assert len(take(STATE, Options("partial", shape_mismatch=modes), model)) == 14
    assert torch.equal(model.conv1.weight, STATE["conv1.weight"].sum(1, keepdim=True))


def test_more_input_channels_repeat_with_their_scale():
    model = fresh(channels=5)
    take(STATE, Options("full", shape_mismatch="repeat"), model)
    expected = STATE["conv1.weight"].repeat(1, 2, 1, 1)[:, :5] * (3 / 5)  # timm's adapt_input_conv
    assert torch.equal(model.conv1.weight, expected)


@pytest.mark.parametrize(
    ("mode", "model"),
    [("sum", {"channels": 2}), ("repeat", {"channels": 2}), ("interpolate", {"channels": 1}), ("sum", {"classes": 9})],
)
def test_a_shape_that_the_way_does_not_fit_is_a_mistake(mode, model):
    found = refused(STATE, Options("partial", shape_mismatch=mode), fresh(**model))
    assert {mistake.key for mistake in found} == {"pretrained.shape_mismatch"}


def test_half_precision_goes_into_single_and_back():
    half = {n: v.half() if v.is_floating_point() else v for n, v in STATE.items()}
    assert take(half, Options("full")) == ALL
    model = fresh().half()
    assert take(STATE, Options("full"), model) == ALL
    assert model.fc.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fc.bias", torch.tensor([1.0, float("nan"), 0, 0]), "holds NaN"),
        ("fc.bias", torch.tensor([1.0, float("inf"), 0, 0]), "holds infinities"),
        (
            "fc.bias",
            torch.tensor([1, 2, 3, 4], dtype=torch.int8),
            "has whole numbers (int8) where the model has floating point",
        ),
        ("fc.bias", torch.ones(4, dtype=torch.complex64), "complex numbers"),
        ("fc.bias", torch.ones(4, device="meta"), "has no data"),
        ("fc.bias", torch.ones(4).to_sparse(), "is not dense"),
        ("bn1.num_batches_tracked", torch.tensor(1.5), "has floating point"),
        ("bn1.running_mean", torch.full((8,), float("nan")), "holds NaN"),
    ],
)
def test_tensors_without_usable_numbers_are_mistakes(name, value, words):
    (mistake,) = refused(STATE | {name: value}, Options("full"))
    assert words in str(mistake)


def test_numbers_too_large_for_half_precision_are_a_mistake():
    (mistake,) = refused(STATE | {"fc.bias": torch.full((4,), 1e6)}, Options("full"), fresh().half())
    assert "too large for float16" in str(mistake)


def test_masks_of_the_old_uint8_become_bool():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
            self.register_buffer("bias", torch.zeros(2))

    model = Masked()
    load(
        model,
        plan(
            model,
            {"mask": torch.tensor([1, 0, 1], dtype=torch.uint8), "bias": torch.tensor([0, -torch.inf])},
            Options("full"),
        ),
    )
    assert model.mask.tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="does not fit"):
        plan(model, {"mask": torch.tensor([2, 0, 1], dtype=torch.uint8), "bias": torch.zeros(2)}, Options("full"))


def test_tied_weights_load_once_and_must_agree():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
            self.head.weight = self.embedding.weight

    weight = torch.rand(5, 2)
    assert take({"embedding.weight": weight}, Options("full"), Tied()) == {"embedding.weight", "head.weight"}
    assert take({"head.weight": weight}, Options("full"), Tied()) == {"embedding.weight", "head.weight"}
    assert len(take({"head.weight": weight, "embedding.weight": weight.clone()}, Options("full"), Tied())) == 2
    (mistake,) = refused({"head.weight": weight, "embedding.weight": weight + 1}, Options("full"), Tied())
    assert "are one tensor" in str(mistake)


def test_files_of_before_pytorch_0_4_1_have_no_batch_counts():
    state = {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")}
    assert len(take(state, Options("full"))) == 14
    found = refused(state | {"bn1.num_batches_tracked": torch.tensor(1)}, Options("full"))
    assert "layer1.1.num_batches_tracked" in str(found[0])


def test_lazy_layers_take_the_shape_of_the_file():
    model = nn.Sequential(nn.LazyLinear(3))
    load(model, plan(model, {"0.weight": torch.ones(3, 5), "0.bias": torch.ones(3)}, Options("full")))
    assert model[0].weight.shape == (3, 5)


def test_a_model_that_refuses_while_loading_is_as_it_was():
    class Refuses(Net):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)
            raise ValueError("not today")

    model = Refuses()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RunError, match="not today"):
        load(model, plan(model, STATE, Options("full")))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Where the tensors are in a file

NESTED = {
    "flat": (lambda s: s, ""),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "loss": 0.5}, "state_dict"),
    "loss tensor": (lambda s: {"model_state_dict": s, "loss": torch.tensor(0.5)}, "model_state_dict"),
    "optimizer": (lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}, "model"),
    "two levels": (lambda s: {"checkpoint": {"net": s, "epoch": 1}}, "checkpoint.net"),
    "an average too": (lambda s: {"model": s, "model_ema": s, "args": {"lr": torch.tensor(1.0)}}, "model"),
    "only an average": (lambda s: {"ema": {"decay": 0.9, "shadow": s}}, "ema.shadow"),
    "an odd name": (lambda s: {"resnet_weights": s, "date": "today"}, "resnet_weights"),
    "beside strings": (lambda s: {"arch": "resnet", "version": 2, **s}, ""),
    "lightning": (
        lambda s: {
            "state_dict": s,
            "callbacks": {},
            "optimizer_states": [{}],
            "hyper_parameters": {"lr": 1},
            "loops": {},
        },
        "state_dict",
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_the_state_dict_is_found_where_it_usually_is(name):
    wrap, key = NESTED[name]
    found, said = find_state(wrap(STATE))
    assert list(found) == list(STATE)
    assert all(found[name] is STATE[name] for name in STATE)
    assert (f"found under the key `{key}`" in said) == bool(key)
    if key:
        assert find_state(wrap(STATE), key) == (found, [])


def test_an_average_is_taken_when_asked():
    average = {name: value * 0 for name, value in STATE.items()}
    found, _ = find_state({"model": STATE, "ema": {"module": average}}, "ema")
    assert found["fc.bias"] is average["fc.bias"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            [STATE],
            "holds a list of 1, a mapping of tensors at [0]\n   `'pretrained.key=\"0\"'` takes it; or save the mapping",
        ),
        (
            {"models": [STATE, STATE]},
            "a list of 2 is under `models`, a mapping of tensors at [0]\n   `pretrained.key=models.0`",
        ),
        ({}, "holds nothing: an empty dict"),
        ({"state_dict": {}}, "keys state_dict, and none has tensors"),
        (torch.ones(3), "holds a Tensor"),
        (None, "holds a NoneType"),
        ({"epoch": 3, "lr": 0.1}, "keys epoch, lr, and none has tensors"),
        ({"netG": STATE, "netD": STATE}, "more than one state_dict, netG, netD"),
        ({"student": {"model": STATE}, "teacher": STATE}, "student.model, teacher"),
    ],
)
def test_what_holds_no_state_dict_is_a_mistake(raw, words):
    with pytest.raises(ConfigError) as caught:
        find_state(raw)
    assert words in str(caught.value)


def test_a_key_that_is_not_there_is_a_mistake():
    with pytest.raises(ConfigError) as caught:
        find_state({"state_dict": STATE, "ema": STATE}, "statedict")
    (mistake,) = caught.value.mistakes
    assert (mistake.key, mistake.suggestion) == ("pretrained.key", "state_dict")
    assert find_state({"a.b": {"c": STATE}}, "a.b.c")[0] == STATE
    assert find_state({"models": [{}, STATE]}, "models.1")[0] == STATE
    with pytest.raises(ConfigError, match="`models` has 0, 1"):
        find_state({"models": [STATE, STATE]}, "models.2")


def test_mappings_that_hold_each_other_many_times_are_not_searched_for_ever():
    node: dict[str, object] = {}
    for _ in range(4):
        node = {f"{i}": node for i in range(2000)}
    with pytest.raises(ConfigError, match="too many mappings"):
        find_state(node)


# Sources


def save(path, value=STATE):
    torch.save(value, path)
    return path


def test_a_file_with_its_hash(tmp_path):
    file = save(tmp_path / "w.pt")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert prepare(fresh(), str(file), Options("full"), sha256=right).loaded == 16
    with pytest.raises(ConfigError, match="must have the SHA-256 0000"):
        prepare(fresh(), str(file), Options("full"), sha256="0" * 64)


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path):
    save(tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"did you mean `.*/weights.pt`"):
        locate(str(tmp_path / "weigths.pt"))


def test_a_run_directory_gives_its_best_or_what_is_asked(tmp_path):
    from runner.train.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path / "checkpoints", mode="min")
    best = {name: value + 1 for name, value in STATE.items()}
    checkpoints.save({"model": best, "ema": {"fc.bias": STATE["fc.bias"] + 2}}, 1, 0.1)
    checkpoints.save({"model": STATE, "ema": None}, 2, 0.2)
    for path, expected in (
        (tmp_path, best),
        (tmp_path / "checkpoints", best),
        (tmp_path / "best.pt", best),
        (tmp_path / "last.pt", STATE),
        (tmp_path / "checkpoints" / "last.pt", STATE),
    ):
        model = fresh()
        load(model, prepare(model, str(path), Options("full")))
        assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    model = fresh()
    load(model, prepare(model, str(tmp_path), Options("partial"), key="ema"))
    assert torch.equal(model.fc.bias, STATE["fc.bias"] + 2)
    (tmp_path / "checkpoints" / "last.pt").write_bytes(save(tmp_path / "other.pt", best).read_bytes())
    with pytest.raises(ConfigError, match="must have the SHA-256"):
        prepare(fresh(), str(tmp_path / "last.pt"), Options("full"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_a_torchvision_name_is_found_in_the_hub_cache(hub_cache):
    from torchvision import models

    url = models.ResNet18_Weights.IMAGENET1K_V1.url
    file = hub_cache / url.rpartition("/")[2]
    assert locate("IMAGENET1K_V1", builder="torchvision.models.resnet18", download=False) is None
    save(file)
    for name, builder in (
        ("IMAGENET1K_V1", "torchvision.models.resnet18"),
        ("DEFAULT", "torchvision.models.resnet18"),
        ("ResNet18_Weights.IMAGENET1K_V1", ""),
    ):
        located = locate(name, builder=builder)
        assert located.file == file
        assert located.sha256 == "f37072fd"
    with pytest.raises(ConfigError, match="must have the SHA-256 f37072fd"):
        read(located)


@pytest.mark.parametrize(
    ("name", "builder", "words"),
    [
        ("IMAGENET1K_V2", "torchvision.models.resnet18", "must be one of IMAGENET1K_V1"),
        ("IMAGENET1K_V1", "models.cnn.SmallCNN", "give it in full"),
        ("ResNet18_Weights.IMAGENET1K_V9", "", "ResNet18_Weights"),
        ("ResNet19_Weights.IMAGENET1K_V1", "", "torchvision weights name"),
    ],
)
def test_a_torchvision_name_that_does_not_exist_is_a_mistake(name, builder, words):
    with pytest.raises(ConfigError) as caught:
        locate(name, builder=builder)
    assert words in str(caught.value)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; its folder and address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "www"))

        def log_message(self, *_):
            pass

    (tmp_path / "www").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield tmp_path / "www", f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_url_is_downloaded_once_and_verified(hub_cache, server):
    folder, address = server
    file = save(folder / "w.pth")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    url = f"{address}/w.pth"
    assert prepare(fresh(), url, Options("full"), sha256=right, download=False) is None
    assert prepare(fresh(), url, Options("full"), sha256=right).loaded == 16
    file.unlink()
    assert prepare(fresh(), url, Options("full"), sha256=right, download=False).loaded == 16
    with pytest.raises(ConfigError, match="must be given for a URL"):
        prepare(fresh(), url, Options("full"))
    with pytest.raises(RunError, match="cannot be downloaded"):
        prepare(fresh(), url, Options("full"), sha256="1" * 64)
    save(folder / "w.pth", {"other": torch.ones(1)})
    with pytest.raises(RunError, match="it is not kept"):
        prepare(fresh(), url, Options("full"), sha256="2" * 64)
    assert len(list(hub_cache.iterdir())) == 1


def test_safetensors_by_content_not_by_name(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    for name in ("w.safetensors", "w.pt"):
        safetensors.save_file(STATE, tmp_path / name)
        assert prepare(fresh(), str(tmp_path / name), Options("full")).loaded == 16


def test_the_report_says_what_became_of_every_tensor(tmp_path):
    state = without("fc.bias") | {"old": torch.ones(2)}
    made = prepare(fresh(), str(save(tmp_path / "w.pt", {"state_dict": state})), Options("partial"))
    assert made.summary() == (
        "pretrained: 15 of 16 tensors loaded, 1 left at their initialisation, 1 of the file unused "
        f"({tmp_path}/w.pt; found under the key `state_dict`)"
    )
    report = json.loads(json.dumps(made.as_json()))
    assert len(report["tensors"]) == 17
    assert [row["action"] for row in report["tensors"] if row["name"] == "fc.bias"] == ["left"]
    assert report["tensors"][-1]["source"] == "old"
    assert "fc.bias" in made.table()


def test_every_strategy_of_the_schema_is_an_object():
    """`none` loads nothing, so it has none."""
    names = get_args(get_type_hints(Pretrained)["strategy"])

    assert {name for name in names if name != "none"} == {*STRATEGIES}


def test_a_new_strategy_is_one_object(monkeypatch):
    """Only convolutions, without a change elsewhere."""

    def select(given):
        return {name: given.names[name] for name in given.names if getattr(given.target.get(name), "dim", int)() == 4}

    monkeypatch.setitem(STRATEGIES, "convolutions", Strategy(select))
    made = plan(fresh(), STATE, Options("convolutions"))

    assert [row.name for row in made.rows if row.action == "loaded"] == ["conv1.weight", "layer1.0.weight"]
