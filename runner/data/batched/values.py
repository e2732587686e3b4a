"""Value transforms on a batch: conversion to tensors, dtypes, normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.geometry import is_v2
from runner.data.batched.steps import ChainState, NotBatched, TransformStep, make_pointwise

# ---- values


def make_batch_call(transform: Any, _: ChainState) -> list[TransformStep]:
    """Call the transform itself on the batch, if it is deterministic and acts on each image alone."""
    return [TransformStep(0, lambda images, _numbers: transform(images))]


def make_to_image(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make ToImage, PILToTensor or ToPureTensor: pixels unchanged; ToPureTensor keeps PIL images."""
    name = type(transform).__name__
    if name == "PILToTensor" and not state.pil:
        raise NotBatched("PILToTensor takes PIL images, and the dataset gives tensors")
    if name != "ToPureTensor" or not state.pil:
        state.kind = "image" if name == "ToImage" else "tensor"
    return []


def make_to_tensor(_: Any, state: ChainState) -> list[TransformStep]:
    """Make v1's ToTensor of PIL images and arrays: bytes become numbers in [0, 1]."""
    if not state.pil:
        raise NotBatched("ToTensor takes PIL images and arrays, and the dataset gives tensors")
    state.kind = "tensor"
    return [make_pointwise(("div_", torch.tensor(255.0)))] if state.sample.dtype == torch.uint8 else []


def make_to_dtype(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of ToDtype and ConvertImageDtype."""
    dtype, scale = transform.dtype, getattr(transform, "scale", True)  # ConvertImageDtype always scales
    if state.pil or not isinstance(dtype, torch.dtype):
        raise NotBatched("it takes tensors, one dtype for all" if state.pil else "its dtype depends on the type")
    if state.sample.dtype == torch.uint8 and dtype == torch.float32:
        scaled = ("mul_", torch.tensor(1 / 255)) if is_v2(transform) else ("div_", torch.tensor(255.0))
        return [make_pointwise(scaled) if scale else make_pointwise()]
    if not is_v2(transform):
        return make_batch_call(transform, state)
    from torchvision.transforms.v2 import functional

    return [TransformStep(0, lambda images, _: functional.to_dtype(images, dtype, scale=scale))]


def make_normalize(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of Normalize."""
    if state.pil or state.sample.dtype != torch.float32:
        raise NotBatched(f"it takes float32 tensors, not {'PIL images' if state.pil else state.sample.dtype}")
    mean, std = (torch.as_tensor(numbers, dtype=torch.float32) for numbers in (transform.mean, transform.std))
    if not std.all():
        raise NotBatched("its `std` has a zero")
    return [make_pointwise(("sub_", mean.view(-1, 1, 1)), ("div_", std.view(-1, 1, 1)))]


def make_random_form(
    function: Callable[[Any], Callable[[Tensor], Tensor]],
) -> Callable[[Any, ChainState], list[TransformStep]]:
    """Make the form of a deterministic function that changes each image with the probability `p`."""

    def form(transform: Any, _: ChainState) -> list[TransformStep]:
        change = function(transform)

        def run(images: Tensor, uniforms: Tensor) -> Tensor:
            rows = (uniforms[:, 0] < transform.p).nonzero()[:, 0].to(images.device)
            return images.index_copy(0, rows, change(images.index_select(0, rows)))

        return [TransformStep(1, run)]

    return form


def bind_functional(name: str, *arguments: str) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    """Return a function that binds a transform's `arguments` to torchvision's functional `name`."""

    def function(transform: Any) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms.v2 import functional

        call = getattr(functional, name)
        return lambda images: call(images, *[getattr(transform, argument) for argument in arguments])

    return function
