"""Batched transforms do to each image what torchvision does to it with the same draws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from runner.core import rng
from runner.data.batched import color
from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.steps import NotBatched

COUNT = 48


@pytest.fixture
def images(seed: int) -> Tensor:
    """Bytes [48, 3, 40, 36]: half noise, half smooth."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (COUNT, 3, 40, 36), generator=generator, dtype=torch.uint8)
    smooth = torch.nn.functional.interpolate(noise[:24, :, :9, :9].float(), size=(40, 36), mode="bicubic")
    noise[:24] = smooth.clamp(0, 255).to(torch.uint8)
    return noise


def pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def pixels(images: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image).copy()).permute(2, 0, 1) for image in images])


def run(transform: Any, images: Tensor, uniforms: Tensor, *, is_pil: bool = True) -> Tensor:
    """The batched form on images as from PIL, with these draws."""
    chain = BatchedTransforms({"it": transform, "image": v2.ToImage()}, images[0], pil=is_pil)
    prepared = chain.prepare({name: uniforms[:, :draws] for name, draws in chain.draws.items()}, len(images))
    return chain(images, prepared)


def apart(left: Tensor, right: Tensor) -> int:
    assert left.shape == right.shape
    return int((left.int() - right.int()).abs().max())


@pytest.mark.parametrize("module", [v1, v2])
@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 36, "padding": 4},
        {"size": [20, 30], "padding": [1, 2]},
        {"size": [20, 30], "padding": [1, 2, 3, 4], "padding_mode": "reflect"},
        {"size": 40, "pad_if_needed": True},
        {"size": 36, "padding": 4, "fill": 7},
        {"size": [44, 36], "padding": 3, "padding_mode": "symmetric"},
        {"size": [44, 36], "padding": 3, "padding_mode": "edge"},
    ],
)
def test_random_crop(module: Any, arguments: dict[str, Any], images: Tensor, seed: int) -> None:
    """A crop at (floor(u0 * places), floor(u1 * places)) of the padded image, to the pixel."""
    uniforms = torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(seed))
    transform = module.RandomCrop(**arguments)
    padding = arguments.get("padding", 0)
    if arguments.get("pad_if_needed"):
        padding = [4, 0]
    expected = []
    for image, (u, v) in zip(pil(images), uniforms.tolist(), strict=True):
        padded = F.pad(image, padding, arguments.get("fill", 0), arguments.get("padding_mode", "constant"))
        height, width = transform.size
        places = padded.height - height + 1, padded.width - width + 1
        expected.append(F.crop(padded, int(u * places[0]), int(v * places[1]), height, width))

    assert torch.equal(pixels(expected), run(transform, images, uniforms))


def test_flips(images: Tensor, seed: int) -> None:
    """Images whose number is below p are mirrored, the others as they were."""
    uniforms = torch.rand(COUNT, 1, generator=torch.Generator().manual_seed(seed))
    for transform, flip in (
        (v2.RandomHorizontalFlip(0.3), F.hflip),
        (v1.RandomHorizontalFlip(0.3), F.hflip),
        (v2.RandomVerticalFlip(0.3), F.vflip),
    ):
        pairs = zip(pil(images), uniforms[:, 0].tolist(), strict=True)
        assert torch.equal(pixels([flip(i) if u < 0.3 else i for i, u in pairs]), run(transform, images, uniforms))


def resized_crop_box(size: tuple[int, int], scale: Any, ratio: Any, numbers: list[float]) -> tuple[int, int, int, int]:
    """torchvision's `get_params` of RandomResizedCrop, with its draws taken from a list."""
    height, width = size
    for attempt in range(10):
        area = height * width * (scale[0] + numbers[attempt] * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + numbers[10 + attempt] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (3.0, 5.0)])
