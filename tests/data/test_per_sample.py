"""Batches are the same from any number of workers; what is wrong with a sample or a worker is said or skipped."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from datasets.transforms import RandomShift
from runner.core.errors import RunError
from runner.data import batches as data_batches
from runner.data import interfaces
from runner.data.bad_samples import BadSamples
from runner.data.samples import Pipeline, Placement, Stream
from tests.support import Noise, make_cifar, read_epochs, same_batches, set_workers

CPU = Placement(torch.device("cpu"))
TO_NUMBERS = {"image": v2.ToImage(), "scale": v2.ToDtype(torch.float32, scale=True)}


def split(dataset: Any, transforms: dict[str, Any] | None = None, **settings: Any) -> interfaces.Split:
    """A training split in batches of four."""
    faults, batch = settings.pop("faults", None), settings.pop("batch", None)
    loader = interfaces.LoaderSettings(**{"batch_size": 4, "shuffle": True} | settings)
    pipeline = Pipeline(transforms or {}, settings.get("place", 0))
    stream = Stream(0, "train")
    return data_batches.make_split(dataset, None, pipeline, stream, CPU, loader, faults=faults, batch_transforms=batch)


def digits(count: int = 30) -> TensorDataset:
    return TensorDataset(torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(count))


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 4 workers on 2 cores
COMBINATIONS = [(0, False), (1, False), (1, True), (4, False), (4, True)]


@pytest.mark.parametrize(
    ("number", "persistent"),
    [
        pytest.param(*pair, marks=[] if pair in ((0, False), (1, True)) else pytest.mark.exhaustive)
        for pair in COMBINATIONS
    ],
)
def test_our_transforms_give_the_same_gathered_and_by_workers(number: int, persistent: bool) -> None:
    """With `draws` and `batched`, batches gathered from memory are bit for bit those of any workers."""
    gathered = split(digits(), {"shift": RandomShift(2)})
    loaded = split(digits(), {"shift": RandomShift(2)}, **set_workers(number, persistent=persistent))

    assert gathered.plan.text.startswith("gathered")
    assert same_batches(read_epochs(gathered), read_epochs(loaded))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "persistent"), COMBINATIONS)
def test_torchvisions_transforms_by_workers(number: int, persistent: bool) -> None:
    """PIL transforms give the same batches in three epochs, and from every batch on, by any workers."""
    dataset = datasets.FakeData(30, (3, 12, 12), 10)
    transforms = {"crop": v2.RandomResizedCrop(8), "augment": v2.TrivialAugmentWide(), **TO_NUMBERS}
    here = split(dataset, transforms)
    there = split(dataset, transforms, **set_workers(number, persistent=persistent))
    assert same_batches(read_epochs(here), read_epochs(there))
    for start in range(here.num_batches or 0):
        assert same_batches(read_epochs(here, 1, start), read_epochs(there, 1, start))


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_start_at_every_batch(ahead: int) -> None:
    """Gathered batches are the same from any start, in any order of epochs, made one epoch at a time or several."""
    made: Any = split(digits(), {"shift": RandomShift(2)})
    expected = [read_epochs(split(digits(), {"shift": RandomShift(2)}), 5)[k * 8 : k * 8 + 8] for k in range(5)]
    made.ahead = ahead
    for epoch in (4, 0, 3, 1, 2):
        for start in range(8):
            assert same_batches(expected[epoch][start:], [list(batch) for batch in made.batches(epoch, start)])


def test_what_goes_one_by_one_in_memory_is_what_goes_sample_by_sample() -> None:
    """The same bits for one's own transform of tensors; TrivialAugment's pixels; from any start."""
    own = {"shift": RandomShift(2), "noise": Noise(), "again": RandomShift(1)}
    gathered, loaded = split(digits(), own), split(digits(), own, in_memory=False)
    assert gathered.plan.text.endswith("batched: shift, again, one by one: noise (Noise has no `draws` and `batched`)")
    assert same_batches(read_epochs(gathered), read_epochs(loaded))
    assert all(same_batches(read_epochs(gathered, 1, start), read_epochs(loaded, 1, start)) for start in range(8))
    pil = {"augment": v2.TrivialAugmentWide(), "resize": v2.Resize(20, interpolation=3), **TO_NUMBERS}
    dataset = make_cifar([number % 10 for number in range(20)])
    gathered, loaded = split(dataset, pil), split(dataset, pil, in_memory=False)
    assert "one by one: augment (Triv" in gathered.plan.text
    for one, two in zip(read_epochs(gathered), read_epochs(loaded), strict=True):
        assert torch.allclose(one[0], two[0], atol=1e-6)


def test_what_one_image_refuses_is_named_with_its_sample() -> None:
    """Also where whole batches are made; where it is to be skipped, samples go one by one all the way."""

    def refuse(image: Tensor) -> Tensor:
        if float(image.sum()) == 0:
            raise ValueError("no pixel")
        return image[:, : 5 if float(image.sum()) == 36 else 6]

    dataset = digits()
    dataset.tensors[0][17] = 0
    with pytest.raises(RunError, match=r"^train sample 17: ValueError: no pixel"):
        read_epochs(split(dataset, {"refuse": refuse}))
    dataset.tensors[0][17] = 1
    with pytest.raises(RunError, match=r"^train sample 17: its shape is \[1, 5, 6\], that of the others \[1, 6, 6\]"):
        read_epochs(split(dataset, {"refuse": refuse}, shuffle=False))
    made = split(dataset, {"refuse": refuse}, faults=BadSamples(skip=True))
    assert made.plan.text == "sample by sample, in this process (what refuse refuses is to be skipped)"
    assert 29 == sum(len(batch[1]) for batch in read_epochs(made, 1))


def test_cifar_images_are_gathered_as_the_pil_path_has_them() -> None:
    """Without random transforms, whole bytes and PIL images one by one give the same numbers."""
    dataset = make_cifar([number % 10 for number in range(20)])
    transforms = {**TO_NUMBERS, "normalize": v2.Normalize([0.49, 0.48, 0.44], [0.24, 0.23, 0.26])}
    gathered, loaded = split(dataset, transforms), split(dataset, transforms, in_memory=False)

    assert gathered.plan.text == "gathered from memory on cpu, batched: image, scale, normalize"
    for one, two in zip(read_epochs(gathered), read_epochs(loaded), strict=True):
        assert torch.allclose(one[0], two[0], atol=1e-6)
        assert torch.equal(one[1], two[1])


class OwnCIFAR10(datasets.CIFAR10):
    """Files of CIFAR-10's format with checksums of their own, which torchvision verifies as it does its own files'."""

    def __init__(self, root: Path) -> None:
        def listed(*names: str) -> list[list[str]]:
            return [[name, hashlib.md5((root / self.base_folder / name).read_bytes()).hexdigest()] for name in names]

        self.train_list = listed(*(f"data_batch_{number}" for number in range(1, 6)))
        self.test_list = listed("test_batch")
        self.meta = {**self.meta, "md5": listed("batches.meta")[0][1]}
        super().__init__(root)


def test_mnist_and_cifar_files_of_their_real_formats(tmp_path: Path) -> None:
    """IDX and pickled files made here are read whole, and their batches are the images."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = generator.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    for name in ("train", "t10k"):
        header = b"\x00\x00\x08\x03" + b"".join(size.to_bytes(4, "big") for size in images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\x00\x00\x08\x01" + (12).to_bytes(4, "big") + labels.tobytes()
        )
    (tmp_path / "cifar-10-batches-py").mkdir()
    rows = generator.integers(0, 256, (5, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 2, 3, 4]}))
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    mnist = split(datasets.MNIST(str(tmp_path)), TO_NUMBERS, shuffle=False)
    cifar = split(OwnCIFAR10(tmp_path), TO_NUMBERS, shuffle=False)
    planes = torch.from_numpy(rows[:4].reshape(4, 3, 32, 32) / 255).float()

    assert mnist.plan.text.startswith("gathered")
    assert cifar.plan.text.startswith("gathered")
    assert torch.allclose(torch.from_numpy(images[:4, None] / 255).float(), next(iter(mnist.batches(0)))[0])
    assert torch.allclose(planes, next(iter(cifar.batches(0)))[0])


