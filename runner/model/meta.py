"""Models and batches on the meta device: a forward computes no numbers and draws none."""

import copy
from typing import Any

from torch import Tensor, nn

from runner.core.trees import map_tensors


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters and buffers on the meta device; no tensor data is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def to_meta(batch: Any) -> Any:
    """Move a batch (nested mappings, lists, tuples) to the meta device; tuples become lists."""
    return map_tensors(_move_to_meta, batch)


def _move_to_meta(tensor: Tensor) -> Tensor:
    try:
        return tensor.to("meta")
    except NotImplementedError:  # of a nested, quantized or MKL-DNN tensor
        return tensor
