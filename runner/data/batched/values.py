"""Value transforms on a batch: conversion to tensors, dtypes, normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.steps import NotBatched, Step, _State, affine

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
