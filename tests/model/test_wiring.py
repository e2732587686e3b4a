"""From a config to the live model: the run, its report, the preflight and `explain` agree on what is done to it."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from runner.config.check.check import check
from runner.config.compose import compose
from runner.core.errors import ConfigError
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.data import make_parts, make_splits
from runner.experiment.preflight.preflight import run_preflight
from runner.train.checkpoint import Checkpoints
from tests.support import list_experiments, mark_slow, read_metrics, read_result, run_in

ROOT = Path(__file__).parents[2]
EXPERIMENTS = mark_slow(list_experiments())
QUICK = ["log.progress=false", "log.tensorboard=false", "device.type=cpu"]


def config_of(*overrides):
    return check(compose(list(overrides)))


def made(config):
    """The model as a run has it when training starts, what was done to it, and its parameter groups."""
    model = model_builder.make_model(config)
    done = model_builder.prepare_model(config, model)
    return model, done, model_builder.make_groups(config, model, done.frozen)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.usefixtures("resnet18_weights")
def test_explain_agrees_with_the_live_model_and_optimizer(name, capsys):
    """For every shipped experiment, each number and name of each row."""
    from runner.cli import explain

    assert explain.main([f"experiment={name}", "device.type=cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    config = config_of(f"experiment={name}", "device.type=cpu")
    model, done, groups = made(config)
    optimizer = train_builder.make_optimizer(config, groups, torch.device("cpu"))
    rows = {row["name"]: row for row in said["tensors"]}
    live = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    assert rows.keys() == live.keys()
    state = {} if done.pretrained is None else done.pretrained.tensors
    assert all(torch.equal(live[name], tensor.to(live[name].dtype)) for name, tensor in state.items() if name in live)
    for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        row = rows[tensor_name]
        expected = {
            "shape": list(tensor.shape),
            "count": tensor.numel(),
            "pretrained": tensor_name in state,
            "frozen": row["kind"] == "parameter" and not tensor.requires_grad,
        }
        if tensor.is_floating_point():
            numbers = tensor.detach().double()
            expected |= {"mean": numbers.mean().item(), "std": numbers.std(correction=0).item()}
        assert {key: row[key] for key in expected} | {"pretrained": bool(row["pretrained"])} == expected
    assert [
        (group["param_names"], {tuple(rows[name][key] for key in ("group", "lr", "weight_decay"))})
        for group in said["groups"]
        for name in group["param_names"]
    ] == [
        (group["param_names"], {(group["name"], group["lr"], group["weight_decay"])})
        for group in optimizer.param_groups
        for _ in group["param_names"]
    ]
    places = {place.rpartition(":")[::2] for row in rows.values() for place in row["where"].values()}
    missing = [file for file, _ in places if not Path(file).is_file() and not (ROOT / "runner/config" / file).is_file()]
    assert (missing, [line for _, line in places if int(line) < 1]) == ([], [])


def test_explain_names_the_line_of_each_rule(tmp_path, monkeypatch, capsys):
    from runner.cli import explain

    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = """# @package _global_
name: mine
init:
  rules:
    conv: {module: torch.nn.Conv2d, weight: {_target_: torch.nn.init.normal_, std: 0.5}}
pretrained: {strategy: layers, strip_prefix: module., path: conf/pretrained/digits_data_parallel.pth, layers: [fc]}
freeze: {params: ['conv2\\..*']}
param_groups:
  bias: {match: '.*\\.bias', weight_decay: 0}
