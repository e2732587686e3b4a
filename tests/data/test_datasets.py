"""The shipped datasets, their transforms and samplers, and what the config says about splits, classes and faults."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.landmarks import Landmarks
from datasets.samplers import Repeated, WeightedClasses
from datasets.table import Table
from datasets.transforms import RandomCrop, Rescale, ToTensor
from runner.data import batches, interfaces, splitting, whole_dataset
from runner.data.samples import Pipeline, Placement, Stream
from runner.experiment.builders.instantiate import instantiate

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Four images of different sizes with three points each, as the tutorial's CSV lists them."""
    folder = tmp_path / "data" / "faces"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = [["image_name", *(f"part_{i}_{axis}" for i in range(3) for axis in "xy")]]
    for number in range(4):
        size = (40 + number, 50 - number)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", *map(str, generator.integers(0, 40, 6))])
    with (folder / "face_landmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_landmarks_are_the_tutorials(faces: Path) -> None:
    """Rescale, RandomCrop and ToTensor give the arrays of the tutorial's formulas for the same draws."""
    dataset = Landmarks(str(faces / "face_landmarks.csv"), str(faces))
    table = np.loadtxt(faces / "face_landmarks.csv", delimiter=",", skiprows=1, usecols=range(1, 7), dtype=np.float32)
    for index in range(4):
        raw = np.asarray(Image.open(faces / f"{index}.png"))
        height, width = raw.shape[:2]
        points = table[index].reshape(3, 2)
        sample = dataset[index]
        assert np.array_equal(raw.transpose(2, 0, 1), sample["image"])
        assert np.array_equal(points, sample["landmarks"])

        shorter = min(height, width)
        new = int(30 * height / shorter), int(30 * width / shorter)
        torch.manual_seed(index)
        result = ToTensor()(RandomCrop((24, 20))(Rescale(30)(sample)))
        torch.manual_seed(index)
        top, left = int(torch.randint(new[0] - 24 + 1, ())), int(torch.randint(new[1] - 20 + 1, ()))
        resized = np.asarray(Image.fromarray(raw).resize((new[1], new[0]), Image.Resampling.BILINEAR))
        image = resized[top : top + 24, left : left + 20].transpose(2, 0, 1) / 255
        moved = points * [new[1] / width, new[0] / height] - [left, top]

        assert np.abs(image - result["image"].numpy()).max() <= 1 / 255 + 1e-6
        assert np.allclose(moved, result["landmarks"].numpy(), atol=1e-4)
        assert type(result["image"]) is torch.Tensor


def test_torchvisions_transforms_move_landmarks_too(faces: Path) -> None:
    """The landmarks are key points, so a flip of v2 mirrors them with the image."""
    from torchvision.transforms import v2

    sample = Landmarks(str(faces / "face_landmarks.csv"), str(faces))[0]
    flipped = v2.RandomHorizontalFlip(1.0)(sample)

    assert torch.equal(sample["landmarks"][:, 1], flipped["landmarks"][:, 1])
    assert not torch.equal(sample["landmarks"][:, 0], flipped["landmarks"][:, 0])


def test_landmarks_train_nothing_but_load(faces: Path, runner: Callable[..., Any]) -> None:
    """`show data` on dict samples: the images before and after, a batch of dicts."""
    ran = runner("show", "data", "--json", "experiment=null", "dataset=landmarks", "transform=landmarks")

    assert ran.status == 0, ran.err
    facts = json.loads(ran.out)
    assert (3, 1) == (facts["train"]["samples"], facts["val"]["samples"])
    assert [3, 3, 224, 224] == facts["train"]["values"]["transformed"]["image"]["shape"]
    assert [3, 3, 2] == facts["train"]["values"]["transformed"]["landmarks"]["shape"]
    assert [3, "40-42", "48-50"] == facts["train"]["values"]["raw"]["image"]["shape"]
    for file in facts["train"]["pictures"]:  # red points on the images
        with Image.open(file) as image:
            assert ((np.asarray(image) == [255, 0, 0]).all(-1)).sum() > 12


def test_show_data_of_anything(runner: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples with texts, a stream, a split without samples, a file that is no image: a table, or one line of error."""
    (tmp_path / "strange_data.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    plain = ["experiment=null", "dataset.source=null", "dataset.sample=null", "transform=none", "model=mlp"]
    plain += ["dataset.val_fraction=0", "dataset.test_fraction=0", "dataset.stratify=false", "model.sizes=[5,2]"]

    def show(train: str, *more: str) -> Any:
        return runner("show", "data", *plain, f"++dataset.train={{_target_:strange_data.{train}}}", *more)

    texts = show("Texts", "step.input=x", "step.target=y")
    assert (0, True) == (texts.status, "raw          y: [] torch.int64" in texts.out), texts.err
    stream = show("Stream", "train.duration=3st")
    assert (0, True) == (stream.status, "train: an unknown number of samples, streamed" in stream.out), stream.err
    empty = show("Texts", "++dataset.val={_target_:strange_data.Texts,count:0}", "step.input=x", "step.target=y")
    assert (1, "the val split is empty") == (empty.status, empty.err.strip())
    broken = show("Broken")
    assert (1, "train sample 0 (0.png): OSError: no image (strange_data.py:23)") == (broken.status, broken.err.strip())


STRANGE = """
import torch
from torch.utils.data import Dataset, IterableDataset

class Texts(Dataset):
    def __init__(self, count=9):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return {"x": torch.rand(5), "y": index % 2, "name": f"number {index}"}

class Stream(IterableDataset):
    def __iter__(self):
        for index in range(20):
            yield torch.rand(5), index % 2

class Broken(Texts):
    files = ["0.png"]
    def __init__(self):
        super().__init__(1)
    def __getitem__(self, index):
        raise OSError("no image")
"""


@pytest.mark.parametrize("kind", ["csv", "npz", "npy", "parquet"])
def test_table(kind: str, tmp_path: Path) -> None:
    """The same numbers from every format, as whole tensors."""
    features = np.arange(12, dtype=np.float64).reshape(4, 3)
    labels = np.array([1, 0, 2, 1])
    file = tmp_path / f"t.{kind}"
    target = "y"
    if kind == "csv":
        lines = [",".join(map(str, [*row, label])) for row, label in zip(features, labels, strict=True)]
        file.write_text("\n".join(["a,b,c,y", *lines]))
    elif kind == "npz":
        np.savez(file, x=features, y=labels)
    elif kind == "parquet":
        from pyarrow import parquet, table

        columns = {name: features[:, number] for number, name in enumerate("abc")}
        parquet.write_table(table({**columns, "y": labels}), file)
    else:
        np.save(file, np.column_stack([features, labels]))
        target = "3"
    made = Table(str(file), target)

    assert torch.equal(torch.from_numpy(features).float(), made.tensors[0])
    assert labels.tolist() == made.tensors[1].tolist()
    assert whole_dataset.find_dataset_tensors(made) is not None


def test_table_of_texts_and_of_numbers(tmp_path: Path) -> None:
    """Classes named by texts are their places in the sorted list; without classes the target is a number."""
    file = tmp_path / "t.csv"
    file.write_text("a,kind,price\n1,dog,0.5\n2,cat,1.5\n3,dog,2\n")

    named = Table(str(file), "kind", ["a"])
    assert ([1, 0, 1], ["cat", "dog"]) == (named.tensors[1].tolist(), named.classes)
    assert [0.5, 1.5, 2.0] == Table(str(file), "price", ["a"], classes=False).tensors[1].tolist()
    for arguments, message in (
        (("kin",), "no column 'kin'"),
        (("a",), "column 'kind' holds what is no number, such as 'dog'"),
    ):
        with pytest.raises(ValueError, match=message):
            Table(str(file), *arguments)
    file.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"t\.csv:3 has 1 fields, the header 2"):
        Table(str(file), "b")


def test_cells_without_a_value_are_no_class(tmp_path: Path) -> None:
    """Neither of numbers nor of texts, in CSV and Parquet; categories and small integers are read."""
    from pyarrow import array, int8, parquet, table

    file = tmp_path / "t.csv"
    file.write_text("a,kind\n1,0\n2,nan\n")
    with pytest.raises(ValueError, match="column 'kind' has cells without a value"):
        Table(str(file), "kind")
    file = tmp_path / "t.parquet"
    numbers = array([1, 2, 3], int8())
    for kind in (array(["a", None, "b"]), array([0, None, 1])):
        parquet.write_table(table({"a": numbers, "kind": kind}), file)
        with pytest.raises(ValueError, match="column 'kind' has cells without a value"):
            Table(str(file), "kind")
    parquet.write_table(table({"a": numbers, "kind": array(["b", "a", "b"]).dictionary_encode()}), file)
    assert ([1, 0, 1], [[1], [2], [3]]) == tuple(tensor.tolist() for tensor in Table(str(file), "kind").tensors[::-1])
    parquet.write_table(table({"a": numbers, "kind": array([[1, 2], [3, 4], [1, 2]])}), file)
    with pytest.raises(ValueError, match="neither a number nor a text"):
        Table(str(file), "kind")


def test_table_is_not_unpickled(tmp_path: Path) -> None:
    """An array of objects, which only pickle could read, is refused."""
    np.save(tmp_path / "t.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        Table(str(tmp_path / "t.npy"), "0")


@pytest.mark.parametrize("name", sorted({path.stem for path in (CONF / "dataset").glob("*.yaml")} - {"none"}))
def test_every_dataset_states_its_sample(name: str, runner: Callable[..., Any]) -> None:
    """A shipped dataset can be checked without its data."""
    assert "\nsample:" in (CONF / "dataset" / f"{name}.yaml").read_text()
    notes = json.loads(runner("check", "--json", "experiment=null", f"dataset={name}").out)["notes"]
    assert not any("states no `sample`" in note for note in notes)


def test_folds_share_the_data_and_leave_the_test_set_alone() -> None:
    """Every sample outside test is val exactly once, classes spread evenly; test is the same for all."""
    labels = torch.tensor([0] * 53 + [1] * 31)
    parts = [splitting.split_indices(84, {"test": 0.25}, 0, labels, folds=5, fold=k) for k in range(5)]
    rest = set(range(84)) - set(parts[0]["test"].tolist())

    assert all(np.array_equal(parts[0]["test"], part["test"]) for part in parts)
    assert sorted(rest) == sorted(i for part in parts for i in part["val"].tolist())
    assert all(set(part["train"].tolist()) | set(part["val"].tolist()) == rest for part in parts)
    for label in (0, 1):
        counts = [int((labels[part["val"]] == label).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_weighted_sampling_evens_out_the_classes() -> None:
    """A rare class comes as often as a common one, or as its weight says; positions are those of the split."""
    labels = torch.tensor([0] * 900 + [1] * 100)
    torch.manual_seed(0)
    drawn = Counter(
        labels[i].item() for i in WeightedClasses(whole_dataset.SplitSubset(_table(labels), np.arange(1000)))
    )
    assert abs(drawn[1] - 500) < 70
    drawn = Counter(labels[i].item() for i in WeightedClasses(_table(labels), [1, 3], num_samples=2000))
    assert abs(drawn[1] - 1500) < 90
    with pytest.raises(ValueError, match="1 weights and 2 classes"):
        WeightedClasses(_table(labels), [1])


def _table(labels: torch.Tensor) -> Any:
    dataset = torch.utils.data.TensorDataset(torch.zeros(len(labels), 1), labels)
    dataset.targets = labels
    return dataset


def test_repeated_sampling() -> None:
    """Each sample three times in a row, as many as the dataset has."""
    order = list(Repeated(range(10)))

    assert 10 == len(order)
    assert order[0] == order[1] == order[2] != order[3]


def test_balanced_class_weights() -> None:
    """Rare classes weigh more, so that all count alike; a class without samples weighs nothing."""
    weights = splitting.compute_balanced_weights(torch.tensor([0, 0, 0, 2]))

    assert torch.allclose(torch.tensor([2 / 3, 0, 2.0]), weights)


def test_enums_are_said_by_their_value_or_name() -> None:
    """`bicubic` and `BICUBIC` are torchvision's enum member."""
    for text in ("bicubic", "BICUBIC"):
        node = {"_target_": "torchvision.transforms.v2.Resize", "size": 8, "interpolation": text}
        assert "bicubic" == instantiate(node, "transform").interpolation.value
    node = {"_target_": "torchvision.transforms.v2.AutoAugment", "policy": "cifar10"}
    assert "CIFAR10" == instantiate(node, "transform").policy.name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loader.in_order=false"], "loader.in_order must be true"),
        (["loader.pin_memory_device=cuda"], "loader.pin_memory_device is deprecated"),
        (["dataset.fold=2"], "dataset.folds must be given"),
        (["dataset.folds=5", "dataset.fold=5", "dataset.val_fraction=0"], "dataset.fold must be below"),
        (["dataset.folds=5", "dataset.fold=1"], "dataset.val_fraction must be 0"),
        (["dataset.class_weights=balanced", "loss._target_=torch.nn.MSELoss"], "dataset.class_weights needs a loss"),
        (
            ["++transform.batch.mix={_target_:torchvision.transforms.v2.MixUp,num_classes:10,alpha:-1}"],
            "transform.batch.mix",
        ),
    ],
)
def test_contradictions_are_found_before_any_data(
    overrides: list[str], message: str, runner: Callable[..., Any]
) -> None:
    """Each is a mistake by its key, exit status 2."""
    ran = runner("check", *overrides)

    assert (2, True) == (ran.status, message in ran.out), ran.out