def test_random_resized_crop_of_pil_images(mode: str, ratio: tuple[float, float], images: Tensor, seed: int) -> None:
    """The boxes are torchvision's, also where ten attempts fail; the pixels Pillow's within one grey level."""
    uniforms = torch.rand(COUNT, 22, generator=torch.Generator().manual_seed(seed))
    for module in (v1, v2):
        transform = module.RandomResizedCrop(24, ratio=ratio, interpolation=InterpolationMode(mode))
        expected = [
            F.resized_crop(i, *resized_crop_box((40, 36), transform.scale, ratio, u), [24, 24], InterpolationMode(mode))
            for i, u in zip(pil(images), uniforms.double().tolist(), strict=True)
        ]
        assert apart(pixels(expected), run(transform, images, uniforms)) <= (1 if mode == "bilinear" else 0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_random_resized_crop_of_numbers(mode: str, images: Tensor, seed: int) -> None:
    """Floating point images agree with torch's antialiased interpolation."""
    uniforms = torch.rand(COUNT, 22, generator=torch.Generator().manual_seed(seed))
    transform = v2.RandomResizedCrop((24, 30), interpolation=InterpolationMode(mode))
    numbers = images / 255
    expected = [
        v2.functional.resized_crop(
            i, *resized_crop_box((40, 36), transform.scale, transform.ratio, u), [24, 30], InterpolationMode(mode)
        )
        for i, u in zip(numbers, uniforms.double().tolist(), strict=True)
    ]
    assert torch.allclose(torch.stack(expected), run(transform, numbers, uniforms, is_pil=False), atol=1e-5)


def test_random_erasing(images: Tensor, seed: int) -> None:
    """A box of torchvision's size is filled in those images whose first number is below p."""
    uniforms = torch.rand(COUNT, 23, generator=torch.Generator().manual_seed(seed))
    transform = v2.RandomErasing(0.5, value=0.25)
    numbers = images / 255
    erased = run(transform, numbers, uniforms, is_pil=False)
    for image, out, row in zip(numbers, erased, uniforms.double().tolist(), strict=True):
        expected = image.clone()
        for attempt in range(10):
            area = 40 * 36 * (0.02 + row[1 + attempt] * (0.33 - 0.02))
            aspect = math.exp(math.log(0.3) + row[11 + attempt] * (math.log(3.3) - math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < 40 and w < 36:
                i, j = int(row[21] * (40 - h + 1)), int(row[22] * (36 - w + 1))
                if row[0] < 0.5:
                    expected[:, i : i + h, j : j + w] = 0.25
                break
        assert torch.equal(expected, out)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_pillows(name: str, images: Tensor, seed: int) -> None:
    """Each adjustment of bytes is Pillow's within one grey level, for a factor of its own for each image."""
    factors = torch.rand(COUNT, generator=torch.Generator().manual_seed(seed)) * 1.8
    if name == "hue":
        factors = factors / 1.8 - 0.5
    adjust = getattr(F, f"adjust_{name}")
    expected = [adjust(image, factor) for image, factor in zip(pil(images), factors.tolist(), strict=True)]

    assert apart(pixels(expected), getattr(color, f"adjust_{name}")(images, factors.view(-1, 1, 1, 1))) <= 1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_of_numbers(name: str, images: Tensor) -> None:
    """Of floating point images they are torchvision's."""
    numbers, factor = images / 255, 0.3
    expected = getattr(v2.functional, f"adjust_{name}")(numbers, factor)
    result = getattr(color, f"adjust_{name}")(numbers, torch.full((COUNT, 1, 1, 1), factor))

    assert torch.allclose(expected, result, atol=2e-5)


def test_color_jitter_takes_each_image_its_own_way(images: Tensor, seed: int) -> None:
    """The four adjustments in the order of the image's last four numbers, with the factors of its first four."""
    uniforms = torch.rand(COUNT, 8, generator=torch.Generator().manual_seed(seed))
    jitter = v2.ColorJitter(0.4, 0.3, 0.2, 0.1)
    limits = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    adjust = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    expected = []
    for image, row in zip(pil(images), uniforms, strict=True):
        for number in row[4:].argsort().tolist():
            low, high = limits[number]
            image = adjust[number](image, float(low + row[number] * (high - low)))  # noqa: PLW2901
        expected.append(image)

    assert apart(pixels(expected), run(jitter, images, uniforms)) <= 1


@pytest.mark.parametrize("module", [v1, v2])
def test_the_way_to_numbers(module: Any, images: Tensor) -> None:
    """Conversion and normalisation agree with torchvision's to the last bits of float32, v1 or v2."""
    normalize = module.Normalize([0.49, 0.48, 0.44], [0.24, 0.23, 0.26])
    steps = (
        {"tensor": v1.ToTensor()}
        if module is v1
        else {"image": v2.ToImage(), "scale": v2.ToDtype(torch.float32, scale=True)}
    )
    transforms = {**steps, "normalize": normalize}
    chain = BatchedTransforms(transforms, images[0], pil=True)
    expected = torch.stack([module.Compose(list(transforms.values()))(image) for image in pil(images)])

    assert torch.allclose(expected, chain.alone(images), atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resize_of_equal_sizes(mode: str, images: Tensor) -> None:
    """Resizing bytes as a batch is Pillow's result within one grey level."""
    transform = v2.Resize([30, 25], interpolation=InterpolationMode(mode))

    assert (
        apart(pixels([transform(image) for image in pil(images)]), run(transform, images, torch.empty(COUNT, 0))) <= 1
    )


@pytest.mark.parametrize(
    "transform",
    [v2.RandomGrayscale(0.5), v2.RandomInvert(0.5), v2.RandomSolarize(100, 0.5), v2.RandomPosterize(3, 0.5)],
)
def test_some_images_are_changed(transform: Any, images: Tensor, seed: int) -> None:
    """Those whose number is below p are what the transform makes of them, the others as they were."""
    uniforms = torch.rand(COUNT, 1, generator=torch.Generator().manual_seed(seed))
    transform.p = 0.5
    result = run(transform, images, uniforms)
    transform.p = 1.0
    changed = pixels([transform(image) for image in pil(images)])
    rows = uniforms[:, 0] < 0.5

    assert apart(changed[rows], result[rows]) <= 1
    assert torch.equal(images[~rows], result[~rows])


def test_apply_and_compose(images: Tensor, seed: int) -> None:
    """RandomApply and Compose hand each inner transform its own share of the numbers."""
    uniforms = torch.rand(COUNT, 12, generator=torch.Generator().manual_seed(seed))
    inner = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    both = run(inner, images, uniforms)
    flipped = run(v2.RandomVerticalFlip(), run(v2.RandomHorizontalFlip(), images, uniforms), uniforms[:, 1:])
    assert torch.equal(flipped, both)
    applied = run(v2.RandomApply([inner], p=0.4), images, torch.cat([uniforms[:, 5:6], uniforms], 1))
    rows = uniforms[:, 5] < 0.4
    assert torch.equal(both[rows], applied[rows])
    assert torch.equal(images[~rows], applied[~rows])


def test_windows_in_a_row_are_one_stage(images: Tensor, seed: int) -> None:
    """Crop and flip become one gather, conversion and normalisation one function, and give what they give alone."""
    transforms = {"crop": v2.RandomCrop(30), "flip": v2.RandomHorizontalFlip(), "down": v2.RandomVerticalFlip()}
    numbers = {"image": v2.ToImage(), "scale": v2.ToDtype(torch.float32, scale=True), "n": v2.Normalize([0.5], [0.5])}
    chain = BatchedTransforms({**transforms, **numbers}, images[0], pil=True)
    generator = torch.Generator().manual_seed(seed)
    uniforms = {name: torch.rand(COUNT, draws, generator=generator) for name, draws in chain.draws.items()}
    one_by_one = images
    for name, transform in transforms.items():
        one_by_one = run(transform, one_by_one, uniforms[name])

    assert [2, 1] == [len(chain.draws) - 1, len(chain.stages) - 1]
    assert torch.allclose(one_by_one / 127.5 - 1, chain(images, chain.prepare(uniforms, COUNT)), atol=1e-6)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (v2.TrivialAugmentWide(), "one image at a time"),
        (v2.RandomChoice([v2.RandomRotation(20), v2.RandomInvert()]), "one image at a time"),
        (v2.RandomResizedCrop(24, interpolation=InterpolationMode.BICUBIC), "bicubic of bytes"),
        (lambda image: image.rotate(10), "no `draws` and `batched`"),
    ],
)
def test_what_has_no_batched_form_goes_one_by_one(transform: Any, reason: str, images: Tensor) -> None:
    """The images are those that the transform makes of PIL images with these seeds; the reason is said."""
    chain = BatchedTransforms(
        {"flip": v2.RandomVerticalFlip(1.0), "it": transform, "image": v2.ToImage()}, images[0], pil=True
    )
    seeds = torch.arange(COUNT) * 1000
    result = chain(images, chain.prepare({"flip": torch.zeros(COUNT, 1), "it": seeds}, COUNT))
    expected = []
    for image, seed in zip(pil(images), seeds.tolist(), strict=True):
        rng.seed_all(seed)
        expected.append(transform(F.vflip(image)))

    assert (["it"], True) == (list(chain.looped), reason in chain.looped["it"])
    assert torch.equal(pixels(expected), result)


@pytest.mark.parametrize("kind", [v2.ToImage(), v2.ToPureTensor(), v2.PILToTensor(), v1.ToTensor()])
def test_one_by_one_a_transform_gets_the_type_that_it_gets_alone(kind: Any, images: Tensor) -> None:
    """A PIL image, a tv_tensor or a plain tensor; and what comes next, too."""
    seen: list[type] = []

    def look(image: Any) -> Any:
        seen.append(type(image))
        return image

    transforms = {"before": look, "kind": kind, "after": look, "image": v2.ToImage(), "last": look}
    BatchedTransforms(transforms, images[0], pil=True)
    together, seen[:] = list(seen), []
    single = pil(images)[0]
    for transform in transforms.values():
        single = transform(single)

    assert seen == together


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (v2.RandomCrop(99), "larger than the padded image"),
        (v2.Normalize([0.5], [0.5]), "float32"),
        (str, "it gives str"),
    ],
)
def test_what_refuses_a_sample_says_why(transform: Any, reason: str, images: Tensor) -> None:
    """The reason names the transform."""
    with pytest.raises(NotBatched, match=f"^no batched form of it .*{reason}"):
        BatchedTransforms({"it": transform}, images[0], pil=True)


def test_pil_images_that_are_left_are_refused(images: Tensor) -> None:
    """Where the per-sample path would fail to collate PIL images, whole batches do not work by luck."""
    with pytest.raises(NotBatched, match="leave PIL images"):
        BatchedTransforms({"flip": v2.RandomHorizontalFlip()}, images[0], pil=True)
