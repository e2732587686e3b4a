"""Steps of batched transforms: pixel gathers, pointwise operations, functions of the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from runner.data.batched.per_image import Kind

How = Literal["pil", "v1", "v2"]  # whose colours: Pillow's, or those of torchvision's tensors


Places = tuple[Tensor | None, Tensor | None]  # rows and columns, int64 [N or 1, H'] and [N or 1, W']; None: as they are


class NotBatched(ValueError):
    """Error: a transform has no batched form; the message gives the reason."""


@dataclass(frozen=True)
class TransformStep:
    """Function of images [N, C, H, W] and uniforms [N, draws] in [0, 1), float32 on the CPU."""

    draws: int
    run: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PixelGather(TransformStep):
    """Step that only moves pixels; `places(height, width, uniforms)` returns source rows and columns."""

    places: Callable[[int, int, Tensor], Places]


@dataclass(frozen=True)
class PointwiseStep(TransformStep):
    """Float32 tensor methods (`mul_`, `sub_`, `div_`) in order, each with a number or [C, 1, 1]."""

    operations: tuple[tuple[str, Tensor], ...]


def make_pixel_gather(draws: int, places: Callable[[int, int, Tensor], Places]) -> PixelGather:
    """Make a pixel gather that also runs alone."""

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = places(height, width, uniforms)
        rows = torch.arange(height)[None] if rows is None else rows
        return move(images, rows, torch.arange(width)[None] if columns is None else columns)

    return PixelGather(draws, run, places)


def move(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather pixel (i, j) of [N, C, H', W'] from (rows[n, i], columns[n, j]) of images [N, C, H, W]."""
    count, channels, _, width = images.shape
    rows, columns = (places.to(images.device, torch.int32) for places in (rows, columns))
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).long()  # in int32 a fifth of the time
    gathered = images.flatten(2).gather(2, places[:, None].expand(count, channels, -1))
    return gathered.view(count, channels, rows.shape[1], columns.shape[1])


def make_pointwise(*operations: tuple[str, Tensor]) -> PointwiseStep:
    """Make a pointwise step that also runs alone: torchvision's operations in order, bitwise equal."""

    def run(images: Tensor, _: Tensor) -> Tensor:
        changed = images.to(torch.float32, copy=True)
        for name, operand in operations:
            getattr(changed, name)(operand.to(images.device))
        return changed

    return PointwiseStep(0, run, operations)


@dataclass(frozen=True)
class PerImageStep(TransformStep):
    """Transform of single images; instead of uniforms it takes a seed per sample, int64 [N]."""

    reason: str  # why it has no batched form
    repeatable: bool  # whether it gives the same each time, so that once is enough


@dataclass
class ChainState:
    """State of a chain under construction: one sample [1, C, H, W] after the steps so far, and its kind."""

    sample: Tensor
    kind: Kind

    @property
    def pil(self) -> bool:
        return self.kind == "pil"

    @property
    def size(self) -> tuple[int, int]:
        return (self.sample.shape[-2], self.sample.shape[-1]) if self.sample.dim() > 2 else (0, 0)
