"""Strided parts and rows of tensors in any layout: sparse, nested, MKL-DNN."""

from typing import Any

import torch
from torch import Tensor

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def is_strided(tensor: Tensor) -> bool:
    """Return whether a tensor is one block of strided memory, which every operator takes."""
    return tensor.layout is torch.strided and not tensor.is_nested


def list_strided_parts(tensor: Tensor) -> list[Tensor]:
    """List the strided tensors that hold a tensor's numbers: its indices and values, or its members.

    Raises:
        TypeError: the layout is not known.
    """
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001  the public ones are of coalesced tensors
    if tensor.layout in _COMPRESSED:
        return [getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]]
    if tensor.is_mkldnn:
        return [tensor.to_dense()]
    message = f"a tensor of the layout {tensor.layout} has no known parts"
    raise TypeError(message)


def take_rows(tensor: Tensor, rows: slice) -> Tensor:
    """Return the rows of a tensor along its first dimension, in the layout that it has."""
    if is_strided(tensor):
        return tensor[rows]
    if tensor.is_nested:
        return torch.nested.as_nested_tensor(list(tensor.unbind())[rows], layout=tensor.layout)
    if tensor.is_mkldnn:
        return tensor.to_dense()[rows].to_mkldnn()
    indices = torch.arange(len(tensor), device=tensor.device)[rows]
    chosen: Tensor = tensor.to_sparse_coo().index_select(0, indices)
    if tensor.layout is torch.sparse_coo:
        return chosen
    block: Any = tuple(tensor.values().shape[1:3]) if tensor.layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    return chosen.to_sparse(layout=tensor.layout, blocksize=block)
