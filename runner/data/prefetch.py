"""Prefetching to a GPU: a CUDA stream of its own copies the next batch while the current one trains."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from runner.core.layouts import list_strided_parts
from runner.core.trees import iterate_tensors
from runner.data.samples import Placement


def prefetch_to_device(batches: Iterable[Any], placement: Placement) -> Iterator[Any]:
    """Yield the batches on the device; copy one batch ahead on a GPU."""
    return _copy_ahead(batches, placement) if placement.device.type == "cuda" else map(placement.put, batches)


def _copy_ahead(batches: Iterable[Any], placement: Placement) -> Iterator[Any]:
    """Copy one batch ahead: from pinned memory in parallel with training, from other memory blocking."""
    side = torch.cuda.Stream(placement.device)
    waiting: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            following = placement.put(batch), side.record_event()
        if waiting is not None:
            yield _wait_for_copy(*waiting)
        waiting = following
    if waiting is not None:
        yield _wait_for_copy(*waiting)


def _wait_for_copy(batch: Any, copied: torch.cuda.Event) -> Any:
    """Make the current stream wait for the copy and keep the batch's memory until it is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in iterate_tensors(batch):
        for part in list_strided_parts(tensor):
            part.record_stream(current)
    return batch
