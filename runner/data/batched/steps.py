"""The step of a batched chain: a pixel gather, operations on each number, or a function of the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from runner.data.batched.per_image import Kind

How = Literal["pil", "v1", "v2"]  # whose colours: Pillow's, or those of torchvision's tensors


Places = tuple[Tensor | None, Tensor | None]  # rows and columns, int64 [N or 1, H'] and [N or 1, W']; None: as they are


class NotBatched(ValueError):
    """A transform has no batched form; the text says why."""


@dataclass(frozen=True)
class Step:
    """A function of images [N, C, H, W] and uniforms [N, draws] in [0, 1), float32 on the CPU."""

    draws: int
    run: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Window(Step):
    """A step that only moves pixels: `places(height, width, uniforms)` says from which rows and columns they come."""

    places: Callable[[int, int, Tensor], Places]


@dataclass(frozen=True)
class Pointwise(Step):
    """Methods of float32 tensors (`mul_`, `sub_`, `div_`), each with a number or [C, 1, 1], in order."""

    operations: tuple[tuple[str, Tensor], ...]


def window(draws: int, places: Callable[[int, int, Tensor], Places]) -> Window:
    """A window that also runs alone."""

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = places(height, width, uniforms)
        rows = torch.arange(height)[None] if rows is None else rows
        return move(images, rows, torch.arange(width)[None] if columns is None else columns)

    return Window(draws, run, places)


def move(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images [N, C, H, W] → [N, C, H', W'], by one flat gather: pixel (i, j) comes from (rows[n, i], columns[n, j])."""
    count, channels, _, width = images.shape
    rows, columns = (places.to(images.device, torch.int32) for places in (rows, columns))
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).long()  # in int32 a fifth of the time
    gathered = images.flatten(2).gather(2, places[:, None].expand(count, channels, -1))
    return gathered.view(count, channels, rows.shape[1], columns.shape[1])


def pointwise(*operations: tuple[str, Tensor]) -> Pointwise:
    """A pointwise step that also runs alone: torchvision's own operations in their order, so the same bits."""

    def run(images: Tensor, _: Tensor) -> Tensor:
        changed = images.to(torch.float32, copy=True)
        for name, operand in operations:
            getattr(changed, name)(operand.to(images.device))
        return changed

    return Pointwise(0, run, operations)


@dataclass(frozen=True)
class Looped(Step):
    """A transform of single images; in place of uniforms it gets a seed for each sample, int64 [N]."""

    reason: str  # why it has no batched form
    repeatable: bool  # whether it gives the same each time, so that once is enough


@dataclass
class _State:
    """What the steps so far make of one raw sample [1, C, H, W], and what it would be, sample by sample."""

    sample: Tensor
    kind: Kind

    @property
    def pil(self) -> bool:
        return self.kind == "pil"

    @property
    def size(self) -> tuple[int, int]:
        return (self.sample.shape[-2], self.sample.shape[-1]) if self.sample.dim() > 2 else (0, 0)
