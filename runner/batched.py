"""Transforms on whole batches, each sample with numbers of its own.

torchvision's transforms draw once a call, so a batch given to one of them would get the same crop for every image.
Here each has a form that takes images [N, C, H, W] and uniform numbers [N, draws] from a keyed stream and does to image
i what the transform does to a single image with those draws. Crops and flips only move pixels: however many follow each
other, they become one gather (128 images of 3x32x32 on one core: 350 k images/s, against 8 k for PIL).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from runner import rng
from runner.looped import Kind, OneByOne, as_tensor, given

How = Literal["pil", "v1", "v2"]  # whose colours: Pillow's, or those of torchvision's tensors
Places = tuple[Tensor | None, Tensor | None]  # rows and columns, int64 [N or 1, H'] and [N or 1, W']; None: as they are
ATTEMPTS = 10  # torchvision draws a box so often before it takes the middle, or leaves the image alone


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
class Affine(Step):
    """`images * scale + shift` in float32, numbers or [C, 1, 1]."""

    scale: Tensor
    shift: Tensor


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


def affine(scale: Tensor, shift: Tensor) -> Affine:
    """An affine step that also runs alone."""

    def run(images: Tensor, _: Tensor) -> Tensor:
        factor, addend = scale.to(images.device), shift.to(images.device)
        if images.dtype != torch.float32:  # a copy, which may be changed in place
            return images.to(torch.float32).mul_(factor).add_(addend)
        return images.mul(factor).add_(addend)

    return Affine(0, run, scale, shift)


@dataclass(frozen=True)
class Looped(Step):
    """A transform of single images; in place of uniforms it gets a seed for each sample, int64 [N]."""

    reason: str  # why it has no batched form
    repeatable: bool  # whether it gives the same each time, so that once is enough


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
        """Add a step; windows that follow each other become one stage, affine functions one function."""
        last = self.stages[-1][-1].step if self.stages else None
        if isinstance(last, Affine) and isinstance(part.step, Affine):
            scale, shift = last.scale * part.step.scale, last.shift * part.step.scale + part.step.shift
            self.stages[-1] = [_Part(part.name, part.columns, affine(scale, shift), part.size)]
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


def _one_by_one(name: str, transform: Any, state: _State, reason: str) -> tuple[Step, tuple[int, int]]:
    """The transform as it is, for one image after the other; `state` goes on to what it makes of the sample.

    Raises:
        NotBatched: it refuses the sample.
    """
    single, size = OneByOne(transform, state.kind), state.size
    try:
        with rng.stream(0):
            made, kind = as_tensor(transform(given(state.sample[0], state.kind)))
    except Exception as error:
        message = f"no batched form of {name} ({reason}), and it refuses a sample: {error}"
        raise NotBatched(message) from error
    state.sample, state.kind = made[None], kind
    return Looped(0, single, reason, type(transform).__name__ in REPEATABLE and _is_torchvisions(transform)), size


def _is_torchvisions(transform: Any) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms.")


def _form(transform: Any, state: _State) -> list[tuple[Step, tuple[int, int]]]:
    """The steps of one transform with the sizes they get; `state` goes on to what they make of the sample."""
    kind = type(transform)
    if hasattr(transform, "draws") and hasattr(transform, "batched"):
        steps = [Step(transform.draws, lambda images, u: transform.batched(images, u.to(images.device)))]
        if state.pil:
            raise NotBatched("it takes tensors, and the dataset gives PIL images")
    elif not _is_torchvisions(transform):
        raise NotBatched(f"{kind.__name__} has no `draws` and `batched`")
    elif kind.__name__ == "Compose":
        return [step for inner in transform.transforms for step in _form(inner, state)]
    elif kind.__name__ not in FORMS:
        raise NotBatched(f"{kind.__name__} is torchvision's, one image at a time")
    elif state.sample.dim() != 4:
        raise NotBatched(f"{kind.__name__} takes images, and a sample has {state.sample.dim() - 1} dimensions")
    else:
        try:
            steps = FORMS[kind.__name__](transform, state)
        except (RuntimeError, TypeError) as error:
            raise NotBatched(f"{kind.__name__} refuses a sample: {error}") from error
    sizes = []
    for step in steps:
        sizes.append(state.size)
        try:
            state.sample = step.run(state.sample, torch.zeros(1, step.draws))
        except (RuntimeError, ValueError, TypeError) as error:
            raise NotBatched(f"{kind.__name__} refuses a sample: {error}") from error
    return list(zip(steps, sizes, strict=True))


# ---- pixels that move


def _crop(size: Sequence[int]) -> Window:
    """Rows and columns of a window at a uniform place (torchvision's RandomCrop.make_params)."""
    height, width = size

    def places(rows: int, columns: int, uniforms: Tensor) -> Places:
        top = (uniforms[:, :1] * (rows - height + 1)).long()
        left = (uniforms[:, 1:2] * (columns - width + 1)).long()
        return top + torch.arange(height), left + torch.arange(width)

    return window(2, places)


def _random_crop(transform: Any, state: _State) -> list[Step]:
    left, top, right, bottom = _padding(transform)
    height, width = transform.size
    rows, columns = state.size[0] + top + bottom, state.size[1] + left + right
    pads = [[left, top, right, bottom]]
    if transform.pad_if_needed:
        down, across = max(0, height - rows), max(0, width - columns)
        rows, columns = rows + 2 * down, columns + 2 * across
        if _is_v2(transform):
            pads = [[left + across, top + down, right + across, bottom + down]]
        else:  # v1 pads what is padded already: not the same where that mirrors
            pads.append([across, down, across, down])
    if height > rows or width > columns:
        raise NotBatched(f"the crop {height}x{width} is larger than the padded image")
    return [*(_pad_step(padding, transform) for padding in pads if any(padding)), _crop(transform.size)]


def _padding(transform: Any) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; v2's RandomCrop has parsed it to left, right, top, bottom already."""
    padding = transform.padding
    if not padding:
        return 0, 0, 0, 0
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 4 and type(transform).__name__ == "RandomCrop" and _is_v2(transform):
        left, right, top, bottom = padding
        return left, top, right, bottom
    left, top, right, bottom = [*padding] * (4 // len(padding))
    return left, top, right, bottom


def _is_v2(transform: Any) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms.v2.")


def _pad_step(padding: list[int], transform: Any) -> Step:
    from torchvision.transforms.v2 import functional

    fill, mode = transform.fill, transform.padding_mode
    if not isinstance(fill, int | float | list | tuple | None):
        raise NotBatched("its fill depends on the type of the image")
    return Step(0, lambda images, _: functional.pad(images, padding, fill=fill, padding_mode=mode))


def _pad(transform: Any, _: _State) -> list[Step]:
    return [_pad_step(list(_padding(transform)), transform)]


def _flip(transform: Any, *, of_rows: bool) -> list[Step]:
    def places(height: int, width: int, uniforms: Tensor) -> Places:
        places = torch.arange(height if of_rows else width)[None]
        flipped = torch.where(uniforms[:, :1] < transform.p, places.flip(1), places)
        return (flipped, None) if of_rows else (None, flipped)

    return [window(1, places)]


# ---- boxes that are resized


def _boxes(
    size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float], uniforms: Tensor, *, erasing: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height, width (int64 [N]) of random boxes, and whether one was found, from uniforms [N, 22].

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
    middle_height, middle_width = _middle(rows, columns, ratio)
    height, width = torch.where(found, height, middle_height), torch.where(found, width, middle_width)
    top = (numbers[:, 2 * ATTEMPTS] * (rows - height + 1)).long()
    left = (numbers[:, 2 * ATTEMPTS + 1] * (columns - width + 1)).long()
    top, left = torch.where(found, top, (rows - height) // 2), torch.where(found, left, (columns - width) // 2)
    return top, left, height, width, found


def _middle(rows: int, columns: int, ratio: Sequence[float]) -> tuple[int, int]:
    """Height and width of the box that torchvision takes where no attempt fits."""
    if columns / rows < min(ratio):
        return round(columns / min(ratio)), columns
    if columns / rows > max(ratio):
        return rows, round(rows * max(ratio))
    return rows, columns


def _random_resized_crop(transform: Any, state: _State) -> list[Step]:
    size, scale, ratio = [*transform.size], transform.scale, transform.ratio
    mode = getattr(transform.interpolation, "value", transform.interpolation)
    antialias = state.pil or bool(transform.antialias)
    if mode in ("nearest", "nearest-exact"):
        both = zip(state.size, size, strict=True)
        make = _pillows_nearest if state.pil else _torchs_nearest
        down, across = (make(total, out, mode) for total, out in both)

        def places(rows: int, columns: int, uniforms: Tensor) -> Places:
            top, left, height, width, _ = _boxes((rows, columns), scale, ratio, uniforms, erasing=False)
            return down(top, height), across(left, width)

        return [window(2 * ATTEMPTS + 2, places)]
    _check_interpolation(mode, state)
    if mode == "bicubic" and not antialias:
        raise NotBatched("bicubic without antialias")

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        top, left, height, width, _ = _boxes((rows, columns), scale, ratio, uniforms, erasing=False)
        across = _weights(left, width, columns, size[1], mode, antialias=antialias).to(images.device)
        down = _weights(top, height, rows, size[0], mode, antialias=antialias).to(images.device)
        return resample(images, down, across)

    return [Step(2 * ATTEMPTS + 2, run)]


def _check_interpolation(mode: str, state: _State) -> None:
    """Refuse what would not be within one grey level.

    Pillow cuts bicubic bytes off between its two directions, whose order it chooses by size (13.0; formerly columns
    first): up to 29 grey levels apart.
    """
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        raise NotBatched(f"interpolation {mode}")
    if mode == "bicubic" and state.sample.dtype == torch.uint8:
        raise NotBatched(
            "bicubic of bytes depends on which direction comes first, and Pillow's versions differ in that"
        )


def _nearest(start: Tensor, length: Tensor, out: int) -> Tensor:
    """The pixel in the middle of each of `out` in boxes [start, start+length), int64 [N, out].

    Pillow adds up the steps in double precision (`ImagingScaleAffine`).
    """
    step = (length[:, None].double() / out).repeat(1, out)
    step[:, 0] = step[:, 0] / 2
    return start[:, None] + torch.minimum(step.cumsum(1).long(), length[:, None] - 1)


def _pillows_nearest(_total: int, out: int, _mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda start, length: _nearest(start, length, out)


def _torchs_nearest(total: int, out: int, mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The same of tensors: where torch's own interpolation takes the pixels of a box from, of each length."""
    numbers = torch.arange(float(total))
    lengths = [
        torch.nn.functional.interpolate(numbers[None, None, None, :length], size=(1, out), mode=mode)[0, 0, 0]
        for length in range(1, total + 1)
    ]
    table = torch.stack(lengths).long()
    return lambda start, length: start[:, None] + table[length - 1]


def _weights(start: Tensor, length: Tensor, total: int, out: int, mode: str, *, antialias: bool) -> Tensor:
    """float32 [N, out, total]: how much of each of `total` pixels is in each of `out`, for boxes [start, start+length).

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
    return (weight / weight.sum(2, keepdim=True)).float()


def resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Images [N, C, H, W] by matrices [N or 1, H', H] and [N or 1, W', W].

    Bytes are rounded once, at the end. Pillow and torch round after each direction, and differ in which comes first:
    each lies within one grey level of this, and up to two from the other.
    """
    count, channels, rows, columns = images.shape
    wide = torch.matmul(images.to(down.dtype).reshape(count, channels * rows, columns), across.transpose(1, 2))
    return _as(torch.matmul(down[:, None], wide.view(count, channels, rows, -1)), images.dtype)


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in the dtype of the images: rounded and clamped where they are bytes."""
    return values.to(dtype) if dtype.is_floating_point else values.add_(0.5).floor_().clamp_(0, 255).to(dtype)


def _random_erasing(transform: Any, state: _State) -> list[Step]:
    value = transform.value
    if state.pil:
        raise NotBatched("RandomErasing takes tensors, and gets PIL images")
    if value is None or isinstance(value, str):
        raise NotBatched("its random fill needs numbers for every pixel")
    fill = torch.tensor(value, dtype=torch.float32).view(-1, 1, 1)

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        size, box = (rows, columns), uniforms[:, 1:]
        top, left, height, width, found = _boxes(size, transform.scale, transform.ratio, box, erasing=True)
        found &= uniforms[:, 0] < transform.p
        down = _inside(top, height, rows) & found[:, None]
        erased = (down[:, :, None] & _inside(left, width, columns)[:, None, :])[:, None].to(images.device)
        return torch.where(erased, fill.to(images.device, images.dtype), images)

    return [Step(2 * ATTEMPTS + 3, run)]


def _inside(start: Tensor, length: Tensor, total: int) -> Tensor:
    places = torch.arange(total)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


# ---- values


def _as_it_is(transform: Any, _: _State) -> list[Step]:
    """The transform itself, for what gives on a batch what it gives on each of its images, and draws nothing."""
    return [Step(0, lambda images, _numbers: transform(images))]


def _resize(transform: Any, state: _State) -> list[Step]:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode = getattr(transform.interpolation, "value", transform.interpolation)
    _check_interpolation(mode, state)
    size, longest = transform.size, getattr(transform, "max_size", None)
    antialias = state.pil or transform.antialias

    def run(images: Tensor, _: Tensor) -> Tensor:
        how = {"interpolation": InterpolationMode(mode), "max_size": longest, "antialias": antialias}
        resized: Tensor = functional.resize(images, size, **how)
        return resized

    height, width = run(state.sample, torch.empty(1, 0)).shape[-2:]
    zero = torch.zeros(1, dtype=torch.int64)

    def weighted(images: Tensor, _: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        down = _weights(zero, zero + rows, rows, height, mode, antialias=antialias).to(images.device)
        across = _weights(zero, zero + columns, columns, width, mode, antialias=antialias).to(images.device)
        return resample(images, down, across)

    if state.sample.dtype == torch.uint8 and mode == "bilinear":
        return [Step(0, weighted)]
    if not (state.pil and mode.startswith("nearest")):
        return [Step(0, run)]

    def places(rows: int, columns: int, _: Tensor) -> Places:
        return _nearest(zero, zero + rows, height), _nearest(zero, zero + columns, width)

    return [window(0, places)]


def _to_image(transform: Any, state: _State) -> list[Step]:
    """ToImage, PILToTensor and ToPureTensor: the pixels as they are. The last leaves PIL images alone."""
    name = type(transform).__name__
    if name == "PILToTensor" and not state.pil:
        raise NotBatched("PILToTensor takes PIL images, and the dataset gives tensors")
    if name != "ToPureTensor" or not state.pil:
        state.kind = "image" if name == "ToImage" else "tensor"
    return []


def _to_tensor(_: Any, state: _State) -> list[Step]:
    """v1's ToTensor of a PIL image or array: bytes become numbers in [0, 1]. v2's leaves a tensor alone."""
    if not state.pil:
        raise NotBatched("ToTensor takes PIL images and arrays, and the dataset gives tensors")
    state.kind = "tensor"
    return [affine(torch.tensor(1 / 255), torch.tensor(0.0))] if state.sample.dtype == torch.uint8 else []


def _to_dtype(transform: Any, state: _State) -> list[Step]:
    dtype, scale = transform.dtype, getattr(transform, "scale", True)  # ConvertImageDtype always scales
    if state.pil or not isinstance(dtype, torch.dtype):
        raise NotBatched("it takes tensors, one dtype for all" if state.pil else "its dtype depends on the type")
    if state.sample.dtype == torch.uint8 and dtype == torch.float32:
        return [affine(torch.tensor(1 / 255 if scale else 1.0), torch.tensor(0.0))]
    from torchvision.transforms.v2 import functional

    return [Step(0, lambda images, _: functional.to_dtype(images, dtype, scale=scale))]


def _normalize(transform: Any, state: _State) -> list[Step]:
    if state.pil or state.sample.dtype != torch.float32:
        raise NotBatched(f"it takes float32 tensors, not {'PIL images' if state.pil else state.sample.dtype}")
    mean = torch.tensor(transform.mean, dtype=torch.float64).view(-1, 1, 1)
    std = torch.tensor(transform.std, dtype=torch.float64).view(-1, 1, 1)
    return [affine((1 / std).float(), (-mean / std).float())]


def _grayscale(transform: Any, state: _State) -> list[Step]:
    """A PIL image gets the channels that are asked for also where it is grey already; a tensor stays as it is."""
    wanted = transform.num_output_channels
    if not state.pil or state.sample.shape[1] == 3:
        return _as_it_is(transform, state)
    return [Step(0, lambda images, _: images[:, :1].expand(-1, wanted, -1, -1))]


def _some(function: Callable[[Any], Callable[[Tensor], Tensor]]) -> Callable[[Any, _State], list[Step]]:
    """A function without numbers of its own, done to each image with the transform's probability `p`."""

    def form(transform: Any, _: _State) -> list[Step]:
        change = function(transform)

        def run(images: Tensor, uniforms: Tensor) -> Tensor:
            rows = (uniforms[:, 0] < transform.p).nonzero()[:, 0].to(images.device)
            return images.index_copy(0, rows, change(images.index_select(0, rows)))

        return [Step(1, run)]

    return form


def _functional(name: str, *arguments: str) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    def function(transform: Any) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms.v2 import functional

        call = getattr(functional, name)
        return lambda images: call(images, *[getattr(transform, argument) for argument in arguments])

    return function


def _grey(_: Any) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms.v2 import functional

    return lambda images: functional.rgb_to_grayscale(images, num_output_channels=images.shape[1])


def _random_apply(transform: Any, state: _State) -> list[Step]:
    inner = transform.transforms
    inner = list(inner.values()) if isinstance(inner, Mapping) else list(inner)
    probe = replace(state)
    steps = [step for each in inner for step, _ in _form(each, probe)]
    before, after = state.sample, probe.sample
    if (before.shape, before.dtype, state.kind) != (after.shape, after.dtype, probe.kind):
        raise NotBatched("RandomApply of what changes size or dtype")

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        chosen = (uniforms[:, 0] < transform.p).nonzero()[:, 0]
        rows, at = chosen.to(images.device), 1
        changed, numbers = images.index_select(0, rows), uniforms[chosen]
        for step in steps:
            changed = step.run(changed, numbers[:, at : at + step.draws])
            at += step.draws
        return images.index_copy(0, rows, changed)

    return [Step(1 + sum(step.draws for step in steps), run)]


# ---- colours


def _color_jitter(transform: Any, state: _State) -> list[Step]:
    """Each image with its own four factors, in an order of its own (columns 0 to 3 the factors, 4 to 7 the order)."""
    ranges = [getattr(transform, name) for name in ("brightness", "contrast", "saturation", "hue")]
    how: How = "pil" if state.pil else "v2" if _is_v2(transform) else "v1"
    changes = [partial(change, how=how) for change in ADJUSTMENTS]
    _hsv(how)
    if state.sample.shape[1] != 3:
        raise NotBatched("ColorJitter of images that have not three channels")

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        order = uniforms[:, 4:].argsort(dim=1, stable=True)
        images = images.clone()
        for turn in range(4):
            for number, (limits, change) in enumerate(zip(ranges, changes, strict=True)):
                chosen = (order[:, turn] == number).nonzero()[:, 0]
                if limits is None or not len(chosen):
                    continue
                factors = limits[0] + uniforms[chosen, number] * (limits[1] - limits[0])
                rows = chosen.to(images.device)
                factors = factors.to(images.device).view(-1, 1, 1, 1)
                images[rows] = change(images[rows], factors)
        return images

    return [Step(8, run)]


def _blend(images: Tensor, other: Tensor, factors: Tensor, how: How) -> Tensor:
    """`factors * images + (1 - factors) * other`, floats clamped to [0, 1], bytes cut off, with the library's rounding.

    One grey level more or less in one adjustment becomes several in the next one.
    """
    if how == "pil":  # Blend.c
        mixed = other + factors * (images.float() - other)
    else:
        rest = (1 - factors.double()).float()
        mixed = images * factors
        if how == "v2":  # `Tensor.add_` with an `alpha` multiplies and adds at once
            return _cut((mixed.double() + rest.double() * other.double()).float(), images.dtype)
        mixed = mixed + rest * other
    return _cut(mixed, images.dtype)


def _cut(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.clamp_(0, 1 if dtype.is_floating_point else 255).to(dtype)


def _luma(images: Tensor, how: How) -> Tensor:
    """ITU-R 601-2 luma, float32 [N, 1, H, W]; of bytes a whole number, for PIL with Pillow's integers (Convert.c)."""
    if images.dtype == torch.uint8 and how == "pil":
        red, green, blue = images.int().unbind(1)
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None].float()
    red, green, blue = images.float().unbind(1)
    luma = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]
    return luma if images.is_floating_point() else luma.floor_()


def adjust_brightness(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Images [N, 3, H, W] with factors [N, 1, 1, 1]: 0 is black, 1 as it is."""
    return _blend(images, torch.zeros((), device=images.device), factors, how)


def adjust_contrast(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Images [N, 3, H, W] with factors [N, 1, 1, 1]: 0 is the grey of the mean luma, 1 as it is."""
    mean = _luma(images, how).mean((1, 2, 3), keepdim=True)
    return _blend(images, (mean + 0.5).floor() if images.dtype == torch.uint8 and how == "pil" else mean, factors, how)


def adjust_saturation(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Images [N, 3, H, W] with factors [N, 1, 1, 1]: 0 is grey, 1 as it is."""
    return _blend(images, _luma(images, how), factors, how)


def adjust_hue(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Images [N, 3, H, W] with shifts [N, 1, 1, 1] in [-0.5, 0.5] of the circle of hues.

    Of a PIL image's bytes in bytes, so by 256ths of the circle; of a tensor in numbers, with torchvision's functions.
    """
    if images.dtype == torch.uint8 and how == "pil":
        return _hue_of_bytes(images, factors)
    to_hsv, to_rgb = _hsv(how)
    hue, saturation, value = to_hsv(images if images.is_floating_point() else images.float() / 255).unbind(1)
    changed: Tensor = to_rgb(torch.stack(((hue + factors[:, 0]) % 1.0, saturation, value), 1))
    return changed if images.is_floating_point() else changed.mul_(256 - 1e-3).to(images.dtype)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _hsv(how: How) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Torchvision's own, which take batches but are not public.

    Raises:
        NotBatched: this torchvision has none of these names.
    """
    try:
        if how == "v1":
            from torchvision.transforms import _functional_tensor as functional

            found = functional._rgb2hsv, functional._hsv2rgb  # noqa: SLF001  see above
        else:
            from torchvision.transforms.v2.functional import _color

            found = _color._rgb_to_hsv, _color._hsv_to_rgb  # noqa: SLF001
    except (ImportError, AttributeError) as error:
        raise NotBatched(f"this torchvision has other colour functions ({error})") from error
    return found


def _hue_of_bytes(images: Tensor, factors: Tensor) -> Tensor:
    """Pillow's way through HSV in bytes (Convert.c, rgb2hsv and hsv2rgb)."""
    values = images.float()
    highest, lowest = values.amax(1), values.amin(1)
    span = highest - lowest
    grey = span == 0
    red, green, blue = ((highest[:, None] - values) / torch.where(grey, 1.0, span)[:, None]).double().unbind(1)
    is_red, is_green = values[:, 0] == highest, values[:, 1] == highest
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(grey, 0.0, torch.fmod(sector.float().double() / 6 + 1, 1).float().double())
    saturation = torch.where(grey, 0.0, span / torch.where(grey, 1.0, highest)).double()
    saturation = (saturation * 255).floor() / 255
    hue = torch.remainder((hue * 255).floor() + torch.trunc(factors[:, 0].double() * 255), 256) * (6 / 255)
    whole = hue.floor()
    part = hue - whole
    rest = (1 - saturation, 1 - saturation * part, 1 - saturation * (1 - part))
    p, q, t = ((highest * share + 0.5).floor().float() for share in rest)
    sextant = torch.remainder(whole, 6).long()[:, None, None]
    choices = torch.stack(
        [
            torch.stack(colour, 1)
            for colour in (
                (highest, t, p),
                (q, highest, p),
                (p, highest, t),
                (p, q, highest),
                (t, p, highest),
                (highest, p, q),
            )
        ],
        1,
    )
    chosen = choices.gather(1, sextant.expand(-1, 1, 3, -1, -1))[:, 0]
    chosen = torch.where(grey[:, None], values, chosen)
    return chosen.clamp_(0, 255).to(images.dtype)


REPEATABLE = ("Resize",)  # draws nothing, also where it has no batched form

# ---- which transform has which form: v1 and v2 share their names and attributes

FORMS: dict[str, Callable[[Any, _State], list[Step]]] = {
    "RandomCrop": _random_crop,
    "RandomResizedCrop": _random_resized_crop,
    "RandomHorizontalFlip": lambda transform, _: _flip(transform, of_rows=False),
    "RandomVerticalFlip": lambda transform, _: _flip(transform, of_rows=True),
    "RandomErasing": _random_erasing,
    "RandomGrayscale": _some(_grey),
    "RandomInvert": _some(_functional("invert")),
    "RandomSolarize": _some(_functional("solarize", "threshold")),
    "RandomPosterize": _some(_functional("posterize", "bits")),
    "RandomApply": _random_apply,
    "ColorJitter": _color_jitter,
    "Resize": _resize,
    "Pad": _pad,
    "CenterCrop": _as_it_is,
    "Grayscale": _grayscale,
    "RGB": _as_it_is,
    "Identity": _as_it_is,
    "ToImage": _to_image,
    "PILToTensor": _to_image,
    "ToPureTensor": _to_image,
    "ToTensor": _to_tensor,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "Normalize": _normalize,
}
