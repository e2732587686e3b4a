"""Trees of tensors: batches and outputs, nested in mappings, lists and tuples."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from runner.core.layouts import take_rows


class SampleList(list[Any]):
    """List of one thing a sample, not stacked to a tensor: tensors in it have no dimension of samples."""


def mark_samples(tree: Any, count: int, given: Sequence[Tensor] = ()) -> Any:
    """Make a SampleList of each list in a batch of `count` samples that has one thing for each.

    What is stacked has tensors with a first dimension of `count`: a list of other tensors is not. Where an image has as
    many channels, a list with tensors of `given`, those of the single samples, is not stacked; else the other lists of
    the batch decide. A list of mappings is always one of samples.
    """
    return _mark(tree, count, {id(tensor) for tensor in given}, has_lists=any(_iterate_certain(tree, count)))


def _mark(tree: Any, count: int, given: Container[int], *, has_lists: bool) -> Any:
    if type(tree) is dict:
        return {name: _mark(member, count, given, has_lists=has_lists) for name, member in tree.items()}
    if type(tree) not in (list, tuple):
        return tree
    if _may_have_samples(tree, count):
        sizes = _list_sizes(tree)
        is_given = any(id(tensor) in given for tensor in iterate_tensors(tree))
        if sizes - {count} or isinstance(tree[0], Mapping) or (sizes and has_lists) or is_given:
            return SampleList(tree)
    return type(tree)([_mark(member, count, given, has_lists=has_lists) for member in tree])


def _iterate_certain(tree: Any, count: int) -> Iterator[bool]:
    if isinstance(tree, list | tuple) and _may_have_samples(tree, count) and _list_sizes(tree) - {count}:
        yield True
    elif isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _iterate_certain(member, count)


def _may_have_samples(tree: list[Any] | tuple[Any, ...], count: int) -> bool:
    """Return whether a list has one thing a sample, and not one list of `count` things each."""
    lists = all(isinstance(member, list | tuple) and len(member) == count for member in tree)
    return len(tree) == count > 0 and not lists and _is_alike(tree)


def _list_sizes(tree: Any) -> set[int | None]:
    return {tensor.size(0) if tensor.dim() else None for tensor in iterate_tensors(tree)}


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to each tensor of a tree; mappings become dicts, lists and tuples become lists."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(function, member) for name, member in tree.items()}
    if not isinstance(tree, list | tuple):
        return tree
    members = [map_tensors(function, member) for member in tree]
    return SampleList(members) if isinstance(tree, SampleList) else members


def map_in_kind(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to each tensor of a tree; dicts, lists and (named) tuples keep their kind."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_in_kind(function, member) for name, member in tree.items()}
    if isinstance(tree, list | tuple):
        members = [map_in_kind(function, member) for member in tree]
        if isinstance(tree, list):
            return SampleList(members) if isinstance(tree, SampleList) else members
        return type(tree)(*members) if hasattr(tree, "_fields") else (*members,)
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

    That is the length of the first SampleList; else of the first tensor that has one, or of the lists of samples that
    are not stacked, as `datasets.collate.list_members` makes them; else of the first list of other things, else 1.
    """
    return next(chain(_iterate_sample_lists(batch), _iterate_sizes(batch), _iterate_lengths(batch)), 1)


def _iterate_sample_lists(tree: Any) -> Iterator[int]:
    if isinstance(tree, SampleList):
        yield len(tree)
    elif isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _iterate_sample_lists(member)


def _iterate_sizes(tree: Any) -> Iterator[int]:
    if isinstance(tree, Tensor):
        if tree.dim():
            yield tree.size(0)
    elif _has_samples(tree):
        yield len(tree[0])
    elif isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _iterate_sizes(member)


def _has_samples(tree: Any) -> bool:
    """Return whether a tree is a list of equally long lists, each with one thing a sample.

    Lists of stacked tensors, which `default_collate` makes of nested samples, have one length in all of them; images
    and their targets hardly ever do, and where they do, a list of tensors beside one of mappings is of samples.
    """
    if not isinstance(tree, list | tuple) or not tree or not all(isinstance(group, list | tuple) for group in tree):
        return False
    if not tree[0] or len({len(group) for group in tree}) > 1 or not all(map(_is_alike, tree)):
        return False
    sizes = _list_sizes(tree)
    if len(sizes) > 1 or None in sizes:
        return True
    has_both = len({isinstance(group[0], Mapping) for group in tree}) > 1
    return bool(sizes) and (has_both or any(map(_is_plain, tree)))


def _is_alike(group: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether the members of a list may be one thing of several samples each."""
    return len({member.dim() if isinstance(member, Tensor) else isinstance(member, Mapping) for member in group}) == 1


def _is_plain(group: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a list has things that `default_collate` would have stacked or refused, as numbers."""
    return _is_flat(group) and not any(isinstance(member, str | bytes) for member in group)


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
    if isinstance(batch, SampleList) and len(batch) == count:
        return SampleList(batch[rows])
    if isinstance(batch, list | tuple):
        if len(batch) == count and _is_flat(batch):
            return batch[rows]
        if _has_samples(batch) and len(batch[0]) == count:
            return [group[rows] for group in batch]
        return [slice_samples(member, count, rows) for member in batch]
    return batch