"""
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    explain.main(["experiment=mine", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    file = "conf/experiment/mine.yaml"
    assert rows["conv1.weight"]["where"]["init"] == f"{file}:5"
    assert rows["conv1.weight"]["init"] == "conv: normal_(std=0.5)"
    assert rows["fc.weight"]["where"]["pretrained"] == f"{file}:6"
    assert rows["conv2.weight"]["where"]["frozen"] == f"{file}:7"
    assert rows["fc.bias"]["where"]["group"] == f"{file}:9"
    assert (rows["fc.bias"]["weight_decay"], rows["conv2.bias"]["group"]) == (0, "")


@pytest.fixture(scope="module")
def pretrained_run(tmp_path_factory):
    """A run whose first convolution was loaded from a file."""
    return run_in(tmp_path_factory.mktemp("run"), "experiment=digits_conv1", "train.duration=3st", *QUICK)


def test_a_run_reports_its_weights(pretrained_run):
    report = json.loads((pretrained_run.folder / "pretrained.json").read_text())

    assert "pretrained: 1 of 6 tensors loaded" in pretrained_run.out
    assert [row["name"] for row in report["tensors"] if row["action"] == "loaded"] == ["conv1.weight"]


def test_explain_reads_the_weights_and_the_optimizer_of_a_run(pretrained_run, capsys):
    from runner.cli import explain

    assert explain.main([str(pretrained_run.folder), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    saved = Checkpoints(pretrained_run.folder / "checkpoints").load("last")
    fc = rows["fc.weight"]
    assert rows["conv1.weight"]["pretrained"] == "module.conv1.weight"
    assert (fc["std"], fc["lr"], set(fc["state"])) == (
        saved["model"]["fc.weight"].double().std(correction=0).item(),
        saved["optimizer"]["param_groups"][0]["lr"],
        {"momentum_buffer"},
    )
    assert fc["init"].startswith("linear: kaiming_normal_")


def test_explain_prints_the_optimizers_state(pretrained_run, capsys):
    from runner.cli import explain

    assert explain.main([str(pretrained_run.folder)]) == 0
    assert "optimizer state\nconv1.weight: momentum_buffer std " in capsys.readouterr().out


def test_the_preflight_finds_every_mistake_of_surgery_at_once():
    config = config_of(
        "experiment=digits_data_parallel",
        "pretrained.strip_prefix=null",
        "freeze.params=[conv]",
        "+param_groups.head={match: 'fc2\\..*', lr_mult: 0.1}",
        "+init.rules.x={module: torch.nn.Conv3d, weight: 0}",
    )
    keys = [mistake.key for mistake in run_preflight(config).mistakes]
    assert keys == [
        "init.rules.x.module",
        "pretrained.path",
        "pretrained.path",
        "freeze.params[0]",
        "param_groups.head.match",
    ]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["pretrained.strategy=full"], "pretrained.path"),
        (["freeze.until=1ep"], "freeze.until"),
    ],
)
def test_a_setting_without_effect_is_a_mistake(overrides, key):
    assert [mistake.key for mistake in run_preflight(config_of("experiment=digits_cnn", *overrides)).mistakes] == [key]


def test_frozen_parameters_train_after_the_thaw_and_a_resume_goes_on_to_the_bit(runner, tmp_path):
    """Thaw at step 4 of 8; the same weights when the run was stopped at step 6 (or 2) and resumed."""
    settings = ["experiment=digits_frozen_embedding", "freeze.until=4st", "train.duration=8st", "log.every=1st", *QUICK]
    whole = runner(*settings, "train.checkpoint_every=1st", "train.keep=100")
    states = {step: torch.load(whole.folder / "checkpoints" / f"step_{step:08}.pt") for step in range(1, 9)}
    name = "embedding.weight"
    first = states[1]["model"][name]
    frozen = [torch.equal(first, states[step]["model"][name]) for step in range(2, 6)]
    assert frozen == [True, True, True, False]
    assert states[4]["optimizer"]["param_groups"][0]["param_names"][0] == name
    assert [0 in states[step]["optimizer"]["state"] for step in (4, 5)] == [False, True]
    for step in (2, 6):
        folder = tmp_path / f"at{step}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / ".hydra").mkdir()
        for file in ("config.yaml", ".hydra/config.yaml", "provenance.json"):
            (folder / file).write_text((whole.folder / file).read_text())
        Checkpoints(folder / "checkpoints").save(states[step], step, None)
        assert runner("resume", str(folder)).status == 0
        assert read_result(folder)["weights_sha256"] == whole.result["weights_sha256"]


def test_a_resume_needs_the_pretrained_file_no_more_and_refuses_changed_groups(runner, tmp_path):
    file = tmp_path / "weights.pt"
    model, _, _ = made(config_of("experiment=digits_cnn"))
    torch.save(model.state_dict(), file)
    settings = ["pretrained.strategy=full", f"pretrained.path={file}", "experiment=digits_cnn", *QUICK]
    ran = runner(*settings, "train.duration=2st")
    file.unlink()
    (ran.folder / "result.json").unlink()
    assert runner("resume", str(ran.folder), "train.duration=3st", "--schedule=continue").status == 0
    (ran.folder / "result.json").unlink()
    arguments = ["param_groups.head.match=fc.weight", "train.duration=4st", "--schedule=continue", "--inexact"]
    changed = runner("resume", str(ran.folder), *arguments)
    assert changed.status != 0
    assert "`fc.weight` was in group `default` when the checkpoint was taken, and is in group `head` now" in changed.err


def test_weights_of_another_run_are_its_best(runner):
    first = runner("experiment=digits_cnn", "train.duration=2ep", *QUICK)
    options = ["pretrained.strategy=full", f"pretrained.path={first.folder}", "debug=noop"]
    second = runner("experiment=digits_cnn", *options, *QUICK)
    best = Checkpoints(first.folder / "checkpoints", mode="max").load("best")["model"]
    loaded = Checkpoints(second.folder / "checkpoints").load("last")["model"]
    assert all(torch.equal(best[name], loaded[name]) for name in best)


def test_a_proposed_rename_block_is_taken_by_the_command_line_and_by_a_file(runner, tmp_path):
    overrides = ["experiment=digits_data_parallel", "pretrained.strip_prefix=null", "debug=noop", *QUICK]
    refused = runner(*overrides)
    assert refused.status == 2
    argument = re.search(r"or the argument '(.*)'", refused.err)[1]
    assert runner(*overrides, argument).status == 0
    block = re.search(r"( *)pretrained:\n(?:\1 .*\n)+", refused.err)[0]
    (tmp_path / "conf" / "pretrained").mkdir(parents=True)
    rules = yaml.safe_load(block)["pretrained"]
    shared = {"strategy": "full", "path": "conf/pretrained/digits_data_parallel.pth"}
    (tmp_path / "conf" / "pretrained" / "mine.yaml").write_text(yaml.safe_dump(shared | rules))
    assert runner("experiment=digits_cnn", "pretrained=mine", "debug=noop", *QUICK).status == 0


def test_parameter_groups_reach_the_optimizer_and_the_log(runner):
    ran = runner("experiment=digits_cnn", "param_groups=head_backbone", "train.duration=2st", "log.every=1st", *QUICK)
    lines = read_metrics(ran.folder)
    assert lines[0]["lr/backbone"] == pytest.approx(0.1 * lines[0]["lr/head"])


def test_a_thawing_parameter_is_in_the_optimizer_and_a_frozen_one_is_not():
    options = ["experiment=digits_cnn", "freeze.params=['conv1\\..*']"]
    _, _, forever = made(config_of(*options))
    assert "conv1.weight" not in [name for name, _ in forever[0]["params"]]
    _, _, thawing = made(config_of(*options, "freeze.until=1ep"))
    assert "conv1.weight" in [name for name, _ in thawing[0]["params"]]


def test_audit_init_compares_choices(tmp_path, monkeypatch, capsys):
    from runner.cli import audit

    monkeypatch.chdir(tmp_path)
    arguments = ["init", "experiment=digits_lenet", "--init", "default,constant,orthogonal", "device.type=cpu"]
    assert audit.main([*arguments, "--json"]) == 0
    audits = json.loads(capsys.readouterr().out)
    names = ["conv1", "conv2", "fc1", "fc2", "fc3"]
    layers = [layer for one in audits for layer in one["layers"]]
    assert {one["init"]: [layer["name"] for layer in one["layers"]] for one in audits} == dict.fromkeys(
        ("default", "constant", "orthogonal"), names
    )
    assert all(math.isfinite(layer["activation"]) and math.isfinite(layer["gradient"]) for layer in layers)
    assert audit.main(arguments) == 0
    assert "<svg" in (tmp_path / "outputs" / "audit_init.svg").read_text()
    said = capsys.readouterr().out
    assert all(f"{choice} activation" in said for choice in ("default", "constant", "orthogonal"))


def test_audit_measures_what_a_hand_written_hook_does():
    from runner.experiment.preview import init as init_preview

    one = init_preview.audit(config_of("experiment=digits_cnn", "device.type=cpu"), "default", ())
    config = config_of("experiment=digits_cnn", "device.type=cpu")
    model, _, _ = made(config)
    batch = next(iter(make_splits(config, make_parts(config), torch.device("cpu"))["train"].batches(0)))
    output = model.conv1(batch[0])
    assert one.layers[0].activation == pytest.approx(output.double().std(correction=0).item(), rel=1e-6)
    assert one.loss == pytest.approx(torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).item(), rel=1e-6)


CLASS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
"""


