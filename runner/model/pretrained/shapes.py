"""Adapt a checkpoint tensor to another shape: other channels, classes or image size."""

import math
from collections.abc import Callable

from torch import Size, Tensor, cat
from torch.nn import functional as F

Adapter = Callable[[Tensor, Size], tuple[Tensor, str]]  # raises ValueError where it does not apply


def _slice(value: Tensor, wanted: Size) -> tuple[Tensor, str]:
    """Take the corner common to both shapes; the caller keeps the rest of the model's tensor."""
    if value.dim() != len(wanted):
        raise ValueError("the numbers of dimensions differ")
    common = [min(a, b) for a, b in zip(value.shape, wanted, strict=True)]
    return value[tuple(map(slice, common))], f"the first {common}"


def _get_channels(value: Tensor, wanted: Size) -> tuple[int, int]:
    same_rank = value.dim() == len(wanted) >= 3
    if not same_rank or value.shape[:1] + value.shape[2:] != wanted[:1] + wanted[2:]:
        raise ValueError("it is for convolutions whose input channels (dimension 1) alone differ")
    return value.shape[1], wanted[1]


def _sum(value: Tensor, wanted: Size) -> tuple[Tensor, str]:
    """Sum the input channels into one: a grey image gives the output of the image with equal channels."""
    old, new = _get_channels(value, wanted)
    if new != 1:
        raise ValueError("the model must have one input channel")
    return value.sum(1, keepdim=True), f"the sum over {old} input channels"


def _repeat(value: Tensor, wanted: Size) -> tuple[Tensor, str]:
    """Repeat the input channels in turn, scaled by old/new to keep the output's size (as timm does)."""
    old, new = _get_channels(value, wanted)
    if new < old:
        raise ValueError("the model has fewer input channels")
    repeated = value.repeat(1, math.ceil(new / old), *[1] * (value.dim() - 2))[:, :new]
    return repeated * (old / new), f"{old} input channels in turn, times {old}/{new}"


def _interpolate(value: Tensor, wanted: Size) -> tuple[Tensor, str]:
    """Resize position embeddings, bicubic with aligned corners, as torchvision does.

    [1, n, d] or [n, d] with n = a square plus up to two leading tokens (class, distillation), which are kept as they
    are; [1, h, w, d] or [1, d, h, w].
    """
    if value.dim() != len(wanted) or value.dim() not in {2, 3, 4} or (value.dim() > 2 and value.shape[0] != 1):
        raise ValueError("it is for position embeddings, [1, n, d], [n, d], [1, h, w, d] or [1, d, h, w]")
    if value.dim() == 4:
        last = value.shape[3] == wanted[3]
        if not last and value.shape[1] != wanted[1]:
            raise ValueError("the widths differ")
        images = value.permute(0, 3, 1, 2) if last else value
        size = wanted[1:3] if last else wanted[2:]
        resized = _resize(images, (int(size[0]), int(size[1])))
        return (resized.permute(0, 2, 3, 1) if last else resized), f"a grid of {list(images.shape[2:])} to {list(size)}"
    old, new, width = value.shape[-2], wanted[-2], value.shape[-1]
    if width != wanted[-1]:
        raise ValueError("the widths differ")
    for tokens in range(3):
        sides = math.isqrt(max(old - tokens, 0)), math.isqrt(max(new - tokens, 0))
        if all(sides) and (sides[0] ** 2, sides[1] ** 2) == (old - tokens, new - tokens):
            break
    else:
        raise ValueError("neither is a square grid with up to two tokens before it")
    flat = value.reshape(old, width)
    images = flat[tokens:].T.reshape(1, width, sides[0], sides[0])
    grid = _resize(images, (sides[1], sides[1])).reshape(width, -1).T
    note = f"a grid of {sides[0]}x{sides[0]} to {sides[1]}x{sides[1]}{f' after {tokens} token' if tokens else ''}"
    return cat([flat[:tokens], grid.to(flat)]).reshape(wanted), note


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images.float(), size=size, mode="bicubic", align_corners=True).to(images.dtype)


ADAPT: dict[str, Adapter] = {"slice": _slice, "sum": _sum, "repeat": _repeat, "interpolate": _interpolate}
