"""`predict`: files and splits through a trained model, as `evaluate` sees them."""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.shapes import ShapeBoxes
from runner import RunError, load
from tests.support import install_project, read_lines, run_in

CODE = """
import torch
from torch import nn
from torch.utils.data import Dataset


class Pairs(Dataset):
    classes = ["minus", "plus"]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.full((3,), float(index) - 5.5)
        return {"left": x, "right": 2 * x, "aim": int(index > 5)}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 2), nn.Dropout(0.5)

    def forward(self, a, b):
        return {"logits": self.layer(self.drop(torch.cat([a, b], 1))), "sum": (a + b).sum(1)}


class Scale:
    largest = 1.0

    def fit(self, train_split):
        self.largest = max(float(sample["right"].max()) for sample in train_split)

    def __call__(self, sample):
        return {**sample, "left": sample["left"] / self.largest}


def own(batch, model, loss):
    made = model(batch["left"], batch["right"])["logits"]
    return {"loss": loss(made, batch["aim"]), "output": made, "target": batch["aim"], "size": len(made)}
"""
CONF = {
    "model/two.yaml": "_target_: twos.Two",
    "dataset/pairs.yaml": "{train: {_target_: twos.Pairs}, val: {_target_: twos.Pairs}}",
    "step/own.yaml": "_target_: twos.own",
    "experiment/pairs.yaml": """
# @package _global_
defaults: [{override /dataset: pairs}, {override /model: two}, {override /metrics: none}, {override /log: quiet}]
name: pairs
step: {input: {b: right, a: left}, target: aim, output: logits}
train: {duration: 1ep, objective: val/loss}
loader: {batch_size: 5}
""",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the small CNN with an average of its weights."""
    folder = tmp_path_factory.mktemp("digits")
    made = run_in(folder, "train.duration=1ep", "train.ema=0.9", "log=quiet")
    assert made.status == 0, made.err
    return made.folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run on a folder of images in two named classes, whose data is gone."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "data" / "images" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / "images" / split / name / f"{number}.png")
    words = ["dataset=image_folder", "transform=imagenet", "model=small_cnn_rgb32", "train.duration=1ep"]
    words += ["transform.train.crop.size=32", "transform.eval.resize.size=36", "transform.eval.crop.size=32"]
    made = run_in(folder, "experiment=null", *words, "model.num_classes=2", "log=quiet", "loader.batch_size=4")
    assert made.status == 0, made.err
    expected = run_in(folder, "predict", str(made.folder), "--split", "val", "--out", "val.npz")
    assert expected.status == 0, expected.err
    images = folder / "inputs"
    shutil.move(folder / "data" / "images" / "val", images)
    shutil.rmtree(folder / "data")
    return SimpleNamespace(run=str(made.folder), images=images, val=np.load(folder / "val.npz"))


@pytest.fixture
def table(runner):
    """A run on a table of three columns, to be told from `y`."""
    rows = [f"{a},{b},{'low' if a + b < 5 else 'high'},{a * b}" for a in range(5) for b in range(6)]
    Path("t.csv").write_text("\n".join(["a,b,y,c", *rows]) + "\n")
    words = ["dataset=table", "dataset.source.path=t.csv", "dataset.source.target=y", "dataset.sample.shape=[3]"]
    ran = runner(
        "experiment=null",
        *words,
        "model=mlp",
        "model.sizes=[3,4,2]",
        "train.duration=1ep",
        "log=quiet",
        "transform=none",
    )
    assert ran.status == 0, ran.err
    Path("t.csv").unlink()
    return str(ran.folder)


@pytest.fixture
def twos(tmp_path):
    """The project of a model with two inputs and a dict of outputs."""
    with install_project(tmp_path, "twos", CODE, CONF):
        yield


def read_csv(file):
    with Path(file).open() as opened:
        return list(csv.DictReader(opened))


def test_predictions_scored_by_hand_have_the_numbers_of_evaluate(runner, digits):
    ran = runner("predict", str(digits), "--split", "val", "--out", "val.csv")
    rows = read_csv("val.csv")
    metrics = json.loads(runner("evaluate", str(digits), "--json").out)["metrics"]
    output = torch.tensor([[float(row[f"output_{place}"]) for place in range(10)] for row in rows])
    target = torch.tensor([int(row["target"]) for row in rows])

    assert ran.out == f"{len(rows):,} predictions of step 17 (ema weights) in val.csv\n"
    assert metrics["val/loss"] == pytest.approx(float(F.cross_entropy(output, target)), rel=1e-6)
    assert metrics["val/accuracy"] == sum(row["class"] == row["target"] for row in rows) / len(rows)
    assert all(row["probability"] == row[f"probability_{row['class']}"] for row in rows)


def test_files_are_predicted_as_the_split_that_they_came_from(pictures, runner):
    """Though the data is gone: the classes' names are in the record."""
    ran = runner("predict", pictures.run, str(pictures.images), "--out", "some.npz")
    made = np.load("some.npz")

    assert ran.status == 0, ran.err
    assert [Path(name).name for name in made["input"]] == [Path(name).name for name in pictures.val["input"]]
    assert made["classes"].tolist() == pictures.val["classes"].tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(made["output"], pictures.val["output"])


def test_arrays_are_raw_samples(digits, runner):
    from datasets.digits import Digits

    images = Digits().tensors[0]
    expected = {}
    runner("predict", str(digits), "--split", "val", "--out", "val.jsonl")
    for row in read_lines(Path("val.jsonl")):
        expected[int(row["input"][4:-1])] = row["output"]
    rows = sorted(expected)
    np.save("rows.npy", images[rows].double().numpy())
    np.savez("one.npz", whatever=images[rows[0]].numpy())
    found = json.loads(runner("predict", str(digits), "rows.npy", "one.npz", "--json").out)

    assert found["count"] == len(rows) + 1
    made = torch.tensor([row["output"] for row in found["predictions"]])
    torch.testing.assert_close(made, torch.tensor([expected[row] for row in [*rows, rows[0]]]), rtol=0, atol=1e-6)


def test_an_image_for_a_tensor_dataset_is_scaled_to_its_range(digits, runner):
    from datasets.digits import Digits

    image = Digits().tensors[0][0]
    np.save("raw.npy", (image * 255).byte().numpy() / np.float32(255))
    Image.fromarray((image[0] * 255).byte().numpy()).convert("RGB").save("one.png")
    found = json.loads(runner("predict", str(digits), "one.png", "raw.npy", "--json").out)

    assert found["predictions"][0]["output"] == pytest.approx(found["predictions"][1]["output"], abs=1e-6)


def test_a_bad_image_is_named_and_the_others_are_predicted(pictures, runner, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    shutil.copytree(pictures.images, "in")
    Path("in/a_text.png").write_text("no image")
    Path("in/b_half.png").write_bytes(next(pictures.images.rglob("*.png")).read_bytes()[:300])
    Image.new("RGB", (70, 70)).save("in/c_large.png")
    Path("in/d_link.png").symlink_to(next(pictures.images.rglob("*.png")))
    os.mkfifo("in/e_pipe.png")
    ran = runner("predict", pictures.run, "in")
    said = [line for line in ran.err.splitlines() if line.startswith("left out")]

    assert ran.status == 1, ran.err
    assert [line.split()[2].rstrip(":")[3:] for line in sorted(said)] == [
        "a_text.png",
        "b_half.png",
        "c_large.png",
        "d_link.png",
        "e_pipe.png",
    ]
    assert "5 of 11 inputs are left out; the others are predicted." in ran.err
    assert len(ran.out.splitlines()) == 6


def test_where_nothing_can_be_read_nothing_is_written(pictures, runner):
    Path("a.png").write_text("no image")
    ran = runner("predict", pictures.run, "a.png", "--out", "out.csv")

    assert (ran.status, Path("out.csv").exists()) == (1, False)
    assert "a.png: is no image of the formats PNG, " in ran.err


def test_a_table_is_read_by_its_columns_names_without_its_target(table, runner):
    """In another order, with one column more; the training table is gone."""
    Path("new.csv").write_text("id;c;b;a\nx;6,0;2;3\ny;1;1;1\n")
    np.save("new.npy", np.array([[3.0, 2, 6], [1, 1, 1]]))
    found = json.loads(runner("predict", table, "new.csv", "new.npy", "--json").out)
    rows = found["predictions"]

    assert found["classes"] == ["high", "low"]
    assert [row["input"] for row in rows] == ["new.csv:2", "new.csv:3", "new.npy[0]", "new.npy[1]"]
    assert [row["output"] for row in rows[:2]] == [row["output"] for row in rows[2:]]
    assert {row["label"] for row in rows} <= {"high", "low"}


def test_a_table_without_a_column_is_refused_by_name(table, runner):
    Path("new.csv").write_text("a,c\n1,2\n")
    Path("text.csv").write_text("a,b,c\n1,2,3\n1,x,3\n")
    absent, text = runner("predict", table, "new.csv"), runner("predict", table, "text.csv")

    assert (absent.status, text.status) == (1, 1)
    assert "new.csv has no column 'b', which the model was trained on; it has 'a', 'c'" in absent.err
    assert "text.csv:3: column 'b' holds what is no number, such as 'x'" in text.err


def test_several_inputs_come_from_named_arrays(twos, runner):
    run = str(runner("experiment=pairs").folder)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez("by_member.npz", left=x, right=2 * x)
    np.savez("by_argument.npz", a=x, b=2 * x)
    np.savez("one.npz", left=x)
    found = json.loads(runner("predict", run, "by_member.npz", "by_argument.npz", "--json").out)
    wrong = runner("predict", run, "one.npz")
    outputs = [row["output"] for row in found["predictions"]]

    assert outputs[:2] == outputs[2:]
    assert len(outputs[0]) == 2
    assert found["predictions"][0]["label"] == ["minus", "plus"][found["predictions"][0]["class"]]
    assert "one.npz must hold" not in wrong.err
    assert "INPUT must hold an array 'right' (step.input), and holds 'left', but is 'one.npz'" in wrong.err


def test_a_step_of_ones_own_predicts_its_splits_and_says_what_files_lack(twos, runner):
    run = str(runner("experiment=pairs", "step=own").folder)
    np.save("x.npy", np.zeros((1, 3), np.float32))
    split, file = runner("predict", run, "--split", "val", "--json"), runner("predict", run, "x.npy")

    assert json.loads(split.out)["count"] == 12
    assert file.status == 2
    assert "step.input does not say which members of a batch the model gets: twos.own has no `input`" in file.err


def test_regression_gives_values(runner):
    ran = runner("experiment=dynamic_net", "train.duration=2st", "log=quiet")
    found = json.loads(runner("predict", str(ran.folder), "--split", "train", "--json").out)

    assert found["kind"] == "values"
    assert set(found["predictions"][0]) == {"input", "target", "output"}


def test_raw_and_averaged_weights(digits, runner):
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    found = [
        json.loads(runner("predict", str(digits), "x.npy", "--json", *more).out) for more in ((), ("--weights", "raw"))
    ]

    assert [one["weights"] for one in found] == ["ema", "raw"]
    assert found[0]["predictions"][0]["output"] != found[1]["predictions"][0]["output"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.png"], "INPUT must be a file or a folder, but is 'nowhere.png'"),
        (["empty"], "INPUT must hold images ("),
        ([], "INPUT must be given, or `--split` in its place"),
        (["x.npy", "--split", "val"], "INPUT must be left out with `--split`"),
        (["--split", "vall"], "--split must be one of train, val, test, but is 'vall'"),
        (["x.npy", "--out", "x.parquet"], "--out must end with .csv, .jsonl, .npz, but is 'x.parquet'"),
        (["x.npy", "--out", "no/x.csv"], "--out must be in a folder that exists, and no does not"),
        (["x.npy", "--checkpoint", "bset"], "--checkpoint must be last, best or a file, but is 'bset'"),
        (["x.wav"], "INPUT must be a folder of images or end with one of "),
        (["t.csv"], "INPUT is a table, and the run was not trained on one"),
    ],
)
def test_a_wrong_request_is_refused_by_name(words, said, digits, runner):
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    Path("empty").mkdir()
    Path("x.wav").touch()
    Path("t.csv").write_text("a\n1\n")
    ran = runner("predict", str(digits), *words)

    assert ran.status == 2
    assert f"1. {said}" in ran.err


def test_a_batch_that_the_model_refuses_is_named(digits, runner):
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("wide.npy", np.zeros((2, 3, 8, 8), np.float32))
    pickled, wide = runner("predict", str(digits), "objects.npy"), runner("predict", str(digits), "wide.npy")

    assert (pickled.status, wide.status) == (1, 1)
    assert "objects.npy" in pickled.err
    assert "the model refuses a batch of [2, 3, 8, 8] torch.float32 (wide.npy[0] and 1 more)" in wide.err


def test_a_stranger_s_run_runs_nothing_and_a_lost_file_is_named(digits, runner):
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    shutil.copytree(digits, "copy", symlinks=True)
    shutil.rmtree("copy/checkpoints")
    lost = runner("predict", "copy", "x.npy")
    text = Path("copy/config.yaml").read_text().replace("models.cnn.SmallCNN", "webbrowser.open")
    Path("copy/config.yaml").write_text(text)
    foreign = runner("predict", "copy", "x.npy")

    assert (lost.status, foreign.status) == (1, 2)
    assert "copy/checkpoints holds no checkpoint, so there are no weights; config.yaml, metrics.jsonl" in lost.err
    assert "webbrowser" in foreign.err


def test_a_fitted_transform_has_what_the_run_had_learnt(twos, runner):
    """For files too, for which nothing is fitted again."""
    scale = "{_target_: twos.Scale}"
    words = ["experiment=pairs", "transform.on=sample", f"transform.train.s={scale}", f"transform.eval.s={scale}"]
    run = str(runner(*words).folder)
    x = np.stack([np.full(3, index - 5.5, np.float32) for index in range(12)])
    np.savez("all.npz", left=x, right=2 * x)
    files = json.loads(runner("predict", run, "all.npz", "--json").out)["predictions"]
    split = json.loads(runner("predict", run, "--split", "val", "--json").out)["predictions"]
    train = json.loads(runner("predict", run, "--split", "train", "--json").out)["predictions"]

    assert [row["output"] for row in files] == [row["output"] for row in split] == [row["output"] for row in train]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_a_run_of_a_gpu_is_predicted_on_the_cpu_and_that_is_said(digits, runner):
    shutil.copytree(digits, "copy", symlinks=True)
    config = Path("copy/config.yaml")
    config.write_text(config.read_text().replace("type: auto", "type: cuda:1"))
    np.save("x.npy", np.zeros((1, 1, 8, 8), np.float32))
    file, split = runner("predict", "copy", "x.npy"), runner("predict", "copy", "--split", "val")

    assert (file.status, split.status) == (0, 0)
    assert "note: the run trained on cuda:1, and here it is the CPU: torch sees" in file.err
    assert "note: the run trained on cuda:1, and here it is the CPU: torch sees" in split.err


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "words",
    [
        ("device.precision=bf16",),
        ("device.weights=bf16",),
        ("device.memory_format=channels_last",),
        ("loader.num_workers=2",),
        ("transform.views={_target_: datasets.transforms.shift_and_mirror, pixels: 1}",),
    ],
)
def test_files_and_splits_agree_in_every_precision_and_layout(words, runner):
    run = str(runner("train.duration=1ep", "log=quiet", *words).folder)
    from datasets.digits import Digits

    split = json.loads(runner("predict", run, "--split", "val", "--json", "--batch-size", "50").out)["predictions"]
    rows = [int(row["input"][4:-1]) for row in split]
    np.save("rows.npy", Digits().tensors[0][rows].numpy())
    files = json.loads(runner("predict", run, "rows.npy", "--json", "--batch-size", "50").out)["predictions"]

    assert [row["output"] for row in files] == [row["output"] for row in split]