@pytest.fixture
def shape(elsewhere, monkeypatch):
    """The class of the network that is pickled in `m.pt`."""
    import sys
    import types

    module = types.ModuleType("shape")
    monkeypatch.setitem(sys.modules, "shape", module)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the process that unpickles
    exec(CLASS, module.__dict__)
    torch.save({"net": module.Net(), "when": 3}, "m.pt")
    return module.Net


def test_a_pickled_model_is_refused_with_the_line_that_converts_it(shape):
    from runner.core.errors import ConfigError
    from runner.model.pretrained.files import LocatedWeights, read

    said = r"holds pickled objects \(.*shape\.Net.*python -m runner convert m\.pt --trust"
    with pytest.raises(ConfigError, match=said):
        read(LocatedWeights(Path("m.pt")))


def test_convert_asks_to_be_trusted(shape):
    from runner.cli import convert
    from runner.core.errors import ConfigError

    with pytest.raises(ConfigError, match="runs whatever code the file holds"):
        convert.main(["m.pt"])
    assert not Path("m.state_dict.pt").exists()


def test_convert_turns_a_pickled_model_into_a_plain_file(shape, capsys):
    from runner.cli import convert
    from runner.core.errors import ConfigError
    from runner.model.pretrained.files import read
    from runner.model.pretrained.locate import LocatedWeights

    Path("shape.py").write_text(CLASS)
    assert convert.main(["m.pt", "--trust"]) == 0
    converted = read(LocatedWeights(Path("m.state_dict.pt")))
    assert (list(converted["net"]), converted["when"]) == (["fc.weight", "fc.bias"], 3)
    assert "2 tensors in m.state_dict.pt" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must not exist yet"):
        convert.main(["m.pt", "--trust"])


