"""A transform, a step or a model that works in place changes neither the data nor what another path makes of it."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from runner.data import batches as data
from runner.data.samples import EpochOrder, Pipeline, Placement, Stream
from tests.support import make_cifar

CPU = Placement(torch.device("cpu"))
COUNT, BATCH, EPOCHS = 11, 4, 2
STREAM = Stream(0, "train")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def floats() -> TensorDataset:
    images = torch.rand(COUNT, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(COUNT))


def whole_numbers() -> TensorDataset:
    images = torch.randint(0, 256, (COUNT, 3, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorDataset(images, torch.arange(COUNT))


def pictures() -> Any:
    return make_cifar(range(COUNT))


class Listed(Dataset[Any]):
    """A dataset that keeps its samples as they are, and gives these very objects."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Streamed(IterableDataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


class ByHand(Dataset[Any]):
    """A loop of one's own: a transform after the other, on a copy of the data for each epoch."""

    def __init__(self, dataset: Any, transforms: Mapping[str, Any], place: Any) -> None:
        self.dataset, self.transforms, self.place = copy.deepcopy(dataset), transforms, place

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        value = sample if self.place is None else sample[self.place]
        for transform in self.transforms.values():
            value = transform(value)
        if self.place is None:
            return value
        return tuple(value if place == self.place else member for place, member in enumerate(sample))


def digest(batches: Any) -> str:
    """A hash of shapes, dtypes and bytes of all tensors."""
    hashed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            plain = value.as_subclass(Tensor).contiguous()
            hashed.update(f"{list(plain.shape)} {plain.dtype}".encode() + plain.numpy().tobytes())
        elif isinstance(value, Mapping):
            add([value[name] for name in sorted(value)])
        else:
            for member in value if isinstance(value, list | tuple) else [torch.from_numpy(np.array(value))]:
                add(member)

    add(batches)
    return hashed.hexdigest()


def by_hand(dataset: Any, transforms: Mapping[str, Any], place: Any, *, shuffle: bool) -> str:
    order = EpochOrder(len(dataset), STREAM, shuffle=shuffle)
    loaders = [
        DataLoader(ByHand(dataset, transforms, place), BATCH, sampler=order(epoch).tolist()) for epoch in range(EPOCHS)
    ]
    return digest([list(loader) for loader in loaders])


def ours(
    dataset: Any, transforms: Mapping[str, Any], place: Any, *, workers: int = 0, persistent: bool = False, **told: Any
) -> str:
    options = {"persistent_workers": persistent, "timeout": 60} if workers else {}
    settings = data.LoaderSettings(**{"batch_size": BATCH, "num_workers": workers, "options": options} | told)
    made = data.make_split(dataset, None, Pipeline(transforms, place), STREAM, CPU, settings)
    return digest([list(made.batches(epoch)) for epoch in range(EPOCHS)])


def hashes(
    make: Callable[[], Any], transforms: Mapping[str, Any], place: Any = 0, numbers: tuple[tuple[int, bool], ...] = ()
) -> set[str]:
    """Those of all paths and of the loop by hand, over one dataset; it is as it was afterwards."""
    found = set()
    for shuffle in (False, True):
        dataset = make()
        before = copy.deepcopy(dataset)
        hand = by_hand(dataset, transforms, place, shuffle=shuffle)
        paths = [{"in_memory": "auto"}, {"in_memory": False}]
        paths += [{"in_memory": False, "workers": count, "persistent": kept} for count, kept in numbers]
        found |= {(hand == ours(dataset, transforms, place, shuffle=shuffle, **path), str(path)) for path in paths}
        found.add((digest([list(before)]) == digest([list(dataset)]), "the data"))
    return {path for equal, path in found if not equal}


# ---- ten of one's own that work in place