FINDER = """
import torch
from torch import nn


class Finder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images, targets):
        if self.training:
            return {"loss": self.layer(torch.stack([image.float().mean()[None] for image in images])).square().mean()}
        return [{"boxes": one["boxes"], "labels": one["labels"], "scores": one["labels"] / 4} for one in targets]
"""
FINDS = """
# @package _global_
defaults:
  - {override /dataset: null}
  - {override /transform: none}
  - {override /model: null}
  - {override /step: model_loss}
  - {override /loss: none}
  - {override /metrics: null}
  - {override /log: quiet}
dataset: {source: {_target_: datasets.shapes.ShapeBoxes, count: 23, size: 16}, val_fraction: 0.5}
loader: {batch_size: 4, collate_fn: {_target_: datasets.collate.list_members}, eval: {batch_size: 5}}
model: {_target_: finders.Finder}
metrics: {boxes: {_target_: runner.train.metrics.BoxPrecision, on: eval}}
train: {duration: 1st, objective: val/boxes/map}
"""


def test_a_detector_has_a_record_for_each_image(elsewhere, runner):
    """Boxes of several numbers: the sample of the row says which, and what makes a table or no tensor is refused."""
    with install_project(elsewhere, "finders", FINDER, {"experiment/finds.yaml": FINDS}):
        run = runner("experiment=finds").folder
        predictions = load(run).predict(split="val")
        refused = [runner("predict", str(run), "--split", "val", "--out", f"p.{kind}").err for kind in ("csv", "npz")]
    rows, dataset = predictions.rows, ShapeBoxes(23, size=16)

    assert [dataset[int(row["input"][4:-1])][1]["boxes"].tolist() for row in rows] == [
        row["output"]["boxes"] for row in rows
    ]
    assert (12, [0.25 * label for label in rows[-1]["target"]["labels"]]) == (len(rows), rows[-1]["output"]["scores"])
    assert all("`--out FILE.jsonl`" in text for text in refused)
    with pytest.raises(RunError, match="make no tensor"):
        predictions.output  # noqa: B018