def test_a_transform_of_the_datasets_own_keeps_it_from_being_gathered() -> None:
    """A CIFAR dataset with `transform=` is read sample by sample: its rows are not its samples."""
    dataset: Any = datasets.CIFAR10.__new__(datasets.CIFAR10)
    dataset.data, dataset.targets = np.zeros((8, 32, 32, 3), np.uint8), [0] * 8
    dataset.target_transform, dataset.transform = None, v2.ToImage()
    dataset.transforms = datasets.vision.StandardTransform(dataset.transform, None)

    assert split(dataset).plan.text.startswith("sample by sample")


def test_batch_transforms_are_keyed_by_epoch_and_batch() -> None:
    """MixUp mixes labels, the same each time, from any start, and not the same in each batch."""
    mixed = {"mix": v2.MixUp(num_classes=30)}
    made = split(digits(), batch=mixed)
    first = read_epochs(made)
    torch.rand(7)

    assert same_batches(first, read_epochs(split(digits(), batch=mixed)))
    assert same_batches(first[3:8], read_epochs(made, 1, 3))
    assert [4, 30] == list(first[0][1].shape)
    assert len({round(float(batch[1].max()), 4) for batch in first}) > 10
    assert made.plan.text.endswith("; per batch: mix")


# ---- faults


class Files(Dataset[Any]):
    """Images in files; a sample is (image, class)."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.files[index]) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, index % 3


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twenty-four PNG files of noise."""
    generator = np.random.default_rng(0)
    found = [tmp_path / f"{number:02}.png" for number in range(24)]
    for file in found:
        Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(file)
    return found


