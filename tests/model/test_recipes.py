"""Files that plain PyTorch scripts write, and ten cases that other libraries solve: every tensor against its source."""

import copy
import re
import warnings
import zipfile

import pytest
import torch
import torchvision
from torch import nn

from runner.core.errors import ConfigError
from runner.model.pretrained.load import load, prepare
from runner.model.pretrained.plan import Options

models = torchvision.models


def other(build, **arguments):
    """A model with weights that no fresh one has."""
    torch.manual_seed(3)
    model = build(**arguments)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else torch.full_like(tensor, 9))
    return model


def resnet(**arguments):
    """torchvision's ResNet, thin enough for a test: one block a stage."""
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **arguments)


@pytest.fixture(scope="module")
def source():
    return other(resnet, num_classes=5)


def taken(tmp_path, saved, options, model, **how):
    """What the model holds after loading the file, and the plan."""
    torch.save(saved, tmp_path / "w.pth")
    made = prepare(model, str(tmp_path / "w.pth"), options, **how)
    load(model, made)
    return model.state_dict(), made


def equal(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


# Files of plain scripts


@pytest.mark.parametrize(
    "build", ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "efficientnet_b0"]
)
@pytest.mark.parametrize("written", ["new", "legacy", "safetensors"])
def test_torchvisions_own_models(tmp_path, build, written):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, model = other(getattr(models, build)), getattr(models, build)()
    file = tmp_path / "w.pth"
    if written == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(source.state_dict(), file)
    else:
        torch.save(source.state_dict(), file, _use_new_zipfile_serialization=written == "new")
    load(model, prepare(model, str(file), Options("full")))
    assert equal(model.state_dict(), source.state_dict())


