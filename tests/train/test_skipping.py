"""A sample that is left out changes no other one, and no batch but its own: in memory, by workers, in any order."""

import json
import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, RandomSampler, Subset, TensorDataset, WeightedRandomSampler

from datasets.samplers import Repeated, WeightedClasses
from datasets.transforms import RandomShift
from runner.core.errors import RunError
from runner.data import batches, interfaces
from runner.data.bad_samples import BadSamples
from runner.data.samples import Pipeline, Placement, Stream
from runner.data.whole_dataset import SplitSubset
from tests.support import read_epochs, same_batches, set_workers

CPU = Placement(torch.device("cpu"))
Batches = list[list[Tensor]]


def split(dataset: Any, faults: BadSamples | None = None, **settings: Any) -> Any:
    """A training split in batches of eight, its images shifted at random."""
    transforms, limit = settings.pop("transforms", {"shift": RandomShift(1)}), settings.pop("limit", None)
    indices = settings.pop("indices", None)
    loader = interfaces.LoaderSettings(**{"batch_size": 8, "shuffle": True} | settings)
    return batches.make_split(
        dataset, indices, Pipeline(transforms), Stream(3, "train"), CPU, loader, faults=faults, limit=limit
    )


def images(count: int, generator: random.Random) -> TensorDataset:
    """Images and their own numbers as labels; some have NaN."""
    pixels = torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(generator.randrange(2**31)))
    return TensorDataset(pixels, torch.arange(count))


def skipping(**settings: Any) -> BadSamples:
    return BadSamples(skip=True, limit=1000, target=1, **settings)


def case(generator: random.Random) -> tuple[TensorDataset, set[int], int, dict[str, Any]]:
    """A dataset, which of its samples are bad, the number of classes, settings of the loader."""
    count = generator.randrange(40, 90)
    dataset = images(count, generator)
    bad = set(generator.sample(range(count - 3), generator.randrange(1, 6)))
    for index in bad:
        dataset.tensors[0][index, 1, 2, 3] = generator.choice([torch.nan, torch.inf, -torch.inf])
    indices = (
        np.sort(np.array(generator.sample(range(count), count - 9), np.int64)) if generator.random() < 0.5 else None
    )
    length = count if indices is None else len(indices)
    part = SplitSubset(dataset, np.arange(count) if indices is None else indices)
    sampler = generator.choice(
        [
            None,
            None,
            WeightedRandomSampler([1.0] * length, length + 7),
            RandomSampler(range(length), replacement=True, num_samples=50),
            Repeated(part, 3),
            list(range(length))[::-1],
        ]
    )
    settings = {
        "batch_size": generator.choice([7, 8, 16]),
        "drop_last": generator.random() < 0.5,
        "shuffle": generator.random() < 0.7,
        "sampler": sampler,
        "indices": indices,
    }
    return dataset, bad | {count - 2, count - 1}, count - 2, settings


@pytest.mark.parametrize("number", range(12))
def test_in_memory_and_sample_by_sample_leave_out_the_same(number: int, seed: int) -> None:
    """NaN and labels out of range, any sampler, part of the data, incomplete batches: the same batches, bit for bit."""
    generator = random.Random(f"{seed} {number}")
    dataset, bad, classes, settings = case(generator)
    gathered, loaded = (
        split(dataset, skipping(classes=classes), **settings, in_memory=memory) for memory in (True, False)
    )
    expected = read_epochs(gathered)

    assert gathered.plan.text.startswith("gathered")
    assert gathered.num_batches == loaded.num_batches
    assert same_batches(expected, read_epochs(loaded))
    assert bad.isdisjoint(torch.cat([batch[1] for batch in expected]).tolist())
    for start in range(gathered.num_batches):
        assert same_batches(read_epochs(gathered, 1, start), read_epochs(loaded, 1, start))


def test_the_others_are_as_if_it_were_sound(seed: int) -> None:
    """Batches without the bad samples are those of a dataset without fault, minus these samples."""
    generator = random.Random(seed)
    sound = images(50, generator)
    spoilt = TensorDataset(sound.tensors[0].clone(), sound.tensors[1])
    spoilt.tensors[0][[4, 17, 33], 0, 0, 0] = torch.nan
    for memory in (True, False):
        whole = read_epochs(split(sound, in_memory=memory))
        left = read_epochs(split(spoilt, skipping(), in_memory=memory))
        kept = [[~torch.isin(batch[1], torch.tensor([4, 17, 33]))] for batch in whole]
        expected = [[member[rows] for member in batch] for batch, (rows,) in zip(whole, kept, strict=True)]
        assert same_batches(expected, left)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("number", "persistent"),
    [(1, True), *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in [(1, False), (4, False), (4, True)])],
)
def test_workers_leave_out_the_same(number: int, persistent: bool, seed: int) -> None:
    """Three epochs, and from every batch on."""
    dataset, _, classes, settings = case(random.Random(seed))
    here = split(dataset, skipping(classes=classes), **settings)
    there = split(dataset, skipping(classes=classes), **settings, **set_workers(number, persistent=persistent))

    assert same_batches(read_epochs(here), read_epochs(there))
    for start in range(0, here.num_batches, 1 if number == 4 else 3):
        assert same_batches(read_epochs(here, 1, start), read_epochs(there, 1, start))


