"""Hashes of each batch's sample indices, from the orders that the batches themselves have drawn."""

import zlib
from typing import Any

import numpy as np

from runner.data.interfaces import Indices, Split


class OrderTrace:
    """Trace of a split's order: nothing is drawn for it, and nothing is done per step.

    Args:
        split: of training; its orders are kept from now on, until `forget` is called.
    """

    def __init__(self, split: Split) -> None:
        base: Any = split
        while hasattr(getattr(base, "split", None), "batches"):  # transformed as a whole, or shared by processes
            base = base.split
        self.order = getattr(base, "order", None)
        holder = base if hasattr(base, "indices") else getattr(base, "samples", None)
        self.indices: Indices | None = getattr(holder, "indices", None)
        self.batch_size: int = getattr(base, "batch_size", 1)
        self.is_known = self.order is not None and self.indices is not None
        if self.order is not None and self.is_known:
            self.order.kept = {}

    def hash_steps(self, epoch: int, start: int, stop: int, accumulate: int = 1) -> list[int] | None:
        """Hash the indices of the optimizer steps from number `start` to `stop` of an epoch, in their order.

        None where the dataset owns its order, or the epoch was not drawn by this process.
        """
        if not self.is_known or self.order is None or self.indices is None:
            return None
        if self.order.fixed and epoch not in self.order.kept:
            drawn: Any = np.arange(self.order.length)
        else:
            drawn = self.order.kept.get(epoch)
        if drawn is None:
            return None
        if len(drawn) and not np.isscalar(drawn[0]):  # of a batch sampler
            groups = [drawn[step * accumulate : (step + 1) * accumulate] for step in range(start, stop)]
            rows = [[index for batch in group for index in batch] for group in groups]
            return [zlib.crc32(self.indices[np.asarray(row, np.int64)].tobytes()) for row in rows]
        size = self.batch_size * accumulate
        members = self.indices[np.asarray(drawn[start * size : stop * size], np.int64)]
        content, width = memoryview(members.tobytes()), size * members.itemsize
        return [zlib.crc32(content[step * width : (step + 1) * width]) for step in range(stop - start)]

    def forget(self, epoch: int) -> None:
        """Forget the orders before an epoch."""
        if self.order is not None and self.is_known:
            for old in [number for number in self.order.kept if number < epoch]:
                del self.order.kept[old]
