"""`FORMS`: the batched form of each torchvision transform."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.data.batched.color import _color_jitter, _grayscale, _random_grayscale
from runner.data.batched.geometry import _flip, _pad, _random_crop, _random_erasing
from runner.data.batched.per_image import OneByOne, as_tensor, given
from runner.data.batched.resampling import _random_resized_crop, _resize
from runner.data.batched.steps import Looped, NotBatched, Step, _State
from runner.data.batched.values import _as_it_is, _functional, _normalize, _some, _to_dtype, _to_image, _to_tensor

REPEATABLE = ("Resize",)  # draws nothing, also where it has no batched form


def _one_by_one(name: str, transform: Any, state: _State, reason: str) -> tuple[Step, tuple[int, int]]:
    """The transform as it is, for one image after the other; `state` goes on to what it makes of the sample.

    Raises:
        NotBatched: it refuses the sample.
    """
    single, size = OneByOne(transform, state.kind), state.size
    try:
        with rng.stream(0):
            made, kind = as_tensor(transform(given(state.sample[0].clone(), state.kind)))
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
        steps = [Step(transform.draws, lambda images, u: transform.batched(images.contiguous(), u.to(images.device)))]
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
            state.sample = step.run(state.sample.clone(), torch.zeros(1, step.draws))  # it may change what it gets
        except (RuntimeError, ValueError, TypeError) as error:
            raise NotBatched(f"{kind.__name__} refuses a sample: {error}") from error
    return list(zip(steps, sizes, strict=True))


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


# ---- which transform has which form: v1 and v2 share their names and attributes

FORMS: dict[str, Callable[[Any, _State], list[Step]]] = {
    "RandomCrop": _random_crop,
    "RandomResizedCrop": _random_resized_crop,
    "RandomHorizontalFlip": lambda transform, _: _flip(transform, of_rows=False),
    "RandomVerticalFlip": lambda transform, _: _flip(transform, of_rows=True),
    "RandomErasing": _random_erasing,
    "RandomGrayscale": _random_grayscale,
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