def test_weighted_sampling_with_skipped_samples() -> None:
    """A sampler that knows the labels gives positions in the whole split, whichever are left out."""
    dataset = images(60, random.Random(0))
    dataset.tensors = (dataset.tensors[0], torch.arange(60) % 3)
    dataset.tensors[0][5] = torch.nan  # the only one of class 3
    dataset.tensors[1][5] = 3
    faults = skipping(classes=3)
    made = split(dataset, faults, sampler=WeightedClasses(SplitSubset(dataset, np.arange(60))))
    counts = torch.bincount(torch.cat([batch[1] for batch in read_epochs(made, 30)]), minlength=4).tolist()

    assert counts[3] == 0
    assert all(380 < count < 520 for count in counts[:3])  # a quarter of 1800 each


def test_a_batch_without_a_sound_sample_is_said(tmp_path: Path) -> None:
    """It cannot be left out without changing which batch is which."""
    dataset = images(8, random.Random(0))
    dataset.tensors[0][2] = torch.nan
    for memory in (True, False):
        made = split(dataset, skipping(), batch_size=1, in_memory=memory, shuffle=False)
        with pytest.raises(RunError, match="a batch of the train split has no sound sample"):
            read_epochs(made, 1)


def test_what_was_listed_before_a_resume_is_not_listed_again(tmp_path: Path) -> None:
    """Nor counted twice against the limit."""
    dataset = images(40, random.Random(0))
    dataset.tensors[0][[2, 3]] = torch.nan
    for _ in range(2):
        read_epochs(split(dataset, BadSamples(skip=True, limit=2, folder=tmp_path)), 1)
    assert [2, 3] == [json.loads(line)["index"] for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]


# ---- a dataset that is read once