def test_folds_class_weights_and_sampling_run(runner: Callable[..., Any]) -> None:
    """A fold is val, its size a fifth; classes are weighted and sampled by config."""
    folds = ["dataset.folds=5", "dataset.fold=1", "dataset.val_fraction=0"]
    ran = runner("train.duration=2st", *folds, "dataset.class_weights=balanced", "loader=balanced")

    assert ran.status == 0, ran.err
    recorded = json.loads((ran.folder / "provenance.json").read_text())["data"]
    assert {"train": 1150, "val": 288, "test": 359} == {name: part["samples"] for name, part in recorded.items()}


def test_skipped_samples_are_listed_in_the_run_directory(runner: Callable[..., Any], tmp_path: Path) -> None:
    """A label that is out of range ends the run, or is left out and listed."""
    wrong = ["dataset.classes=9", "train.duration=2st"]
    ran = runner(*wrong)
    assert (1, True) == (ran.status, "is out of range: dataset.classes is 9" in ran.err)
    ran = runner(*wrong, "loader.bad_samples=skip", "loader.bad_samples_limit=200")
    listed = [json.loads(line) for line in (ran.folder / "bad_samples.jsonl").read_text().splitlines()]
    assert (0, {"train", "val", "test"}) == (ran.status, {line["split"] for line in listed})
    assert 2 < len(listed)