class Doubled:
    def __call__(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Whitened(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean()
        return x


def add_one(x: Tensor) -> Tensor:
    return x.add_(1)


def first_row_zero(x: Tensor) -> Tensor:
    x[..., 0, :] = 0
    return x


def a_part_of_it(x: Tensor) -> Tensor:
    return x[:, 1:].clamp_(0.2, 0.7)


def through_numpy(x: Tensor) -> Tensor:
    x.numpy()[...] **= 2
    return x


def returns_another(x: Tensor) -> Tensor:
    y = x.clone()
    x.zero_()
    return y


class Batched:
    """With a batched form that works in place, too."""

    draws = 0

    def __call__(self, x: Tensor) -> Tensor:
        return x.neg_()

    def batched(self, images: Tensor, _: Tensor) -> Tensor:
        return images.neg_()


class OfTorchvision(v2.Normalize):
    def __init__(self) -> None:
        super().__init__([0.5] * 3, [0.25] * 3, inplace=True)


OWN: dict[str, Any] = {
    "doubled": Doubled(),
    "module": Whitened(),
    "function": add_one,
    "row": first_row_zero,
    "part": a_part_of_it,
    "numpy": through_numpy,
    "another": returns_another,
    "batched": Batched(),
    "subclass": OfTorchvision(),
    "lambda": v2.Lambda(add_one),
}


def normal(module: Any) -> Any:
    return module.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.7], inplace=True)


def drawn(picture: Any) -> Any:
    ImageDraw.Draw(picture).rectangle((1, 1, 5, 5), fill=(255, 0, 0))
    return picture


def of_floats(module: Any) -> dict[str, Any]:
    """What gives the same each time, of a version of torchvision's transforms, on float tensors."""
    blank = module.RandomErasing(p=0.0, inplace=True)
    found = {
        "normalize": normal(module),
        "plain": module.Normalize([0.5], [0.25]),
        "erasing": blank,
        "lambda": module.Lambda(add_one),
        "linear": module.LinearTransformation(torch.eye(216) * 2, torch.ones(216)),
        "crop": module.CenterCrop(6),
        "pad": module.Pad(2, fill=0.3),
        "mirrored": module.Pad(2, padding_mode="reflect"),
        "flip": module.RandomHorizontalFlip(p=1.0),
        "over": module.RandomVerticalFlip(p=1.0),
        "invert": module.RandomInvert(p=1.0),
        "solarize": module.RandomSolarize(0.5, p=1.0),
        "sharp": module.RandomAdjustSharpness(2.0, p=1.0),
        "contrast": module.RandomAutocontrast(p=1.0),
        "grey": module.Grayscale(3),
        "grey at random": module.RandomGrayscale(p=1.0),
        "dtype": module.ConvertImageDtype(torch.float64),
        "resize": module.Resize(6),
        "nearest": module.Resize((7, 13), interpolation=module.InterpolationMode.NEAREST),
        "cubic": module.Resize(14, interpolation=module.InterpolationMode.BICUBIC),
        "whole": module.RandomCrop((9, 8)),
        "apply": module.RandomApply([normal(module)], p=1.0),
        "compose": module.Compose([module.CenterCrop(6), normal(module), add_one]),
        "order": module.RandomOrder([normal(module)]),
        "choice": module.RandomChoice([normal(module)]),
        "blur": module.GaussianBlur(3, (1.0, 1.0)),
        "brighter": module.ColorJitter(brightness=(1.5, 1.5)),
        "harder": module.ColorJitter(contrast=(0.5, 0.5)),
        "greyer": module.ColorJitter(saturation=(0.5, 0.5)),
        "turned": module.ColorJitter(hue=(0.1, 0.1)),
        "rotated": module.RandomRotation((90, 90)),
        "affine": module.RandomAffine((10, 10)),
    }
    grey = ("grey", "grey at random")  # three channels that are one: nobody can change them in place
    return {name: {"one": each} | ({} if name in grey else {"own": add_one}) for name, each in found.items()}