class Pictures(Dataset[Any]):
    """PIL images with a random brightness of the dataset's own; sample 3 is what it is told to be."""

    def __init__(self, third: Any = None, count: int = 20) -> None:
        self.third, self.count = third, count
        self.files = [f"{number}.png" for number in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index == 3 and self.third is not None:
            return self.third()
        pixels = np.full((6, 5, 3), index, np.uint8) + np.uint8(100 * random.random())
        return Image.fromarray(pixels), index % 4


def raises() -> Any:
    raise OSError("truncated")


def test_any_dataset_can_be_asked_into_memory() -> None:
    """PIL images become bytes, read once with the numbers that the first epoch draws; other splits are not read."""
    from torchvision.transforms import v2

    numbers = {"image": v2.ToImage(), "scale": v2.ToDtype(torch.float32, scale=True)}
    gathered = split(Pictures(), transforms=numbers, in_memory=True)
    loaded = split(Pictures(), transforms=numbers, in_memory=False)
    for one, two in zip(read_epochs(gathered, 1), read_epochs(loaded, 1), strict=True):
        assert torch.allclose(one[0], two[0], atol=1e-6)
        assert torch.equal(one[1], two[1])
    others = np.array([index for index in range(20) if index != 3])
    split(Pictures(raises), transforms=numbers, in_memory=True, indices=others)


def test_faults_of_what_is_read_into_memory(tmp_path: Path) -> None:
    """Named with index and file, or left out; shapes that differ are said."""
    from torchvision.transforms import v2

    numbers = {"image": v2.ToImage(), "scale": v2.ToDtype(torch.float32, scale=True)}
    with pytest.raises(RunError, match=r"train sample 3 \(3\.png\): OSError: truncated"):
        split(Pictures(raises), transforms=numbers, in_memory=True)
    made = split(Pictures(raises), skipping(folder=tmp_path), transforms=numbers, in_memory=True)
    loaded = split(Pictures(raises), skipping(), transforms=numbers, in_memory=False)
    assert [len(batch[1]) for batch in read_epochs(made)] == [len(batch[1]) for batch in read_epochs(loaded)]
    assert "3.png" in (tmp_path / "bad_samples.jsonl").read_text()
    with pytest.raises(ValueError, match=r"sample 3 has \[3, 7, 5\], not \[3, 6, 5\] as the first"):
        split(Pictures(lambda: (Image.new("RGB", (5, 7)), 1)), transforms=numbers, in_memory=True)
    with pytest.raises(ValueError, match="member 1 of sample 3 is no number"):
        split(Pictures(lambda: (Image.new("RGB", (5, 6)), "cat")), transforms=numbers, in_memory=True)


def test_the_file_of_a_sample_of_a_subset() -> None:
    """By way of the indices."""
    with pytest.raises(RunError, match=r"train sample 1 \(3\.png\): OSError: truncated"):
        split(Subset(Pictures(raises), [7, 3]), transforms={}, in_memory=True)


# ---- iterable datasets


class Numbers(IterableDataset[Any]):
    """Twenty samples for each worker, of which the seventh is what it is told to be."""

    def __init__(self, seventh: Any, *, generates: bool = True) -> None:
        self.seventh, self.generates, self.epoch = seventh, generates, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for number in range(20):
            if number == 7 and self.seventh is not None:
                yield self.seventh()
            else:
                yield torch.rand(3) + 10 * self.epoch, number % 3


def nan() -> Any:
    return torch.tensor([1.0, torch.nan, 1.0]), 0


UNSOUND = [
    (nan, "member 0 has NaN or infinite numbers"),
    (lambda: (torch.rand(4), 0), r"its shapes are 0: \[4\], those of the others 0: \[3\]"),
    (lambda: (torch.rand(3), 5), "the label 5 is out of range"),
]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("seventh", "message"), UNSOUND)
def test_unsound_samples_of_a_stream(seventh: Any, message: str, number: int, tmp_path: Path) -> None:
    """Named by split, place and worker, or left out without a change to the others."""
    settings = {**set_workers(number), "in_memory": "auto", "transforms": {}}
    who = " of worker 0" if number else ""
    with pytest.raises(RunError, match=f"^train sample 7{who}: {message}"):
        read_epochs(split(Numbers(seventh), BadSamples(classes=3, target=1), **settings), 1)
    faults = skipping(classes=3, folder=tmp_path)
    left = read_epochs(split(Numbers(seventh), faults, **settings), 2)
    whole = read_epochs(split(Numbers(None), **settings), 2)
    for batch in (0, 3):
        whole[batch] = [torch.cat([member[:7], member[8:]]) for member in whole[batch]]

    assert same_batches(whole, left)
    (line,) = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert (line["index"], line.get("worker")) == (7, 0 if number else None)


def test_a_transform_that_fails_in_a_stream() -> None:
    """Is a fault of that sample; the stream goes on."""

    def refuse(value: Tensor) -> Tensor:
        if value[0] == 7:
            raise ValueError("refused")
        return value

    settings: dict[str, Any] = {"transforms": {"refuse": refuse}}
    seventh = lambda: (torch.full((3,), 7.0), 0)  # noqa: E731
    with pytest.raises(RunError, match=r"^train sample 7: ValueError: refused"):
        read_epochs(split(Numbers(seventh), **settings), 1)
    assert 19 == sum(len(batch[1]) for batch in read_epochs(split(Numbers(seventh), skipping(), **settings), 1))


@pytest.mark.parametrize("number", [0, 1])
def test_a_stream_that_raises_has_no_next_sample(number: int) -> None:
    """A generator is over then, so going on would silently lose the rest: refused, with the reason."""
    with pytest.raises(
        RunError, match=r"train sample 7.*: OSError: truncated .*py:\d+\); an iterable dataset that raised has no"
    ):
        read_epochs(split(Numbers(raises), skipping(), transforms={}, **set_workers(number)), 1)
    with pytest.raises(RunError, match=r"train sample 7.*: OSError: truncated \(.*py:\d+\)$"):
        read_epochs(split(Numbers(raises), transforms={}, **set_workers(number)), 1)
    assert [] == multiprocessing.active_children()


@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_of_a_stream_knows_the_epoch(persistent: bool) -> None:
    """Also one that lives through several; its numbers are those of its epoch."""
    here = read_epochs(split(Numbers(None), transforms={}))
    there = read_epochs(split(Numbers(None), transforms={}, **set_workers(1, persistent=persistent)))

    assert same_batches(here, there)
    assert [0, 1, 2] == [int(batch[0].min() // 10) for batch in here[::3]]


def test_a_stream_is_started_at_any_batch() -> None:
    """What comes before is read and dropped."""
    made = split(Numbers(nan), skipping(), transforms={}, limit=18)
    whole = read_epochs(made, 1)
    for start in range(len(whole)):
        assert same_batches(whole[start:], read_epochs(made, 1, start))
