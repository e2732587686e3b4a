"""Batches on their way to a GPU: each is copied on a stream of its own while the one before is trained on."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from runner.data.samples import Placement


def placed(batches: Iterable[Any], placement: Placement) -> Iterator[Any]:
    """The batches on the device; on a GPU one ahead, elsewhere as they come."""
    return _ahead(batches, placement) if placement.device.type == "cuda" else map(placement.put, batches)


def _ahead(batches: Iterable[Any], placement: Placement) -> Iterator[Any]:
    """From pinned memory (`loader.pin_memory`) the copy overlaps with the work; from other memory it waits for it."""
    side = torch.cuda.Stream(placement.device)
    waiting: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            following = placement.put(batch), side.record_event()
        if waiting is not None:
            yield _ready(*waiting)
        waiting = following
    if waiting is not None:
        yield _ready(*waiting)


def _ready(batch: Any, copied: torch.cuda.Event) -> Any:
    """The batch, when the stream that uses it may: its memory is not given away before that stream is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in _tensors(batch):
        tensor.record_stream(current)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for member in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(member)