def test_mixed_batches_train(runner: Callable[..., Any]) -> None:
    """CutMix runs from the command line, the accuracy of training counts the larger share."""
    mix = "++transform.batch.mix={_target_:torchvision.transforms.v2.CutMix,num_classes:10}"
    ran = runner("train.duration=3st", mix)

    assert ran.status == 0, ran.err
    assert "per batch: mix" in (ran.folder / "log.txt").read_text()


def test_show_data(runner: Callable[..., Any]) -> None:
    """Contact sheets before and after for each split, class balance, value ranges, TensorBoard."""
    ran = runner("show", "data", "--json")
    facts = json.loads(ran.out)

    assert 1079 == facts["train"]["samples"] == sum(facts["train"]["classes"].values())
    assert [64, 1, 8, 8] == facts["train"]["values"]["transformed"]["0"]["shape"]
    for split in ("train", "val", "test"):
        for file in facts[split]["pictures"]:
            with Image.open(file) as image:
                assert image.size[0] > 500
        assert 2 == len(facts[split]["pictures"])
    assert list(Path("outputs/show/digits_cnn").glob("events*"))
    assert "train: 1,079 samples, gathered from memory" in runner("show", "data").out


@pytest.mark.parametrize("argv", [["show", "date"], ["show"]])
def test_show_needs_a_word_that_it_knows(runner: Callable[..., Any], argv: list[str]) -> None:
    assert 2 == runner(*argv).status


def test_an_empty_split_is_named() -> None:
    """A dataset without samples is an error of its split."""
    place, settings = Placement(torch.device("cpu")), interfaces.LoaderSettings(batch_size=4, shuffle=False)
    with pytest.raises(ValueError, match="the val split is empty"):
        batches.make_split(_table(torch.empty(0)), None, Pipeline(), Stream(0, "val"), place, settings)


def test_the_shipped_digits_are_scikit_learns():
    """Image by image, class by class, and in the same order."""
    from sklearn.datasets import load_digits

    from datasets.digits import Digits

    images, classes = Digits().tensors
    theirs = load_digits()
    assert theirs.target.tolist() == classes.tolist()
    assert torch.equal(torch.from_numpy(theirs.images).float()[:, None] / 16, images)