def test_convert_needs_no_class_to_be_importable(shape, capsys):
    from runner.cli import convert
    from runner.model.pretrained.files import LocatedWeights, read

    net = torch.load("m.pt", weights_only=False)["net"].state_dict()
    assert convert.main(["m.pt", "--trust", "--out=other.pt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["tensors"]) == ("other.pt", 2)
    assert "not to be imported here, and stood in for: shape.Net" in told["notes"]
    without = read(LocatedWeights(Path("other.pt")))["net"]
    assert without.keys() == net.keys()
    assert all(torch.equal(without[name], tensor) for name, tensor in net.items())


GONE = """
import collections, enum, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
        self.register_buffer("tmp", torch.ones(1), persistent=False)
class Config(dict): pass
class Listed(list): pass
class Kind(enum.Enum): a = 1
class Level(enum.IntEnum): a = 1
class Average:
    def __init__(self, shadow): self.decay, self.shadow = 0.9, shadow
Point = collections.namedtuple("Point", "x y")
def function(x): return x
"""


def test_convert_keeps_tensors_and_numbers_and_names_the_rest_also_of_absent_tools(tmp_path, monkeypatch, capsys):
    """Everything but text keys, tensors and plain data is named; classes that nobody can import are stood in for."""
    import sys
    import types

    import numpy as np

    from runner.model.pretrained.unpickle import unpickle

    monkeypatch.chdir(tmp_path)
    gone = types.ModuleType("gone")
    monkeypatch.setitem(sys.modules, "gone", gone)
    exec(GONE, gone.__dict__)
    net, loop = gone.Net(), []
    loop.append(loop)
    saved = {
        "model": net,
        "texts": np.array(["cat", "dog"]),
        "objects": np.array([{"loss": 1.0}], dtype=object),
        "big endian": np.arange(3, dtype=">i4"),
        "epoch": np.int64(4),
        "config": gone.Config(a=1),
        "list": gone.Listed([1]),
        "kind": gone.Kind.a,
        "average": gone.Average({"fc.weight": torch.ones(2)}),
        "function": gone.function,
        "loop": loop,
        "set": {1},
        ("a", 1): 3,
    }
    torch.save(saved, "gone.pt")
    monkeypatch.delitem(sys.modules, "gone")
    capsys.readouterr()
    unpickle(Path("gone.pt"), Path("gone.out"))
    said = capsys.readouterr().out

    plain = torch.load("gone.out", weights_only=True)
    assert list(plain["model"]) == list(net.state_dict())
    assert all(torch.equal(plain["model"][name], tensor) for name, tensor in net.state_dict().items())
    assert (plain["epoch"], plain["big endian"].tolist()) == (4, [0, 1, 2])
    assert torch.equal(plain["average"]["shadow"]["fc.weight"], torch.ones(2))
    for name in ("texts", "objects", "config", "list", "kind", "function", "loop[0]", "set", "the file[('a', 1)]"):
        assert f"{name} (" in said, name
    assert "stood in for: gone.Average, gone.Config, gone.Kind, gone.Listed, gone.Net, gone.function" in said


def test_convert_takes_numbers_and_tuples_with_names_as_plain_data(elsewhere, monkeypatch):
    import sys
    import types

    from runner.model.pretrained.unpickle import unpickle

    gone = types.ModuleType("gone")
    monkeypatch.setitem(sys.modules, "gone", gone)
    exec(GONE, gone.__dict__)
    torch.save({"level": gone.Level.a, "point": gone.Point(1, 2)}, "here.pt")
    unpickle(Path("here.pt"), Path("here.out"))

    assert torch.load("here.out", weights_only=True) == {"level": 1, "point": [1, 2]}


def test_convert_reads_numpys_files_and_pickles_also_compressed(elsewhere):
    import gzip
    import pickle

    import numpy as np

    from runner.model.pretrained.unpickle import unpickle

    arrays = {name: tensor.numpy() for name, tensor in torch.nn.BatchNorm1d(2).state_dict().items()}
    np.savez("w.npz", **arrays)
    Path("w.pkl").write_bytes(pickle.dumps({"model": arrays}))
    Path("w.pkl.gz").write_bytes(gzip.compress(Path("w.pkl").read_bytes()))
    for file in ("w.npz", "w.pkl", "w.pkl.gz"):
        unpickle(Path(file), Path(f"{file}.out"))
        loaded = torch.load(f"{file}.out", weights_only=True)
        assert list(loaded.get("model", loaded)) == list(arrays)


def test_a_pickled_model_of_torch_before_1_6_is_converted(tmp_path):
    from runner.model.pretrained.unpickle import unpickle

    model = torch.nn.Linear(2, 2)
    torch.save(model, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    unpickle(tmp_path / "old.pt", tmp_path / "new.pt")

    assert torch.equal(model.weight, torch.load(tmp_path / "new.pt", weights_only=True)["weight"])


def test_weights_are_found_in_shards_in_folders_and_unpacked_archives(tmp_path, monkeypatch):
    """The folders that the Hub gives, their index alone, and a .pth that a file manager has unpacked."""
    import zipfile

    from runner.model.pretrained.load import prepare
    from runner.model.pretrained.plan import Options

    save_file = pytest.importorskip("safetensors.torch").save_file
    monkeypatch.chdir(tmp_path)
    model, _, _ = made(config_of("experiment=digits_cnn"))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    names = list(state)
    for folder in ("shards", "bins", "one", "two", "flat"):
        Path(folder).mkdir()
    for folder, kind in (("shards", "safetensors"), ("bins", "bin")):
        parts = {f"model-{i:05}-of-00002.{kind}": names[i - 1 :: 2] for i in (1, 2)}
        for part, inside in parts.items():
            tensors = {name: state[name] for name in inside}
            (save_file if kind == "safetensors" else torch.save)(tensors, Path(folder) / part)
        index = {"metadata": {}, "weight_map": {name: part for part, inside in parts.items() for name in inside}}
        (Path(folder) / f"model.{kind}.index.json").write_text(json.dumps(index))
    save_file(state, "one/model.safetensors")
    torch.save(state, "one/pytorch_model.bin")
    torch.save({"state": {}}, "one/optimizer.pt")
    Path("one/config.json").write_text("{}")
    torch.save(state, "x.pt")
    zipfile.ZipFile("x.pt").extractall("unpacked.pth")
    zipfile.ZipFile("x.pt").extractall("flat")
    found = ["shards", "shards/model.safetensors.index.json", "bins", "one", "unpacked.pth", "flat/x"]
    for path in found:
        made_ = prepare(model, path, Options("full"))
        assert all(torch.equal(made_.tensors[name], tensor) for name, tensor in state.items()), path

    for file in ("two/a.pt", "two/b.pt"):
        torch.save(state, file)
    Path("bins/model-00002-of-00002.bin").unlink()
    index = json.loads(Path("shards/model.safetensors.index.json").read_text())
    for away in ("../one/model.safetensors", "/etc/passwd"):
        Path("away.index.json").write_text(json.dumps({"weight_map": {names[0]: away}}))
        with pytest.raises(ConfigError, match="the shards of an index lie beside it"):
            prepare(model, "away.index.json", Options("full"))
    for path, words in (
        ("two", "it has a.pt, b.pt, but is 'two'\n   name the file: `pretrained.path=two/a.pt`"),
        ("bins", "needs 2 shards beside it, and model-00002-of-00002.bin is not there"),
    ):
        with pytest.raises(ConfigError) as caught:
            prepare(model, path, Options("full"))
        assert words in str(caught.value)


def test_layers_train_one_after_another_and_a_resume_goes_on_to_the_bit(runner, tmp_path):
    """Layer-wise: the embedding from step 3 on is frozen, the last layer until then; `from`, `until` and sets."""
    sets = "freeze.sets={head: {params: ['fc\\..*'], until: 3st}}"
    settings = [
        "experiment=digits_frozen_embedding",
        "freeze.params=['embedding\\..*']",
        *("freeze.from=3st", "freeze.until=null", sets),
    ]
    settings += ["train.duration=6st", "log.every=1st", *QUICK]
    whole = runner(*settings, "train.checkpoint_every=1st", "train.keep=100")
    assert whole.status == 0, whole.err
    states = {step: torch.load(whole.folder / "checkpoints" / f"step_{step:08}.pt") for step in range(1, 7)}

    def moves(name):
        pairs = [(states[step]["model"][name], states[step + 1]["model"][name]) for step in range(1, 6)]
        return [not torch.equal(before, after) for before, after in pairs]

    names = [name for name in states[1]["model"] if name.startswith("fc.")]
    assert moves("embedding.weight") == [True, True, False, False, False]
    assert [moves(name) for name in names] == [[False, False, True, True, True]] * len(names)
    for step in (2, 4):
        folder = tmp_path / f"layers{step}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / ".hydra").mkdir()
        for file in ("config.yaml", ".hydra/config.yaml", "provenance.json"):
            (folder / file).write_text((whole.folder / file).read_text())
        Checkpoints(folder / "checkpoints").save(states[step], step, None)
        assert runner("resume", str(folder)).status == 0
        assert read_result(folder)["weights_sha256"] == whole.result["weights_sha256"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["freeze.from=1ep"], "freeze.from has no effect without `freeze.params`"),
        (
            ["freeze.params=['conv1.*']", "freeze.from=2ep", "freeze.until=1ep"],
            "freeze.from must be before freeze.until",
        ),
        (["freeze.params=['conv1.*']", "freeze.from=50ep"], "nothing would ever freeze"),
        (["freeze.sets={a: {params: ['conv9.*'], from: 1ep}}"], "freeze.sets.a.params[0]"),
        (["freeze.sets={a: {from: 1ep}}"], "freeze.sets.a.params must be given"),
    ],
)
def test_a_mistake_about_the_time_of_freezing_is_named(runner, overrides, said):
    ran = runner("check", "experiment=digits_cnn", *overrides)
    assert (ran.status, said in " ".join(ran.out.split())) == (2, True), ran.out