def corruptions(good: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Fifty ways to spoil a file; None deletes it."""
    yield "vanished", None
    yield "empty", b""
    yield "text", b"not an image\n"
    yield "zeros", bytes(len(good))
    for name, kind in (("wide", (9, 8)), ("high", (10, 7)), ("turned", (7, 9)), ("one pixel", (1, 1))):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((*kind, 3), np.uint8)).save(buffer, "PNG")
        yield name, buffer.getvalue()
    for number in range(20):
        yield f"cut to {number * 4 + 4} %", good[: len(good) * (number * 4 + 4) // 100]
    for number in range(22):
        place = 8 + number * 2 if number < 12 else 41 + number  # signature, header, the compressed data
        yield f"byte {place} changed", good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]


def test_fifty_corrupt_files(files: list[Path], tmp_path: Path) -> None:
    """Each is an error that names split, index and file, or is skipped, counted and listed."""
    good = files[5].read_bytes()
    whole = {int(batch[0].sum() * 1e6): None for batch in read_epochs(split(Files(files), batch_size=1), 1)}
    assert len(whole) == 24
    seen = 0
    for name, content in corruptions(good):
        seen += 1
        files[5].unlink(missing_ok=True)
        if content is not None:
            files[5].write_bytes(content)
        with pytest.raises(RunError, match=r"train sample 5 \(.*05\.png\): ."):
            read_epochs(split(Files(files)), 1)
        folder = tmp_path / f"run {name}"
        folder.mkdir()
        faults = BadSamples("train", skip=True, folder=folder)
        batches = read_epochs(split(Files(files), faults=faults), 1)
        (line,) = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]

        assert (sum(len(batch[1]) for batch in batches), faults.found) == (23, {5}), name
        assert (line["split"], line["index"], line["file"]) == ("train", 5, str(files[5]))
    assert seen == 50


class Spoilt(Dataset[Any]):
    """Sample 7 is what it is told to be."""

    def __init__(self, spoilt: Any) -> None:
        self.spoilt = spoilt

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.spoilt if index == 7 else (torch.rand(3) + random.random() + np.random.rand(), index % 3)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ((torch.tensor([0, float("nan"), 0]), 0), "member 0 has NaN or infinite numbers"),
        ((torch.tensor([0, float("inf"), 0]), 0), "member 0 has NaN or infinite numbers"),
        ((torch.rand(4), 0), r"its shapes are 0: \[4\], those of the others 0: \[3\]"),
        ((torch.rand(3), 3), "the label 3 is out of range: dataset.classes is 3"),
        ((torch.rand(3), -1), "the label -1 is out of range"),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_unsound_samples(spoilt: Any, message: str, number: int, tmp_path: Path) -> None:
    """NaN, another shape and a label out of range are errors by name; skipped, the others' randomness is as it was."""
    settings = {"num_workers": number, "options": {"timeout": 60} if number else {}}
    with pytest.raises(RunError, match=f"^train sample 7: {message}"):
        read_epochs(split(Spoilt(spoilt), faults=BadSamples(classes=3, target=1), **settings), 1)
    faults = BadSamples(skip=True, classes=3, target=1, folder=tmp_path)
    skipped = read_epochs(split(Spoilt(spoilt), faults=faults, **settings), 1)
    sound = read_epochs(split(Spoilt((torch.full((3,), 9.0), 0)), **settings), 1)
    kept = [[row for row in batch[0] if row[0] != 9.0] for batch in sound]

    assert all(torch.equal(torch.stack(rows), batch[0]) for rows, batch in zip(kept, skipped, strict=True))


def test_unsound_rows_in_memory(tmp_path: Path) -> None:
    """Whole tensors are looked through once, before the first step."""
    dataset = digits()
    dataset.tensors[0][4, 0, 1, 1] = torch.nan
    with pytest.raises(RunError, match="train sample 4: member 0 has NaN"):
        split(dataset)
    with pytest.raises(RunError, match="train sample 20: the label 20 is out of range"):
        split(digits(), faults=BadSamples(classes=20, target=1))
    faults = BadSamples(skip=True, classes=20, target=1, folder=tmp_path)
    made = split(dataset, faults=faults, batch_size=10)

    assert (19, {4, *range(20, 30)}) == (made.size, faults.found)
    assert list(range(20)) == sorted([4, *torch.cat([batch[1] for batch in made.batches(0)]).tolist()])
    with pytest.raises(RunError, match=r"more than 3 bad samples"):
        split(digits(), faults=BadSamples(skip=True, limit=3, classes=20, target=1))


class Deadly(Dataset[Any]):
    """Sample 7 kills the process that reads it, or never comes."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        if index == 7 and torch.utils.data.get_worker_info() is not None:
            if self.how == "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3), index


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kill", "worker 1 was killed by SIGKILL at train sample 7"),
        ("hang", r"no batch came within loader\.timeout \(2 s\): .*worker 1 is at train sample 7"),
    ],
)
def test_a_worker_that_dies_or_hangs(how: str, message: str, persistent: bool) -> None:
    """The error names worker and sample, and no worker is left, even one that ignores SIGTERM."""
    options = {"timeout": 2, "persistent_workers": persistent}
    made: Any = split(Deadly(how), num_workers=2, options=options, shuffle=False)
    made.samples.shapes = None
    with pytest.raises(RunError, match=message):
        read_epochs(made, 1)
    import multiprocessing

    assert [] == multiprocessing.active_children()


ORPHANS = """
import os, sys, time
import torch
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from runner.core.errors import RunError
from test_per_sample import Deadly, split

def started(how, timeout):
    made = split(Deadly(how), num_workers=2, options={"timeout": timeout}, shuffle=False)
    return made

for how in ("kill", "hang"):
    try:
        list(started(how, 1).batches(0))
    except RunError as error:
        print(error, flush=True)
batches = started("hang", 0).batches(0)
print(next(batches)[1].tolist(), flush=True)
next(batches)
"""


def with_mark(mark: str) -> list[int]:
    """The processes that have this text in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                mark.encode() in (folder / "environ").read_bytes()
                and b"(zombie)" not in (folder / "status").read_bytes()
            ):
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs a process table to look at")
def test_no_worker_is_left(tmp_path: Path) -> None:
    """Neither after one died or hung, nor when the process that trains is killed while one hangs."""
    mark = f"ORPHANS_OF={os.getpid()}.{time.time_ns()}"
    name, value = mark.split("=")
    here = Path(__file__).parent
    command = [sys.executable, "-c", ORPHANS, str(here.parents[1]), str(here)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, name: value}) as process:
        assert process.stdout is not None
        assert "was killed by SIGKILL" in process.stdout.readline()
        assert "no batch came within" in process.stdout.readline()
        assert process.stdout.readline() == "[0, 1, 2, 3]\n"
        assert len(with_mark(mark)) == 3
        process.kill()
    deadline = time.monotonic() + 20
    while with_mark(mark) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert [] == with_mark(mark)


