"""Transforms on whole batches, each sample with numbers of its own.

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

from runner.data.batched.forms import _form, _one_by_one
from runner.data.batched.steps import Looped, NotBatched, Pointwise, Step, Window, _State, move, pointwise


@dataclass
class _Part:
    """A step of the transform `name`, which takes these columns of the transform's uniforms."""

    name: str
    columns: slice
    step: Step
    size: tuple[int, int]  # height and width of the images it gets


class Chain:
    """Named transforms in order as batched steps; what has no batched form goes through its images one by one.

    Attributes:
        draws: how many uniform numbers each transform takes for a sample.
        looped: the transforms that take a seed for each sample instead, and why.

    Args:
        transforms: by name, in order.
        sample: one raw sample [C, H, W]; the steps are made for its size and dtype.
        pil: whether the per-sample path would see a PIL image, whose semantics are then kept.

    Raises:
        NotBatched: one of them refuses the sample (the text names it), or PIL images would be left.
    """

    def __init__(self, transforms: Mapping[str, Any], sample: Tensor, *, pil: bool = False) -> None:
        self.draws: dict[str, int] = {}
        self.looped: dict[str, str] = {}
        self.stages: list[list[_Part]] = []
        state = _State(sample[None], "pil" if pil else "tensor")
        for name, transform in transforms.items():
            before = replace(state)
            try:
                steps = _form(transform, state)
            except NotBatched as reason:
                state = before
                steps = [_one_by_one(name, transform, state, str(reason))]
                self.looped[name] = str(reason)
            drawn = 0
            for step, size in steps:
                self._append(_Part(name, slice(drawn, drawn + step.draws), step, size))
                drawn += step.draws
            if drawn:
                self.draws[name] = drawn
        if state.pil:
            message = "the transforms leave PIL images, which make no batch"
            raise NotBatched(message)

    def _append(self, part: _Part) -> None:
        """Add a step; windows that follow each other become one stage, pointwise functions one function."""
        last = self.stages[-1][-1].step if self.stages else None
        if isinstance(last, Pointwise) and isinstance(part.step, Pointwise):
            both = pointwise(*last.operations, *part.step.operations)
            self.stages[-1] = [_Part(part.name, part.columns, both, part.size)]
        elif isinstance(last, Window) and isinstance(part.step, Window):
            self.stages[-1].append(part)
        else:
            self.stages.append([part])

    def split(self) -> tuple["Chain", "Chain"]:
        """What draws nothing and has nothing random before it (once is enough for it), and the rest."""
        random = [any(_is_random(part.step) for part in stage) for stage in self.stages]
        first = random.index(True) if any(random) else len(random)
        return self._of(self.stages[:first]), self._of(self.stages[first:])

    def _of(self, stages: list[list[_Part]]) -> "Chain":
        chain = Chain.__new__(Chain)
        names = {part.name for stage in stages for part in stage}
        chain.draws = {name: draws for name, draws in self.draws.items() if name in names}
        chain.looped = {name: reason for name, reason in self.looped.items() if name in names}
        chain.stages = stages
        return chain

    def prepare(self, uniforms: Mapping[str, Tensor], count: int) -> list[tuple[Tensor, ...]]:
        """For each stage what it needs of `count` samples, [count, ...] on the CPU, so that any part can be sliced out.

        `uniforms` has the numbers [count, draws] of each transform in `draws`, and the seeds of those in `looped`.
        """
        return [
            self._places(stage, uniforms, count)
            if isinstance(stage[0].step, Window)
            else (_numbers(stage[0], uniforms, count),)
            for stage in self.stages
        ]

    def _places(self, stage: list[_Part], uniforms: Mapping[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Rows and columns [count, ...] that windows in a row take together."""
        height, width = stage[0].size
        rows, columns = None, None
        for part in stage:
            assert isinstance(part.step, Window)
            height, width = part.size
            inner = part.step.places(height, width, _numbers(part, uniforms, count))
            rows, columns = _through(rows, inner[0]), _through(columns, inner[1])
        rows = torch.arange(height)[None] if rows is None else rows
        columns = torch.arange(width)[None] if columns is None else columns
        return rows.int().expand(count, -1), columns.int().expand(count, -1)

    def __call__(
        self, images: Tensor, prepared: list[tuple[Tensor, ...]], device: torch.device | None = None
    ) -> Tensor:
        """The transformed images [N, C, H', W'] of [N, C, H, W]; `prepared` is a slice of what `prepare` gave.

        `device` is where they go after the last transform of single images, which runs on the CPU.

        Raises:
            Failed: such a transform refused an image.
        """
        loops = [number for number, stage in enumerate(self.stages) if isinstance(stage[0].step, Looped)]
        for number, (stage, needs) in enumerate(zip(self.stages, prepared, strict=True)):
            step = stage[0].step
            images = move(images, *needs) if isinstance(step, Window) else step.run(images, *needs)
            if number in loops[-1:] and device is not None:
                images = images.to(device, non_blocking=True)
        return images

    def alone(self, images: Tensor) -> Tensor:
        """The transformed images, with zeros for random numbers: for what draws nothing, and to see shapes."""
        zeros = {name: torch.zeros(len(images), draws) for name, draws in self.draws.items()}
        zeros |= {name: torch.zeros(len(images), dtype=torch.int64) for name in self.looped}
        return self(images, self.prepare(zeros, len(images)))


def _is_random(step: Step) -> bool:
    return not step.repeatable if isinstance(step, Looped) else step.draws > 0


def _numbers(part: _Part, uniforms: Mapping[str, Tensor], count: int) -> Tensor:
    if isinstance(part.step, Looped):
        return uniforms[part.name]
    return uniforms[part.name][:, part.columns] if part.step.draws else torch.empty(count, 0)


def _through(outer: Tensor | None, inner: Tensor | None) -> Tensor | None:
    """The places of `inner` in what `outer` gives; None is every place as it is."""
    if outer is None or inner is None:
        return inner if outer is None else outer
    count = max(len(outer), len(inner))
    return outer.expand(count, -1).gather(1, inner.expand(count, -1))
