"""Batched forms against torchvision's own with forced draws: transforms, sizes and pixels nobody has thought of."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F
from torchvision.transforms.v2 import functional as F2

from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.steps import NotBatched
from runner.data.samples import to_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision's about antialias, which is drawn here
COUNT = 5
Case = tuple[Any, list[Any] | None]  # a transform, and the images that it makes with the draws; None: it refuses them


class Draw:
    """Random images, transforms and uniforms from one seed."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.library: Any = self.random.choice([v1, v2])
        self.pil = self.random.random() < 0.6
        self.channels = self.random.choice([1, 3])
        self.height, self.width = self.random.randint(3, 45), self.random.randint(3, 45)
        self.images = self._images()
        if not self.pil and self.random.random() < 0.5:
            self.images = self.images.float() / 255
        self.in_bytes = self.images.dtype == torch.uint8
        self.given = [_pil(image) for image in self.images] if self.pil else list(self.images)
        self.uniforms = torch.rand(COUNT, 23, generator=self.generator())

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.random.randrange(2**31))

    def _images(self) -> Tensor:
        """Noise, black and white, or smooth."""
        noise = torch.randint(
            0, 256, (COUNT, self.channels, self.height, self.width), generator=self.generator(), dtype=torch.uint8
        )
        kind = self.random.random()
        if kind < 0.3:
            return (noise > 127).to(torch.uint8) * 255
        if kind < 0.5:
            small = noise[:, :, :3, :3].float()
            return torch.nn.functional.interpolate(small, (self.height, self.width), mode="bilinear").to(torch.uint8)
        return noise

    def size(self, most: int = 50) -> list[int]:
        return [self.random.randint(1, most), self.random.randint(2, most)]

    def mode(self, *others: str) -> InterpolationMode:
        return InterpolationMode(self.random.choice(["bilinear", "nearest", "nearest-exact", *others]))