WRAPPED = {
    "state_dict": (lambda s: s, Options("full")),
    "a checkpoint of a training script": (
        lambda s: {"epoch": 12, "arch": "resnet18", "state_dict": s, "best_acc1": torch.tensor(71.2), "loss": 0.3},
        Options("full"),
    ),
    "DataParallel": (lambda s: {f"module.{k}": v for k, v in s.items()}, Options("full", strip_prefix="module.")),
    "compiled": (
        lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
        Options("full", strip_prefix="_orig_mod."),
    ),
    "compiled and parallel": (
        lambda s: {"net": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        Options("full", strip_prefix="module._orig_mod."),
    ),
    "half precision": (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, Options("full")),
    "parameters": (
        lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
        Options("full"),
    ),
    "lightning": (
        lambda s: {
            "state_dict": {f"model.{k}": v for k, v in s.items()},
            "optimizer_states": [],
            "loops": {},
            "epoch": 1,
        },
        Options("full", strip_prefix="model."),
    ),
    "a backbone of a larger model": (
        lambda s: {**{f"backbone.{k}": v for k, v in s.items()}, "neck.weight": torch.ones(2, 2)},
        Options("filtered", strip_prefix="backbone."),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_files_that_scripts_write(tmp_path, source, name):
    wrap, options = WRAPPED[name]
    expected = source.state_dict()
    if name == "half precision":
        expected = {k: v.half().float() if v.is_floating_point() else v for k, v in expected.items()}
    state, made = taken(tmp_path, wrap(source.state_dict()), options, resnet(num_classes=5))
    assert equal(state, expected)
    assert made.loaded == len(expected)


def test_a_real_data_parallel_and_a_real_compiled_model(tmp_path, source):
    for wrapped, prefix in ((nn.DataParallel(source), "module."), (torch.compile(source), "_orig_mod.")):
        state, _ = taken(tmp_path, wrapped.state_dict(), Options("full", strip_prefix=prefix), resnet(num_classes=5))
        assert equal(state, source.state_dict())


def test_the_optimizer_beside_the_model_does_no_harm(tmp_path, source):
    optimizer = torch.optim.Adam(source.parameters())
    for parameter in source.parameters():
        parameter.grad = torch.ones_like(parameter)
    trained = copy.deepcopy(source)
    optimizer.step()
    saved = {
        "model": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
    }
    state, _ = taken(tmp_path, saved, Options("full"), resnet(num_classes=5))
    assert equal(state, trained.state_dict())


def test_a_file_saved_on_a_gpu_loads_where_there_is_none(tmp_path, source):
    """Its storages say `cuda:1`; the archive is otherwise the same."""
    torch.save(source.state_dict(), tmp_path / "cpu.pth")
    with zipfile.ZipFile(tmp_path / "cpu.pth") as old, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as new:
        for record in old.infolist():
            here, there = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1"
            data = old.read(record)
            assert not record.filename.endswith("data.pkl") or here in data
            new.writestr(record.filename, data.replace(here, there) if record.filename.endswith("data.pkl") else data)
    model = resnet(num_classes=5)
    load(model, prepare(model, str(tmp_path / "gpu.pth"), Options("full")))
    assert equal(model.state_dict(), source.state_dict())


# Ten cases that others solve


def test_1_data_parallel(tmp_path, source):
    """PyTorch's forum, a thousand times: keys with `module.`."""
    saved = {f"module.{name}": value for name, value in source.state_dict().items()}
    with pytest.raises(ConfigError, match=r"from: '\^module\\\.', to: ''"):
        taken(tmp_path, saved, Options("full"), resnet(num_classes=5))
    state, _ = taken(tmp_path, saved, Options("full", rename=[(r"^module\.", "")]), resnet(num_classes=5))
    assert equal(state, source.state_dict())


def test_2_compiled(tmp_path, source):
    """torch.compile wraps inner modules too: the prefix stands within names."""
    saved = {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name): value for name, value in source.state_dict().items()}
    state, _ = taken(tmp_path, saved, Options("full", rename=[(r"\._orig_mod\.", ".")]), resnet(num_classes=5))
    assert equal(state, source.state_dict())


def test_3_an_ema_key(tmp_path, source):
    """timm's `use_ema`: the average beside the model."""
    average = {name: value * 0 for name, value in source.state_dict().items()}
    saved = {"state_dict": source.state_dict(), "state_dict_ema": average, "arch": "resnet"}
    state, _ = taken(tmp_path, saved, Options("full"), resnet(num_classes=5))
    assert equal(state, source.state_dict())
    state, _ = taken(tmp_path, saved, Options("full"), resnet(num_classes=5), key="state_dict_ema")
    assert equal(state, average)


def test_4_a_nested_key(tmp_path, source):
    state, made = taken(tmp_path, {"ckpt": {"model": source.state_dict()}}, Options("full"), resnet(num_classes=5))
    assert equal(state, source.state_dict())
    assert made.said == ["found under the key `ckpt.model`"]


def test_5_suffix_matching(tmp_path, source):
    """detectron2's `align_and_update_state_dicts`: the model's names end like the file's."""
    detector = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": resnet(num_classes=5)}), "head": nn.Linear(2, 2)})
    saved = {"model": source.state_dict(), "__author__": "somebody"}
    with pytest.raises(ConfigError) as caught:
        taken(tmp_path, saved, Options("partial"), detector)
    assert "{from: '^', to: 'backbone.bottom_up.'}" in str(caught.value)
    state, _ = taken(tmp_path, saved, Options("partial", rename=[("^", "backbone.bottom_up.")]), detector)
    assert equal(
        {k.removeprefix("backbone.bottom_up."): v for k, v in state.items() if "backbone" in k}, source.state_dict()
    )


def test_6_revise_keys(tmp_path, source):
    """mmengine's `revise_keys=[(r'^module\\.', ''), (r'^encoder\\.', 'backbone.')]`."""
    model = nn.ModuleDict({"backbone": resnet(num_classes=5)})
    saved = {"meta": {"epoch": 1}, "state_dict": {f"module.encoder.{n}": v for n, v in source.state_dict().items()}}
    revise_keys = [(r"^module\.", ""), (r"^encoder\.", "backbone.")]
    state, _ = taken(tmp_path, saved, Options("full", rename=revise_keys), model)
    assert equal(state, {f"backbone.{n}": v for n, v in source.state_dict().items()})


def test_7_another_number_of_classes(tmp_path, source):
    """timm's `num_classes=10` on weights of 5: the head stays new, and must be the only thing that does."""
    options = Options("partial", exclude=[r"fc\..*"], expect_missing=[r"fc\..*"])
    model = resnet(num_classes=10)
    fresh = copy.deepcopy(model.state_dict())
    state, made = taken(tmp_path, source.state_dict(), options, model)
    assert [row.name for row in made.rows if row.action == "left"] == ["fc.weight", "fc.bias"]
    assert equal(state, source.state_dict() | {name: fresh[name] for name in ("fc.weight", "fc.bias")})


def test_8_a_first_convolution_of_one_channel(tmp_path, source):
    """timm's `in_chans=1`: the sum over the channels."""
    model = resnet(num_classes=5)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    state, _ = taken(tmp_path, source.state_dict(), Options("full", shape_mismatch="sum"), model)
    expected = source.state_dict()["conv1.weight"].float().sum(dim=1, keepdim=True)
    assert equal(state, source.state_dict() | {"conv1.weight": expected})


def test_9_a_position_embedding_of_another_grid(tmp_path):
    """torchvision's `interpolate_embeddings`, to the bit."""

    def vit(size):
        return models.VisionTransformer(size, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)

    source = other(vit, size=32)
    expected = models.vision_transformer.interpolate_embeddings(64, 8, copy.deepcopy(source.state_dict()))
    state, made = taken(tmp_path, source.state_dict(), Options("full", shape_mismatch="interpolate"), vit(64))
    assert equal(state, expected)
    row = next(row for row in made.rows if row.action == "interpolate")
    assert (row.name, row.note) == ("encoder.pos_embedding", "a grid of 4x4 to 8x8 after 1 token")


def test_10_the_old_densenet_names(tmp_path):
    """torchvision's classic densenet161 file: `norm.1` for `norm1`, and no batch counts."""
    with torch.device("meta"):
        target = models.densenet161()
        names = list(target.state_dict())
    small = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 3}
    old = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))((?:[12])\.(?:weight|bias|running_mean|running_var))$")
    assert sum(bool(old.match(name)) for name in names) > 700
    source = other(models.DenseNet, **small)
    saved = {old.sub(r"\1.\2", n): v for n, v in source.state_dict().items() if "num_batches" not in n}
    with pytest.raises(ConfigError) as caught:
        taken(tmp_path, saved, Options("full"), models.DenseNet(**small))
    assert all(
        rule in str(caught.value) for rule in (r"from: '\.norm\.(\d+)\.', to: '.norm\1.'", r"from: '\.conv\.(\d+)\.")
    )
    model = models.DenseNet(**small)
    counts = {n: v.clone() for n, v in model.state_dict().items() if "num_batches" in n}
    state, _ = taken(tmp_path, saved, Options("full", rename=[(r"\.(norm|conv)\.(\d)\.", r".\1\2.")]), model)
    assert equal(state, source.state_dict() | counts)
