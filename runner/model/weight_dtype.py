"""Weights in half precision, with normalisation in fp32."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

ROW_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # whose kernels want input and weight of one type


def convert_weights(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Convert a model's floating-point tensors in place, and its inputs at each call; nothing for None.

    The parameters and statistics of normalisation layers stay in fp32. Batch norm's kernels take an input in half
    precision beside them; the other layers get theirs converted, and give an output of its type.
    """
    if dtype is None:
        return model
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, (_NormBase, *ROW_NORMS)):
            module.float()
        if isinstance(module, ROW_NORMS):
            module.forward = partial(_compute_in_fp32, module)  # type: ignore[method-assign]
    model.register_forward_pre_hook(partial(_convert_inputs, dtype), with_kwargs=True)
    return model


def _compute_in_fp32(module: nn.Module, tensor: Tensor) -> Tensor:
    done: Tensor = type(module).forward(module, tensor.float())
    return done.to(tensor.dtype)


def _convert_inputs(
    dtype: torch.dtype, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_convert(one, dtype) for one in inputs), {name: _convert(one, dtype) for name, one in named.items()}


def _convert(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
