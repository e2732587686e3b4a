"""Models and batches without numbers: on the meta device, where a forward costs no arithmetic and draws nothing."""

import copy
from typing import Any

from torch import Tensor, nn


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device: only the Python objects are copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def to_meta(batch: Any) -> Any:
    """A batch (tensors in mappings, lists, tuples) with its tensors on the meta device; tuples become lists."""
    if isinstance(batch, dict):
        return {name: to_meta(member) for name, member in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_meta(member) for member in batch]
    return batch.to("meta") if isinstance(batch, Tensor) else batch
