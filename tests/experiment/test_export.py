"""`export`: weights and graphs that agree with the run's model wherever they are loaded."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from runner.experiment.inference import export_formats
from tests.support import install_project, list_names, make_cifar, run_in

CODE = '''
import torch
from torch import nn
from torch.utils.data import Dataset

from tests.support import make_cifar


class Pairs(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.full((3,), float(index) - 5.5)
        return {"left": x, "right": 2 * x, "aim": int(index > 5)}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.layer.weight
        self.head = nn.Linear(6, 2)

    def forward(self, a, b):
        made = self.tied(self.drop(self.norm(self.layer(torch.cat([a, b], 1)))))
        return {"logits": self.head(made), "sum": (a + b).sum(1)}


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.reshape(8, 64)) if len(x) == 8 else self.layer(x.flatten(1))


class Branching(Fixed):
    def forward(self, x):
        return self.layer(x.flatten(1)) if float(x.sum()) > 0 else -self.layer(x.flatten(1))


class Noisy(Fixed):
    def forward(self, x):
        return self.layer(nn.functional.dropout(x.flatten(1), training=True))


class Pictures(Dataset):
    def __init__(self):
        self.inner = make_cifar([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.inner[index]


class Shade:
    """A transform of the project's own."""

    def __init__(self, by):
        self.by = by

    def __call__(self, image):
        return image * self.by