def of_bytes(module: Any) -> dict[str, Any]:
    number = module.ConvertImageDtype(torch.float32)
    found = {
        "posterize": module.RandomPosterize(3, p=1.0),
        "equalize": module.RandomEqualize(p=1.0),
        "resize": module.Resize(6),
        "larger": module.Resize(14),
        "cubic": module.Resize(6, interpolation=module.InterpolationMode.BICUBIC),
        "grey": module.Grayscale(3),
        "brighter": module.ColorJitter(brightness=(1.5, 1.5)),
        "harder": module.ColorJitter(contrast=(0.5, 0.5)),
        "greyer": module.ColorJitter(saturation=(0.5, 0.5)),
        "own": torch.Tensor.bitwise_not_,
    }
    return {name: {"one": each, "number": number, "normal": normal(module)} for name, each in found.items()} | {
        "numbers": {"number": number},
        "halves": {"number": module.ConvertImageDtype(torch.float16)},
    }


def of_pictures(module: Any) -> dict[str, Any]:
    last = {
        "number": module.ToTensor() if module is v1 else v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, True)])
    }
    found = {
        "draw": drawn,
        "resize": module.Resize(20),
        "larger": module.Resize(40),
        "nearest": module.Resize(20, interpolation=module.InterpolationMode.NEAREST),
        "cubic": module.Resize(20, interpolation=module.InterpolationMode.BICUBIC),
        "crop": module.CenterCrop(20),
        "pad": module.Pad(2, fill=7),
        "grey": module.Grayscale(3),
        "brighter": module.ColorJitter(brightness=(1.5, 1.5)),
        "harder": module.ColorJitter(contrast=(0.5, 0.5)),
        "greyer": module.ColorJitter(saturation=(0.5, 0.5)),
        "posterize": module.RandomPosterize(3, p=1.0),
        "flip": module.RandomHorizontalFlip(p=1.0),
        "apply": module.RandomApply([drawn], p=1.0),
    }
    return {name: {"one": each, **last, "normal": normal(module)} for name, each in found.items()} | {"alone": last}


CORPUS = [
    *(pytest.param(floats, {"own": transform}, id=f"own {name}") for name, transform in OWN.items()),
    pytest.param(floats, OWN, id="own"),
    *(
        pytest.param(make, transforms, id=f"{module.__name__.removeprefix('torchvision.')} {make.__name__} {name}")
        for module in (v1, v2)
        for make, of in ((floats, of_floats), (whole_numbers, of_bytes), (pictures, of_pictures))
        for name, transforms in of(module).items()
    ),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("make", "transforms"), CORPUS)
def test_every_path_makes_what_a_loop_by_hand_makes(make: Callable[[], Any], transforms: Mapping[str, Any]) -> None:
    """Gathered, sample by sample, and by any workers, in order and shuffled, twice over one dataset."""
    assert set() == hashes(make, transforms, numbers=((1, False), (2, True)))


# ---- every day


@pytest.mark.parametrize(
    ("make", "transforms", "numbers"),
    [
        (floats, OWN, ((1, False),)),
        (floats, {"one": normal(v1)}, ()),
        (whole_numbers, {"own": torch.Tensor.bitwise_not_, "number": v2.ToDtype(torch.float32), "n": normal(v2)}, ()),
        (pictures, {"draw": drawn, "small": v2.Resize(20), "number": v1.ToTensor(), "normal": normal(v1)}, ()),
    ],
)
def test_what_works_in_place_gives_the_same_on_every_path(
    make: Callable[[], Any], transforms: Mapping[str, Any], numbers: tuple[tuple[int, bool], ...]
) -> None:
    """Gathered, sample by sample and by a worker, it is what a DataLoader loop by hand gives."""
    assert set() == hashes(make, transforms, numbers=numbers)


def test_a_target_that_is_changed_in_place() -> None:
    """`transform.on: target` changes no target of the dataset."""
    assert set() == hashes(floats, {"own": add_one}, place=1)


