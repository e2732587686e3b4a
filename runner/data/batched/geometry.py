"""Geometric transforms on a batch: crop, pad, flip, erase."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.steps import ChainState, NotBatched, PixelGather, Places, TransformStep, make_pixel_gather

ATTEMPTS = 10  # torchvision draws a box so often before it takes the middle, or leaves the image alone


# ---- pixels that move


def _make_crop(size: Sequence[int]) -> PixelGather:
    """Make a crop of `size` at a uniformly drawn place (torchvision's RandomCrop.make_params)."""
    height, width = size

    def places(rows: int, columns: int, uniforms: Tensor) -> Places:
        top = (uniforms[:, :1] * (rows - height + 1)).long()
        left = (uniforms[:, 1:2] * (columns - width + 1)).long()
        return top + torch.arange(height), left + torch.arange(width)

    return make_pixel_gather(2, places)


def make_random_crop(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of RandomCrop: padding, then a pixel gather of a random box."""
    left, top, right, bottom = _read_padding(transform)
    height, width = transform.size
    rows, columns = state.size[0] + top + bottom, state.size[1] + left + right
    pads = [[left, top, right, bottom]]
    if transform.pad_if_needed:
        down, across = max(0, height - rows), max(0, width - columns)
        rows, columns = rows + 2 * down, columns + 2 * across
        if is_v2(transform):
            pads = [[left + across, top + down, right + across, bottom + down]]
        else:  # v1 pads what is padded already: not the same where that mirrors
            pads.append([across, down, across, down])
    if height > rows or width > columns:
        raise NotBatched(f"the crop {height}x{width} is larger than the padded image")
    return [*(_make_pad_step(padding, transform) for padding in pads if any(padding)), _make_crop(transform.size)]


def _read_padding(transform: Any) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom; v2's RandomCrop has them as left, right, top, bottom."""
    padding = transform.padding
    if not padding:
        return 0, 0, 0, 0
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 4 and type(transform).__name__ == "RandomCrop" and is_v2(transform):
        left, right, top, bottom = padding
        return left, top, right, bottom
    left, top, right, bottom = [*padding] * (4 // len(padding))
    return left, top, right, bottom


def is_v2(transform: Any) -> bool:
    """Return whether a transform is one of torchvision.transforms.v2."""
    return type(transform).__module__.startswith("torchvision.transforms.v2.")


def _make_pad_step(padding: list[int], transform: Any) -> TransformStep:
    from torchvision.transforms.v2 import functional

    fill, mode = transform.fill, transform.padding_mode
    if not isinstance(fill, int | float | list | tuple | None):
        raise NotBatched("its fill depends on the type of the image")
    return TransformStep(0, lambda images, _: functional.pad(images, padding, fill=fill, padding_mode=mode))


def make_pad(transform: Any, _: ChainState) -> list[TransformStep]:
    """Make the step of Pad."""
    return [_make_pad_step(list(_read_padding(transform)), transform)]


def make_flip(transform: Any, *, of_rows: bool) -> list[TransformStep]:
    """Make the step of RandomVerticalFlip (`of_rows`) or RandomHorizontalFlip."""

    def places(height: int, width: int, uniforms: Tensor) -> Places:
        places = torch.arange(height if of_rows else width)[None]
        flipped = torch.where(uniforms[:, :1] < transform.p, places.flip(1), places)
        return (flipped, None) if of_rows else (None, flipped)

    return [make_pixel_gather(1, places)]


# ---- boxes that are resized


def draw_boxes(
    size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float], uniforms: Tensor, *, erasing: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw boxes from uniforms [N, 22]: top, left, height, width (int64 [N]) and whether one was found.

    Columns 0 to 9 are the areas of ten attempts, 10 to 19 their ratios, 20 and 21 the place; torchvision's make_params
    of RandomResizedCrop (ratio is width : height, at most the image) and RandomErasing (height : width, less).
    """
    rows, columns = size
    numbers = uniforms.double()
    area = rows * columns * (scale[0] + numbers[:, :ATTEMPTS] * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + numbers[:, ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    long, short = torch.sqrt(area * shape).round().long(), torch.sqrt(area / shape).round().long()
    heights, widths = (long, short) if erasing else (short, long)
    fits = (heights < rows) & (widths < columns) if erasing else (heights <= rows) & (widths <= columns)
    fits &= erasing | ((heights > 0) & (widths > 0))
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    height, width = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    middle_height, middle_width = _compute_fallback_box(rows, columns, ratio)
    height, width = torch.where(found, height, middle_height), torch.where(found, width, middle_width)
    top = (numbers[:, 2 * ATTEMPTS] * (rows - height + 1)).long()
    left = (numbers[:, 2 * ATTEMPTS + 1] * (columns - width + 1)).long()
    top, left = torch.where(found, top, (rows - height) // 2), torch.where(found, left, (columns - width) // 2)
    return top, left, height, width, found


def _compute_fallback_box(rows: int, columns: int, ratio: Sequence[float]) -> tuple[int, int]:
    """Compute height and width of torchvision's box for images where no attempt fits."""
    if columns / rows < min(ratio):
        return round(columns / min(ratio)), columns
    if columns / rows > max(ratio):
        return rows, round(rows * max(ratio))
    return rows, columns


def make_random_erasing(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of RandomErasing: a random box filled with `value`."""
    value = transform.value
    if state.pil:
        raise NotBatched("RandomErasing takes tensors, and gets PIL images")
    if value is None or isinstance(value, str):
        raise NotBatched("its random fill needs numbers for every pixel")
    fill = torch.tensor(value, dtype=torch.float32).view(-1, 1, 1)

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        size, box = (rows, columns), uniforms[:, 1:]
        top, left, height, width, found = draw_boxes(size, transform.scale, transform.ratio, box, erasing=True)
        found &= uniforms[:, 0] < transform.p
        down = _mark_inside(top, height, rows) & found[:, None]
        erased = (down[:, :, None] & _mark_inside(left, width, columns)[:, None, :])[:, None].to(images.device)
        return torch.where(erased, fill.to(images.device, images.dtype), images)

    return [TransformStep(2 * ATTEMPTS + 3, run)]


def _mark_inside(start: Tensor, length: Tensor, total: int) -> Tensor:
    places = torch.arange(total)
    return (places >= start[:, None]) & (places < (start + length)[:, None])
