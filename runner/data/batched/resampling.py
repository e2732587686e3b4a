"""Resize and resized crop of a batch, as Pillow and torch resample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.geometry import ATTEMPTS, draw_boxes, is_v2
from runner.data.batched.steps import ChainState, NotBatched, Places, TransformStep, make_pixel_gather


def make_random_resized_crop(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of RandomResizedCrop: a random box, resampled to `size`."""
    size, scale, ratio = [*transform.size], transform.scale, transform.ratio
    mode = getattr(transform.interpolation, "value", transform.interpolation)
    antialias = state.pil or bool(transform.antialias)
    if mode in ("nearest", "nearest-exact"):
        both = zip(state.size, size, strict=True)
        make = _make_pillow_nearest if state.pil else _make_torch_nearest
        down, across = (make(total, out, mode) for total, out in both)

        def places(rows: int, columns: int, uniforms: Tensor) -> Places:
            top, left, height, width, _ = draw_boxes((rows, columns), scale, ratio, uniforms, erasing=False)
            return down(top, height), across(left, width)

        return [make_pixel_gather(2 * ATTEMPTS + 2, places)]
    _check_interpolation(mode, state)
    if mode == "bicubic" and not antialias:
        raise NotBatched("bicubic without antialias")

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        top, left, height, width, _ = draw_boxes((rows, columns), scale, ratio, uniforms, erasing=False)
        across = _compute_weights(left, width, columns, size[1], mode, antialias=antialias).to(images.device)
        down = _compute_weights(top, height, rows, size[0], mode, antialias=antialias).to(images.device)
        return resample(images, down, across)

    return [TransformStep(2 * ATTEMPTS + 2, run)]


def _check_interpolation(mode: str, state: ChainState) -> None:
    """Refuse an interpolation whose result may differ by more than one grey level.

    Pillow cuts bicubic bytes off between its two directions, whose order it chooses by size (13.0; formerly columns
    first): up to 29 grey levels apart.
    """
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        raise NotBatched(f"interpolation {mode}")
    if mode == "bicubic" and state.sample.dtype == torch.uint8:
        raise NotBatched(
            "bicubic of bytes depends on which direction comes first, and Pillow's versions differ in that"
        )


def _compute_nearest(start: Tensor, length: Tensor, out: int) -> Tensor:
    """Return the source pixel of each of `out` pixels in boxes [start, start+length), int64 [N, out].

    Pillow adds up the steps in double precision (`ImagingScaleAffine`).
    """
    step = (length[:, None].double() / out).repeat(1, out)
    step[:, 0] = step[:, 0] / 2
    return start[:, None] + torch.minimum(step.cumsum(1).long(), length[:, None] - 1)


def _make_pillow_nearest(_total: int, out: int, _mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda start, length: _compute_nearest(start, length, out)


def _make_torch_nearest(total: int, out: int, mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a lookup of torch's own nearest pixels, for boxes of each length up to `total`."""
    numbers = torch.arange(float(total))
    lengths = [
        torch.nn.functional.interpolate(numbers[None, None, None, :length], size=(1, out), mode=mode)[0, 0, 0]
        for length in range(1, total + 1)
    ]
    table = torch.stack(lengths).long()
    return lambda start, length: start[:, None] + table[length - 1]


def _compute_weights(start: Tensor, length: Tensor, total: int, out: int, mode: str, *, antialias: bool) -> Tensor:
    """Compute the resampling weights of `_compute_matrix` in float32."""
    return _compute_matrix(start, length, total, out, mode, antialias=antialias).float()


def _compute_matrix(start: Tensor, length: Tensor, total: int, out: int, mode: str, *, antialias: bool) -> Tensor:
    """Compute resampling weights, float64 [N, out, total], for boxes [start, start+length).

    Pillow's `precompute_coeffs` (Resample.c): a triangle, or the cubic with a = -0.5, widened where it shrinks, and
    normalised to 1 at the edges. torchvision's tensors with `antialias` use the same.
    """
    scale = (length.double() / out)[:, None, None]
    widened = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    centre = (torch.arange(out, dtype=torch.float64)[None, :, None] + 0.5) * scale
    pixel = torch.arange(total, dtype=torch.float64)[None, None, :] - start[:, None, None]
    x = ((pixel + 0.5 - centre) / widened).abs()
    if mode == "bilinear":
        weight = (1 - x).clamp(min=0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def _resample_bytes(images: Tensor, matrix: Tensor, place: int) -> Tensor:
    """Resample bytes [N, C, H, W] by a matrix [1, out, total] in Pillow's integers (Resample.c)."""
    fixed = (matrix[0] * 2**22 + 0.5).floor().to(images.device)  # float64 holds their products and sums exactly
    turned = images.transpose(place, 3).double() @ fixed.T
    return ((turned + 2**21) / 2**22).floor_().clamp_(0, 255).to(images.dtype).transpose(place, 3).contiguous()


def resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Resample images [N, C, H, W] by matrices [N or 1, H', H] and [N or 1, W', W].

    Bytes are rounded once, at the end. Pillow and torch round after each direction, and differ in which comes first:
    each lies within one grey level of this, and up to two from the other.
    """
    count, channels, rows, columns = images.shape
    wide = torch.matmul(images.to(down.dtype).reshape(count, channels * rows, columns), across.transpose(1, 2))
    return _round_to_dtype(torch.matmul(down[:, None], wide.view(count, channels, rows, -1)), images.dtype)


def _round_to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast values to the dtype of the images; round and clamp them for bytes."""
    return values.to(dtype) if dtype.is_floating_point else values.add_(0.5).floor_().clamp_(0, 255).to(dtype)


def make_resize(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of Resize."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as functional_v1
    from torchvision.transforms.v2 import functional

    mode = getattr(transform.interpolation, "value", transform.interpolation)
    _check_interpolation(mode, state)
    size, longest = transform.size, getattr(transform, "max_size", None)
    antialias = state.pil or transform.antialias

    def run(images: Tensor, _: Tensor) -> Tensor:
        how = {"interpolation": InterpolationMode(mode), "max_size": longest, "antialias": antialias}
        resized: Tensor = (functional if is_v2(transform) else functional_v1).resize(images, size, **how)
        return resized

    height, width = run(state.sample, torch.empty(1, 0)).shape[-2:]
    zero = torch.zeros(1, dtype=torch.int64)

    def weighted(images: Tensor, _: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        for out, total, place in ((width, columns, 3), (height, rows, 2)):  # as Pillow, bytes after each direction
            if out != total:
                images = _resample_bytes(
                    images, _compute_matrix(zero, zero + total, total, out, mode, antialias=True), place
                )
        return images

    if state.pil and state.sample.dtype == torch.uint8 and mode == "bilinear":
        return [TransformStep(0, weighted)]
    if not (state.pil and mode.startswith("nearest")):
        return [TransformStep(0, run)]

    def places(rows: int, columns: int, _: Tensor) -> Places:
        return _compute_nearest(zero, zero + rows, height), _compute_nearest(zero, zero + columns, width)

    return [make_pixel_gather(0, places)]
