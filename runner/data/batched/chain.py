"""Transforms on whole batches, each sample with its own random numbers.

torchvision's transforms draw once a call, so a batch given to one of them would get the same crop for every image.
Here each has a form that takes images [N, C, H, W] and uniform numbers [N, draws] from a keyed stream and does to image
i what the transform does to a single image with those draws. Crops and flips only move pixels: however many follow each
other, they become one gather (128 images of 3x32x32 on one core: 350 k images/s, against 8 k for PIL).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.forms import build_steps, make_per_image_step
from runner.data.batched.scheduled import ScheduledTransform
from runner.data.batched.steps import (
    ChainState,
    NotBatched,
    PerImageStep,
    PixelGather,
    PointwiseStep,
    TransformStep,
    make_pointwise,
    move,
)


@dataclass
class _TransformPart:
    """Step of the transform `name`, with its columns of the transform's uniforms."""

    name: str
    columns: slice
    step: TransformStep
    size: tuple[int, int]  # height and width of the images it gets


class BatchedTransforms:
    """Named transforms in order, as batched steps; images go one by one where no batched form exists.

    Attributes:
        draws: how many uniform numbers each transform takes for a sample.
        looped: the transforms that take a seed for each sample instead, and why.

    Args:
        transforms: by name, in order.
        sample: one raw sample [C, H, W]; the steps are made for its size and dtype.
        pil: whether the per-sample path would see a PIL image, whose semantics are then kept.
        always: whether transforms of a certain time count at all times.

    Raises:
        NotBatched: one of them refuses the sample (the text names it), or PIL images would be left.
    """

    def __init__(
        self, transforms: Mapping[str, Any], sample: Tensor, *, pil: bool = False, always: bool = False
    ) -> None:
        self.draws: dict[str, int] = {}
        self.looped: dict[str, str] = {}
        self.stages: list[list[_TransformPart]] = []
        state = ChainState(sample[None], "pil" if pil else "tensor")
        for name, given in transforms.items():
            transform = given
            if isinstance(given, ScheduledTransform):
                if not (always or given.is_due()):
                    continue
                transform = given.transform
            before = replace(state)
            try:
                steps = build_steps(transform, state)
            except NotBatched as reason:
                state = before
                steps = [make_per_image_step(name, transform, state, str(reason))]
                self.looped[name] = str(reason)
            drawn = 0
            for step, size in steps:
                self._append(_TransformPart(name, slice(drawn, drawn + step.draws), step, size))
                drawn += step.draws
            if drawn:
                self.draws[name] = drawn
        if state.pil:
            message = "the transforms leave PIL images, which make no batch"
            raise NotBatched(message)

    def _append(self, part: _TransformPart) -> None:
        """Append a step; merge adjacent pixel gathers into one stage and pointwise steps into one step."""
        last = self.stages[-1][-1].step if self.stages else None
        if isinstance(last, PointwiseStep) and isinstance(part.step, PointwiseStep):
            both = make_pointwise(*last.operations, *part.step.operations)
            self.stages[-1] = [_TransformPart(part.name, part.columns, both, part.size)]
        elif isinstance(last, PixelGather) and isinstance(part.step, PixelGather):
            self.stages[-1].append(part)
        else:
            self.stages.append([part])

    def split(self) -> tuple["BatchedTransforms", "BatchedTransforms"]:
        """Split off the leading deterministic stages; return them and the remaining stages."""
        random = [any(_is_random(part.step) for part in stage) for stage in self.stages]
        first = random.index(True) if any(random) else len(random)
        return self._of(self.stages[:first]), self._of(self.stages[first:])

    def _of(self, stages: list[list[_TransformPart]]) -> "BatchedTransforms":
        chain = BatchedTransforms.__new__(BatchedTransforms)
        names = {part.name for stage in stages for part in stage}
        chain.draws = {name: draws for name, draws in self.draws.items() if name in names}
        chain.looped = {name: reason for name, reason in self.looped.items() if name in names}
        chain.stages = stages
        return chain

    def prepare(self, uniforms: Mapping[str, Tensor], count: int) -> list[tuple[Tensor, ...]]:
        """Return each stage's inputs for `count` samples, tensors [count, ...] on the CPU that can be sliced.

        `uniforms` has the numbers [count, draws] of each transform in `draws`, and the seeds of those in `looped`.
        """
        return [
            self._places(stage, uniforms, count)
            if isinstance(stage[0].step, PixelGather)
            else (_select_uniforms(stage[0], uniforms, count),)
            for stage in self.stages
        ]

    def _places(self, stage: list[_TransformPart], uniforms: Mapping[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Compose consecutive pixel gathers; return rows and columns [count, ...]."""
        height, width = stage[0].size
        rows, columns = None, None
        for part in stage:
            assert isinstance(part.step, PixelGather)
            height, width = part.size
            inner = part.step.places(height, width, _select_uniforms(part, uniforms, count))
            rows, columns = _compose_places(rows, inner[0]), _compose_places(columns, inner[1])
        rows = torch.arange(height)[None] if rows is None else rows
        columns = torch.arange(width)[None] if columns is None else columns
        return rows.int().expand(count, -1), columns.int().expand(count, -1)

    def __call__(
        self, images: Tensor, prepared: list[tuple[Tensor, ...]], device: torch.device | None = None
    ) -> Tensor:
        """Transform images [N, C, H, W] to [N, C, H', W']; `prepared` is a slice of the result of `prepare`.

        `device` is where they go after the last transform of single images, which runs on the CPU.

        Raises:
            Failed: such a transform refused an image.
        """
        loops = [number for number, stage in enumerate(self.stages) if isinstance(stage[0].step, PerImageStep)]
        for number, (stage, needs) in enumerate(zip(self.stages, prepared, strict=True)):
            step = stage[0].step
            images = move(images, *needs) if isinstance(step, PixelGather) else step.run(images, *needs)
            if number in loops[-1:] and device is not None:
                images = images.to(device, non_blocking=True)
        return images

    def alone(self, images: Tensor) -> Tensor:
        """Transform images with zeros as random numbers: for deterministic stages and to find shapes."""
        zeros = {name: torch.zeros(len(images), draws) for name, draws in self.draws.items()}
        zeros |= {name: torch.zeros(len(images), dtype=torch.int64) for name in self.looped}
        return self(images, self.prepare(zeros, len(images)))


def _is_random(step: TransformStep) -> bool:
    return not step.repeatable if isinstance(step, PerImageStep) else step.draws > 0


def _select_uniforms(part: _TransformPart, uniforms: Mapping[str, Tensor], count: int) -> Tensor:
    if isinstance(part.step, PerImageStep):
        return uniforms[part.name]
    return uniforms[part.name][:, part.columns] if part.step.draws else torch.empty(count, 0)


def _compose_places(outer: Tensor | None, inner: Tensor | None) -> Tensor | None:
    """Index the places of `outer` with those of `inner`; None is the identity."""
    if outer is None or inner is None:
        return inner if outer is None else outer
    count = max(len(outer), len(inner))
    return outer.expand(count, -1).gather(1, inner.expand(count, -1))