def _pil(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _tried(transform: Any, images: list[Any]) -> Case:
    try:
        return transform, [transform(image) for image in images]
    except (ValueError, RuntimeError, TypeError):
        return transform, None


def resize(draw: Draw) -> Case:
    size = draw.random.choice([draw.random.randint(2, 50), draw.size()])
    settings: dict[str, Any] = {"interpolation": draw.mode("bicubic")}
    if isinstance(size, int) and draw.random.random() < 0.3:
        settings["max_size"] = size + draw.random.randint(1, 40)
    if draw.random.random() < 0.3:
        settings["antialias"] = draw.random.choice([True, False])
    return _tried(draw.library.Resize(size, **settings), draw.given)


def without_draws(draw: Draw) -> Case:
    library = draw.library
    return _tried(
        draw.random.choice(
            [
                library.CenterCrop(draw.size()),
                library.Pad(draw.random.choice([2, [1, 3], [1, 2, 3, 0]]), fill=0, padding_mode="edge"),
                library.Pad(draw.random.choice([2, [1, 3], [1, 2, 3, 0]]), fill=1),
                library.Grayscale(draw.random.choice([1, 3])),
                library.Compose([library.CenterCrop(draw.size(30)), library.Resize(draw.size())]),
            ]
        ),
        draw.given,
    )


def crop(draw: Draw) -> Case:
    size = [draw.random.randint(1, draw.height + 2), draw.random.randint(1, draw.width + 2)]
    mode = draw.random.choice(["constant", "edge", "reflect", "symmetric"])
    padding = draw.random.choice([None, 2, [1, 3], [0, 2, 1, 3]])
    fill = draw.random.choice([0, 7, 255]) if draw.in_bytes else 0
    transform = draw.library.RandomCrop(size, padding, draw.random.random() < 0.4, fill, mode)
    if _tried(transform, draw.given)[1] is None:
        return transform, None
    made = []
    for image, row in zip(draw.given, draw.uniforms, strict=True):

        def place(height: int, width: int, row: Tensor = row) -> tuple[int, int]:
            return int(row[0] * (height - size[0] + 1)), int(row[1] * (width - size[1] + 1))

        if draw.library is v1:

            def chosen(image: Any, _: Any, place: Callable[..., Any] = place) -> tuple[int, ...]:
                return (*place(*F.get_dimensions(image)[1:]), *size)

            transform.get_params = chosen
            made.append(transform(image))
            del transform.get_params
        else:
            params = transform.make_params([image])
            left, top, right, bottom = params["padding"] or (0, 0, 0, 0)
            params["top"], params["left"] = place(draw.height + top + bottom, draw.width + left + right)
            made.append(transform.transform(image, params))
    return transform, made


def _box(size: tuple[int, int], scale: Any, ratio: Any, row: list[float], *, erasing: bool) -> tuple[int, ...] | None:
    """torchvision's `get_params` of RandomResizedCrop and RandomErasing, with its draws taken from a list."""
    height, width = size
    for attempt in range(10):
        area = height * width * (scale[0] + row[attempt] * (scale[1] - scale[0]))
        shape = math.exp(math.log(ratio[0]) + row[10 + attempt] * (math.log(ratio[1]) - math.log(ratio[0])))
        long, short = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        h, w = (long, short) if erasing else (short, long)
        if (h < height and w < width) if erasing else (0 < h <= height and 0 < w <= width):
            return int(row[20] * (height - h + 1)), int(row[21] * (width - w + 1)), h, w
    return None


def resized_crop(draw: Draw) -> Case:
    low, thin = draw.random.uniform(0.01, 0.9), draw.random.uniform(0.2, 2)
    scale, ratio = (low, draw.random.uniform(low, 1.3)), (thin, draw.random.uniform(thin, 5))
    mode = draw.mode()
    antialias = {} if draw.pil or mode.value != "bilinear" else {"antialias": draw.random.choice([True, False])}
    transform = draw.library.RandomResizedCrop(draw.size(40), scale, ratio, mode, **antialias)
    function = F if draw.library is v1 else F2
    made = []
    for image, row in zip(draw.given, draw.uniforms.double().tolist(), strict=True):
        box = _box((draw.height, draw.width), scale, ratio, row, erasing=False)
        if box is None:  # the middle
            height, width = draw.height, draw.width
            if width / height < min(ratio):
                height = round(width / min(ratio))
            elif width / height > max(ratio):
                width = round(height * max(ratio))
            box = (draw.height - height) // 2, (draw.width - width) // 2, height, width
        made.append(function.resized_crop(image, *box, list(transform.size), mode, **antialias))
    return transform, made


def erasing(draw: Draw) -> Case:
    value = draw.random.choice([0, 7 if draw.in_bytes else 0.5, [1, 2, 3] if draw.channels == 3 else 3])
    low, thin = draw.random.uniform(0.01, 0.6), draw.random.uniform(0.2, 2)
    scale, ratio = (low, draw.random.uniform(low, 1)), (thin, draw.random.uniform(thin, 4))
    transform = draw.library.RandomErasing(draw.random.random(), scale, ratio, value)
    if draw.pil:  # v1 raises, v2 warns and leaves them alone
        return transform, None if draw.library is v1 else list(draw.given)
    made = []
    for image, row in zip(draw.given, draw.uniforms.double().tolist(), strict=True):
        box = _box((draw.height, draw.width), scale, ratio, row[1:], erasing=True)
        fill = torch.tensor(value, dtype=image.dtype).view(-1, 1, 1)
        chosen = box is not None and row[0] < float(np.float32(transform.p))
        made.append(F.erase(image, *box, fill) if chosen and box is not None else image)
    return transform, made


def flip(draw: Draw) -> Case:
    name, function = draw.random.choice([("RandomHorizontalFlip", F.hflip), ("RandomVerticalFlip", F.vflip)])
    transform = getattr(draw.library, name)(draw.random.random())
    pairs = zip(draw.given, draw.uniforms[:, 0].tolist(), strict=True)
    return transform, [function(image) if u < np.float32(transform.p) else image for image, u in pairs]


def jitter(draw: Draw) -> Case:
    choose = draw.random.choice
    ranges = [choose([0, 0.4, (0.5, 2)]), choose([0, 0.9]), choose([0, 0.5, (0, 3)]), choose([0, 0.5, 0.1])]
    transform = draw.library.ColorJitter(*ranges)
    if draw.channels == 1:
        return transform, None  # has no batched form, and what goes one by one draws otherwise
    function = F if draw.library is v1 else F2
    names = ("brightness", "contrast", "saturation", "hue")
    made = []
    for given, row in zip(draw.given, draw.uniforms, strict=True):
        image = given
        for number in row[4:8].argsort(stable=True).tolist():
            limits = getattr(transform, names[number])
            if limits is not None:
                factor = float(limits[0] + row[number] * (limits[1] - limits[0]))
                image = getattr(function, f"adjust_{names[number]}")(image, factor)
        made.append(image)
    return transform, made


KINDS = [resize, without_draws, crop, resized_crop, erasing, flip, jitter]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [25, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_the_same_pixels_for_the_same_draws(kind: Callable[[Draw], Case], rounds: int, seed: int) -> None:
    """Bytes within one grey level, numbers within 0.0001; what torchvision refuses is refused."""
    compared = 0
    for number in range(rounds):
        draw = Draw(f"{seed} {kind.__name__} {number}")
        transform, expected = kind(draw)
        about = f"{number}: {type(transform).__module__} {transform} {tuple(draw.images.shape)} {draw.images.dtype}"
        transforms = {"it": transform, **({"image": v2.ToImage()} if draw.pil else {})}
        try:
            chain = BatchedTransforms(transforms, draw.images[0], pil=draw.pil)
        except NotBatched:
            assert expected is None, about
            continue
        if any(chain.looped):
            continue
        assert expected is not None, about
        numbers = {name: draw.uniforms[:, :draws] for name, draws in chain.draws.items()}
        result = chain(draw.images, chain.prepare(numbers, COUNT))
        right = torch.stack([to_image(image) if draw.pil else image for image in expected])
        assert (right.shape, right.dtype) == (result.shape, result.dtype), about
        limit = 1 if draw.in_bytes else 2e-3 if kind is jitter else 1e-4
        assert (right.double() - result.double()).abs().max() <= limit, about
        compared += 1
    assert compared > rounds / 4