class Gaps(Dataset[Any]):
    """Sample 3 is None, or its label is."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            return None if self.whole else (torch.ones(2), None)
        return torch.ones(2), index


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("whole", "said"), [(True, "gives None, which is no sample"), (False, "member 1 is None")])
@pytest.mark.parametrize("memory", [True, False])
def test_a_sample_that_is_none_is_named(size: int, whole: bool, said: str, memory: bool) -> None:
    """It is an error that says so; it can be skipped; a collate_fn of the user's own may take it."""
    with pytest.raises(RunError, match=rf"train sample 3: .*{said}"):
        read_epochs(split(Gaps(whole=whole), batch_size=size, in_memory=memory), 1)
    if size > 1:
        skipped = read_epochs(
            split(Gaps(whole=whole), faults=BadSamples(skip=True), batch_size=4, shuffle=False, in_memory=memory), 1
        )
        assert [0, 1, 2, 4, 5, 6, 7] == [label for _, labels in skipped for label in labels.tolist()]


def test_a_collate_fn_may_leave_out_what_is_none() -> None:
    """The usual way round such samples stays as it was."""

    def collate(samples: list[Any]) -> Any:
        return torch.utils.data.default_collate([sample for sample in samples if sample is not None])

    batches = read_epochs(split(Gaps(whole=True), shuffle=False, options={"collate_fn": collate}), 1)
    assert [0, 1, 2, 4, 5, 6, 7] == [label for _, labels in batches for label in labels.tolist()]


class Scaled(Gaps):
    """It has a lambda, as many a dataset does."""

    def __init__(self) -> None:
        super().__init__(whole=True)
        self.options = {"scale": lambda value: 2 * value}


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_what_cannot_be_pickled_for_a_worker_is_named(context: str) -> None:
    """Not pickle's sentence alone: the member, and what to do."""
    said = r"train split to each worker by pickle, and `dataset.options\['scale'\]` \(function\) cannot be pickled"
    made = split(Scaled(), num_workers=1, options={"multiprocessing_context": context})
    with pytest.raises(RunError, match=said) as error:
        read_epochs(made, 1)
    assert "`loader.multiprocessing_context=fork`" in str(error.value)
