"""`FORMS`: the batched form of each torchvision transform."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from runner.core import rng
from runner.data.batched.color import make_color_jitter, make_grayscale, make_random_grayscale
from runner.data.batched.geometry import make_flip, make_pad, make_random_crop, make_random_erasing
from runner.data.batched.per_image import PerImage, as_tensor, to_transform_input
from runner.data.batched.resampling import make_random_resized_crop, make_resize
from runner.data.batched.steps import ChainState, NotBatched, PerImageStep, TransformStep
from runner.data.batched.values import (
    bind_functional,
    make_batch_call,
    make_normalize,
    make_random_form,
    make_to_dtype,
    make_to_image,
    make_to_tensor,
)

REPEATABLE = ("Resize",)  # draws nothing, also where it has no batched form


def make_per_image_step(
    name: str, transform: Any, state: ChainState, reason: str
) -> tuple[TransformStep, tuple[int, int]]:
    """Make a step that calls the transform on each image, and advance `state` by it.

    Raises:
        NotBatched: it refuses the sample.
    """
    single, size = PerImage(transform, state.kind), state.size
    try:
        with rng.stream(0):
            made, kind = as_tensor(transform(to_transform_input(state.sample[0].clone(), state.kind)))
    except Exception as error:
        message = f"no batched form of {name} ({reason}), and it refuses a sample: {error}"
        raise NotBatched(message) from error
    state.sample, state.kind = made[None], kind
    repeatable = (type(transform).__name__ in REPEATABLE and _is_torchvisions(transform)) or _is_deterministic(
        transform
    )
    return PerImageStep(0, single, reason, repeatable), size


def _is_deterministic(transform: Any) -> bool:
    """Return whether a transform is made of modules of torch.nn that draw nothing."""
    if not isinstance(transform, nn.Module):
        return False
    drawing = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # noqa: SLF001
    keeping = nn.modules.batchnorm._NormBase  # noqa: SLF001  its statistics change with each call
    own = transform.modules()
    return all(type(m).__module__.startswith("torch.nn.") and not isinstance(m, (*drawing, keeping)) for m in own)


def _is_torchvisions(transform: Any) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms.")


def build_steps(transform: Any, state: ChainState) -> list[tuple[TransformStep, tuple[int, int]]]:
    """Build the steps of one transform, each with its input size, and advance `state` by them."""
    kind = type(transform)
    if hasattr(transform, "draws") and hasattr(transform, "batched"):
        steps = [
            TransformStep(
                transform.draws, lambda images, u: transform.batched(images.contiguous(), u.to(images.device))
            )
        ]
        if state.pil:
            raise NotBatched("it takes tensors, and the dataset gives PIL images")
    elif not _is_torchvisions(transform):
        raise NotBatched(f"{kind.__name__} has no `draws` and `batched`")
    elif kind.__name__ == "Compose":
        return [step for inner in transform.transforms for step in build_steps(inner, state)]
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


def _make_random_apply(transform: Any, state: ChainState) -> list[TransformStep]:
    inner = transform.transforms
    inner = list(inner.values()) if isinstance(inner, Mapping) else list(inner)
    probe = replace(state)
    steps = [step for each in inner for step, _ in build_steps(each, probe)]
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

    return [TransformStep(1 + sum(step.draws for step in steps), run)]


# ---- which transform has which form: v1 and v2 share their names and attributes

FORMS: dict[str, Callable[[Any, ChainState], list[TransformStep]]] = {
    "RandomCrop": make_random_crop,
    "RandomResizedCrop": make_random_resized_crop,
    "RandomHorizontalFlip": lambda transform, _: make_flip(transform, of_rows=False),
    "RandomVerticalFlip": lambda transform, _: make_flip(transform, of_rows=True),
    "RandomErasing": make_random_erasing,
    "RandomGrayscale": make_random_grayscale,
    "RandomInvert": make_random_form(bind_functional("invert")),
    "RandomSolarize": make_random_form(bind_functional("solarize", "threshold")),
    "RandomPosterize": make_random_form(bind_functional("posterize", "bits")),
    "RandomApply": _make_random_apply,
    "ColorJitter": make_color_jitter,
    "Resize": make_resize,
    "Pad": make_pad,
    "CenterCrop": make_batch_call,
    "Grayscale": make_grayscale,
    "RGB": make_batch_call,
    "Identity": make_batch_call,
    "ToImage": make_to_image,
    "PILToTensor": make_to_image,
    "ToPureTensor": make_to_image,
    "ToTensor": make_to_tensor,
    "ToDtype": make_to_dtype,
    "ConvertImageDtype": make_to_dtype,
    "Normalize": make_normalize,
}
