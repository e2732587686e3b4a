"""Value transforms on a batch: conversion to tensors, dtypes, normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.geometry import _is_v2
from runner.data.batched.steps import NotBatched, Step, _State, pointwise

# ---- values


def _as_it_is(transform: Any, _: _State) -> list[Step]:
    """The transform itself, for what gives on a batch what it gives on each of its images, and draws nothing."""
    return [Step(0, lambda images, _numbers: transform(images))]


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
    return [pointwise(("div_", torch.tensor(255.0)))] if state.sample.dtype == torch.uint8 else []


def _to_dtype(transform: Any, state: _State) -> list[Step]:
    dtype, scale = transform.dtype, getattr(transform, "scale", True)  # ConvertImageDtype always scales
    if state.pil or not isinstance(dtype, torch.dtype):
        raise NotBatched("it takes tensors, one dtype for all" if state.pil else "its dtype depends on the type")
    if state.sample.dtype == torch.uint8 and dtype == torch.float32:
        scaled = ("mul_", torch.tensor(1 / 255)) if _is_v2(transform) else ("div_", torch.tensor(255.0))
        return [pointwise(scaled) if scale else pointwise()]
    if not _is_v2(transform):
        return _as_it_is(transform, state)
    from torchvision.transforms.v2 import functional

    return [Step(0, lambda images, _: functional.to_dtype(images, dtype, scale=scale))]


def _normalize(transform: Any, state: _State) -> list[Step]:
    if state.pil or state.sample.dtype != torch.float32:
        raise NotBatched(f"it takes float32 tensors, not {'PIL images' if state.pil else state.sample.dtype}")
    mean, std = (torch.as_tensor(numbers, dtype=torch.float32) for numbers in (transform.mean, transform.std))
    if not std.all():
        raise NotBatched("its `std` has a zero")
    return [pointwise(("sub_", mean.view(-1, 1, 1)), ("div_", std.view(-1, 1, 1)))]


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