@dataclass(frozen=True, slots=True)
class Marks:
    """An object of a sample, without a `__dict__`."""

    points: Tensor


def nested() -> Listed:
    """Samples of everything that can be nested in them, each the dataset's own."""
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Listed(
        [
            {
                "image": tv_tensors.Image(image + number),
                "boxes": tv_tensors.BoundingBoxes([[1.0, 2, 3, 4]], format="XYXY", canvas_size=(8, 8)),
                "more": {"array": np.full(3, number, np.float32), "list": [torch.ones(2), (torch.zeros(1),)]},
                "picture": Image.new("RGB", (8, 8)),
                "queue": deque([torch.ones(1)]),
                "marks": Marks(torch.full((2,), 1.0)),
            }
            for number in range(COUNT)
        ]
    )


def everything(sample: Any) -> Any:
    """Change all of it in place."""
    sample["image"].mul_(2)
    sample["boxes"] += 1
    sample["more"]["array"] *= 3
    sample["more"]["list"][0].add_(1)
    sample["more"]["list"][1][0].add_(1)
    sample["more"]["list"].append(torch.ones(1))
    sample["queue"][0].add_(1)
    sample["marks"].points.add_(1)
    drawn(sample["picture"])
    sample["picture"] = torch.from_numpy(np.array(sample["picture"]))
    sample["queue"], sample["marks"] = sample["queue"][0], sample["marks"].points
    return sample


def test_a_sample_that_is_changed_in_place_all_through() -> None:
    """Nested mappings, lists, tuples, arrays, images, boxes, objects: `transform.on: sample` gets copies of all."""
    dataset = nested()
    hand = by_hand(dataset, {"all": everything}, None, shuffle=True)
    made = [ours(dataset, {"all": everything}, None, in_memory=False, shuffle=True) for _ in range(2)]

    assert [hand, hand] == made


def test_a_stream_of_the_datasets_own_samples() -> None:
    """An iterable dataset that keeps its samples has them as they were, epoch after epoch."""
    samples = [(torch.full((2,), float(number)), number) for number in range(COUNT)]
    settings = data.LoaderSettings(batch_size=BATCH, shuffle=False)
    made = data.make_split(Streamed(samples), None, Pipeline({"own": add_one}, 0), STREAM, CPU, settings)

    assert digest(list(made.batches(0))) == digest(list(made.batches(1)))
    assert list(range(COUNT)) == [int(sample[0][0]) for sample in samples]


@pytest.mark.parametrize(
    "told", [{"shuffle": False}, {"shuffle": True}, {"shuffle": True, "in_memory": False}, {"mix": True}], ids=str
)
def test_a_batch_that_a_step_changes(told: dict[str, Any]) -> None:
    """Batches that are asked for again are those of the first time, whatever was done to them."""
    mixed = {"mix": v2.MixUp(num_classes=COUNT)} if told.pop("mix", False) else {}
    settings = data.LoaderSettings(**{"batch_size": BATCH, "shuffle": False} | told)
    dataset = floats()
    before = digest(list(dataset.tensors))
    made = data.make_split(dataset, None, Pipeline(), STREAM, CPU, settings, batch_transforms=mixed)
    found = []
    for _ in range(3):
        batches = []
        for batch in made.batches(0):
            batches.append(digest(batch))
            for member in batch:
                member.zero_()
        found.append(batches)

    assert found[0] == found[1] == found[2]
    assert before == digest(list(dataset.tensors))


def test_a_users_collate_function_gets_copies() -> None:
    """It may change the samples that it is given."""

    def collate(samples: list[Any]) -> Any:
        return torch.stack([image.add_(1) for image, _ in samples]), torch.tensor([label for _, label in samples])

    dataset = floats()
    first, second = (
        ours(dataset, {}, 0, shuffle=False, options={"collate_fn": collate}, in_memory=False) for _ in range(2)
    )

    assert first == second
