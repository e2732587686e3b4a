"""Trees of tensors: batches and outputs, nested in mappings, lists and tuples."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from runner.core.layouts import take_rows


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to each tensor of a tree; mappings become dicts, lists and tuples become lists."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(function, member) for name, member in tree.items()}
    return [map_tensors(function, member) for member in tree] if isinstance(tree, list | tuple) else tree


def map_in_kind(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to each tensor of a tree; dicts, lists and (named) tuples keep their kind."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_in_kind(function, member) for name, member in tree.items()}
    if isinstance(tree, list | tuple):
        members = [map_in_kind(function, member) for member in tree]
        return members if isinstance(tree, list) else type(tree)(*members) if hasattr(tree, "_fields") else (*members,)
    return tree


def iterate_tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from iterate_tensors(member)


def count_samples(batch: Any) -> int:
    """Count the samples of a batch.

    That is the length of the first tensor that has one, else of the first list of other things, else 1.
    """
    lengths = [tensor.size(0) for tensor in iterate_tensors(batch) if tensor.dim()][:1]
    return (lengths or [*_iterate_lengths(batch)] or [1])[0]


def _iterate_lengths(tree: Any) -> Iterator[int]:
    if isinstance(tree, list | tuple) and tree and _is_flat(tree):
        yield len(tree)
    elif isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _iterate_lengths(member)


def _is_flat(members: list[Any] | tuple[Any, ...]) -> bool:
    return not any(isinstance(member, Tensor | Mapping | tuple | list) for member in members)


def slice_samples(batch: Any, count: int, rows: slice) -> Any:
    """Slice a batch of `count` samples; members of another length stay as they are."""
    if isinstance(batch, Tensor):
        return take_rows(batch, rows) if batch.dim() and batch.size(0) == count else batch
    if isinstance(batch, Mapping):
        return {name: slice_samples(member, count, rows) for name, member in batch.items()}
    if isinstance(batch, list | tuple):
        if len(batch) == count and _is_flat(batch):
            return batch[rows]
        return [slice_samples(member, count, rows) for member in batch]
    return batch