'''
CONF = {
    "model/two.yaml": "_target_: parts.Two",
    "model/fixed.yaml": "_target_: parts.Fixed",
    "model/branching.yaml": "_target_: parts.Branching",
    "model/noisy.yaml": "_target_: parts.Noisy",
    "dataset/pairs.yaml": "{train: {_target_: parts.Pairs}, val: {_target_: parts.Pairs}}",
    "dataset/pictures.yaml": """
train: {_target_: parts.Pictures}
val: {_target_: parts.Pictures}
sample: {mode: RGB, size: [32, 32]}
""",
    "experiment/pairs.yaml": """
# @package _global_
defaults: [{override /dataset: pairs}, {override /model: two}, {override /metrics: none}, {override /log: quiet}]
name: pairs
step: {input: {b: right, a: left}, target: aim, output: logits}
train: {duration: 1ep, objective: val/loss}
loader: {batch_size: 5}
""",
    "experiment/pictures.yaml": """
# @package _global_
defaults:
  - override /dataset: pictures
  - override /model: small_cnn_rgb32
  - override /transform: cifar
  - override /log: quiet
name: pictures
train: {duration: 1st, ema: 0.5}
loader: {batch_size: 8}
""",
}
GRAPHS = ("torch_export", "onnx")
WEIGHTS = ("state_dict", "safetensors")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A project, and runs in it by name; each is trained once."""
    folder, known = tmp_path_factory.mktemp("parts"), {}
    with install_project(folder, "parts", CODE, CONF) as module:

        def run(*words):
            if words not in known:
                made = run_in(folder, *words)
                assert made.status == 0, made.err
                known[words] = str(made.folder)
            return known[words]

        yield SimpleNamespace(run=run, module=module, folder=folder)


def export(runner, run, to, *more):
    """Export into `out`; its `export.json`."""
    ran = runner("export", run, "--to", to, "--out", "out", *more)
    assert ran.status == 0, ran.err
    return json.loads(Path("out/export.json").read_text())


@pytest.fixture
def here(parts, monkeypatch):
    """The project as the working directory, where its code is trusted."""
    monkeypatch.chdir(parts.folder)
    shutil.rmtree("out", ignore_errors=True)


@pytest.fixture
def command(runner, here):
    """`runner` in the project."""
    return runner


def outputs_of(file, to, inputs):
    """Outputs of an exported graph by name of the input."""
    if to == "torch_export":
        made = torch.export.load(file).module()(*inputs.values())
        return list(made.values()) if isinstance(made, dict) else [made]
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {n: v.numpy() for n, v in inputs.items()})]


def load_model(parts, run):
    """The run's own model, from its checkpoint."""
    model = parts.module.Two()
    model.load_state_dict(torch.load(Path(run) / "checkpoints" / "last.pt", weights_only=True)["model"])
    return model.eval()


@pytest.mark.parametrize("to", WEIGHTS)
def test_the_code_of_the_card_loads_the_weights(to, parts, command, monkeypatch):
    """Tied weights, batch normalisation and dropout among them."""
    run = parts.run("experiment=pairs")
    made = export(command, run, to, "--license", "CC-BY-4.0")
    card = Path("out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir("out")
    scope = {}
    exec(code, scope)
    a, b = torch.randn(2, 7, 3)
    expected, found = load_model(parts, run)(a=a, b=b), scope["model"](a=a, b=b)

    assert torch.equal(expected["logits"], found["logits"])
    assert (made["largest_difference"], made["checked"]) == (0, "8 samples of val")
    assert [one["name"] for one in made["inputs"]] == ["b", "a"]
    assert "It needs the model's code, `parts`, and not the runner." in card
    assert "## Licence\n\nCC-BY-4.0\n" in card


@pytest.mark.parametrize("to", ["torch_export", pytest.param("onnx", marks=pytest.mark.exhaustive)])
def test_a_graph_agrees_at_every_batch_size(to, parts, command):
    """Several inputs, a dict of outputs, batch normalisation and dropout."""
    run = parts.run("experiment=pairs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = export(command, run, to)
    model = load_model(parts, run)

    assert made["outputs"] == ["logits", "sum"]
    for size in (1, 2, 11):
        b, a = torch.randn(2, size, 3)
        found = outputs_of(f"out/{made['file']}", to, {"b": b, "a": a})
        for one, other in zip(model(a=a, b=b).values(), found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_transforms_of_images_of_one_size_are_in_the_graph(parts, command):
    """Raw pixels in, the numbers of an evaluation with averaged weights out."""
    run = parts.run("experiment=pictures")
    made = export(command, run, "torch_export")
    images = make_cifar(range(10)).data
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"{number}.png")
    ran = command("predict", run, *[f"{number}.png" for number in range(10)], "--out", "p.npz")
    raw = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    assert ran.status == 0, ran.err
    assert (made["preprocessing"], made["weights"]) == ("graph", "ema")
    assert made["inputs"] == [{"name": "input", "shape": ["batch", 3, 32, 32], "dtype": "uint8"}]
    (found,) = outputs_of("out/model.pt2", "torch_export", {"input": raw})
    torch.testing.assert_close(found, torch.from_numpy(np.load("p.npz")["output"]), rtol=1e-5, atol=1e-5)


def test_other_transforms_are_code_of_torchvision_alone(parts, command):
    run = parts.run("experiment=pictures")
    made = export(command, run, "safetensors")
    text = Path("out/preprocess.py").read_text()
    scope = {}
    exec(text, scope)
    image = make_cifar([0])[0][0]
    from torchvision.transforms import v2

    expected = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ]
    )(image)

    assert made["preprocessing"] == "preprocess.py"
    assert {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith("import ")} == {
        "torch",
        "torchvision",
    }
    assert torch.equal(scope["preprocess"](image), expected)


@pytest.mark.exhaustive
def test_a_transform_of_the_project_s_own_is_named(parts, command):
    words = ["transform.eval.shade={_target_: parts.Shade, by: 0.5}", "transform.train.shade=${transform.eval.shade}"]
    run = parts.run("experiment=pictures", *words)
    made = export(command, run, "state_dict")

    assert made["notes"] == ["preprocess.py imports parts, the project's own code"]
    assert "parts.Shade(by=0.5)" in Path("out/preprocess.py").read_text()


def test_without_the_data_random_inputs_are_taken_and_that_is_said(parts, command):
    run = parts.run("experiment=pictures")
    ran = command(
        "export",
        run,
        "--to",
        "state_dict",
        "--out",
        "out",
        "dataset.val={_target_: torchvision.datasets.CIFAR10, root: gone}",
    )
    made = json.loads(Path("out/export.json").read_text())

    assert ran.status == 0, ran.err
    assert made["checked"].startswith("8 random inputs, because the data cannot be had: ")
    assert made["largest_difference"] == 0


@pytest.mark.parametrize(
    ("model", "to", "said"),
    [
        pytest.param("fixed", "torch_export", "the model fixes the batch size", marks=pytest.mark.exhaustive),
        ("branching", "torch_export", "torch.export cannot trace the model (parts.py:"),
        ("noisy", "state_dict", "the exported model does not agree with the run's: the largest difference is "),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_and_nothing_is_left(model, to, said, parts, command):
    run = parts.run(f"model={model}", "train.duration=1st", "log=quiet")
    ran = command("export", run, "--to", to, "--out", "out")

    assert ran.status == 1
    assert said in ran.err
    assert [name for name in list_names(Path()) if "out" in name and name != "outputs"] == []


def test_a_wrong_request_is_refused_by_name(parts, command, monkeypatch):
    run = parts.run("experiment=pairs")
    Path("taken").mkdir(exist_ok=True)
    Path("taken/thesis.txt").touch()
    missing, taken = command("export", run), command("export", run, "--to", "onnx", "--out", "taken")
    step = command("export", parts.run("experiment=minimise", "train.duration=1st"), "--to", "torch_export")
    monkeypatch.setitem(export_formats.NEEDED, "onnx", ("onnx", "no_such_package"))
    absent = command("export", run, "--to", "onnx")

    assert [ran.status for ran in (missing, taken, step, absent)] == [2, 2, 2, 2]
    assert "--to must be given: the format of the export" in missing.err
    assert "--out must be a new folder, or an earlier export" in taken.err
    assert "step.input does not say which members of a batch the model gets" in step.err
    assert "needs no_such_package, which is not installed" in absent.err


def test_weights_of_any_step_can_be_exported(parts, command):
    """Though nobody knows what its model takes."""
    made = export(command, parts.run("experiment=minimise", "train.duration=1st"), "safetensors")

    assert made["largest_difference"] is None
    assert "only the tensors were compared" in made["notes"][0]


@pytest.mark.exhaustive
def test_a_card_gives_intervals_over_the_replicates_of_a_sweep(tmp_path, runner):
    words = ["model=mlp", "train.duration=1st", "log=quiet", "sweep.slots=1"]
    ran = runner("-m", *words, "seed=0,1,2")
    assert ran.status == 0, ran.err
    job = next(path.parent for path in Path("outputs").glob("*/*/*/config.yaml"))
    number = job.name.split("_")[0]
    export(runner, f"{job.parent}:{number}", "state_dict")
    values = [
        json.loads(path.read_text())["metrics"]["val/accuracy"] for path in Path("outputs").glob("*/*/*/result.json")
    ]

    assert f"- val/accuracy: {np.mean(values):.6g} ± " in Path("out/README.md").read_text().replace("\\", "")


FRESH = """
import sys
import numpy as np, torch
folder = sys.argv[1]
given = np.load(f"{folder}/given.npz")
x = torch.from_numpy(given["x"])
import onnxruntime, safetensors.torch
from models.cnn import SmallCNN
found = {}
readers = {"state_dict": lambda f: torch.load(f, weights_only=True), "safetensors": safetensors.torch.load_file}
for name, load in readers.items():
    model = SmallCNN(width=16, num_classes=10)
    model.load_state_dict(load(f"{folder}/{name}/model.{'pt' if name == 'state_dict' else name}"))
    found[name] = model.eval()(x).detach().numpy()
found["torch_export"] = torch.export.load(f"{folder}/torch_export/model.pt2").module()(x).detach().numpy()
found["onnx"] = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx").run(None, {"input": given["x"]})[0]
assert not [name for name in sys.modules if name.partition(".")[0] in ("runner", "hydra")]
print(max(float(abs(one - given["output"]).max()) for one in found.values()))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("device.memory_format=channels_last", "train.ema=0.9"),
        ("device.precision=bf16",),
        ("device.weights=bf16",),
    ],
)
def test_every_format_agrees_in_a_fresh_process_without_the_runner(words, runner):
    run = str(runner("train.duration=1ep", "log=quiet", *words).folder)
    root = Path(__file__).parents[2]
    Path("code").mkdir()
    shutil.copytree(root / "models", "code/models")
    for to in (*WEIGHTS, *GRAPHS):
        assert runner("export", run, "--to", to, "--out", to).status == 0
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    np.save("x.npy", x)
    runner("predict", run, "x.npy", "--out", "p.npz", "device.precision=fp32", "device.weights=fp32")
    np.savez("given.npz", x=x, output=np.load("p.npz")["output"])
    Path("code/fresh.py").write_text(FRESH)
    done = subprocess.run([sys.executable, "code/fresh.py", "."], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("to", GRAPHS)
def test_torchvision_s_networks_are_exported(to, parts, command):
    """A residual network on images of many sizes: its transforms are code."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (parts.folder / "data" / "images" / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (70 + number, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(parts.folder / "data" / "images" / split / name / f"{number}.png")
    words = ["dataset=image_folder", "transform=imagenet", "model=resnet18", "log=quiet", "train.duration=1st"]
    words += ["transform.train.crop.size=64", "transform.eval.resize.size=64", "transform.eval.crop.size=64"]
    run = parts.run("experiment=null", *words, "loader.batch_size=4")
    made = export(command, run, to)

    assert made["largest_difference"] <= 1e-5
    assert made["preprocessing"] == "preprocess.py"
    assert made["classes"] == ["cat", "dog"]
