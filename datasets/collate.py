"""Functions that join samples to a batch where they have different lengths or numbers of things."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate


def list_members(samples: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Join samples to one list for each member, as torchvision's detectors take images and targets."""
    return [list(members) for members in zip(*samples, strict=True)]


class Pad:
    """Collate function that pads the named members of dict samples to the longest of the batch.

    A member is a tensor [T, ...] or a list of numbers, and becomes a tensor [N, longest, ...] of the dtype that holds
    the numbers of all samples; all others are joined as usual. Texts stay lists.

    Args:
        values: the value that fills each member that is padded, by name (`tokens: 0`, `labels: -100`).
        mask: name of an additional member, int64 [N, longest]: 1 for what is there and 0 for padding, of the first one.
        multiple_of: the padded length is a multiple of it.
        side: where the padding is, `right` or `left`.

    Raises:
        ValueError: `values` is empty, or `side` is another one.
    """

    def __init__(
        self, values: Mapping[str, float], mask: str | None = None, multiple_of: int = 1, side: str = "right"
    ) -> None:
        if not values or side not in ("right", "left"):
            raise ValueError("values must name a member to pad, and side must be right or left")
        self.values, self.mask, self.multiple_of, self.side = dict(values), mask, multiple_of, side

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Join samples to a batch."""
        joined: dict[str, Any] = {}
        for name in samples[0]:
            members = [sample[name] for sample in samples]
            if name in self.values:
                tensors = [torch.as_tensor(member) for member in members]
                joined[name] = self._pad(tensors, self.values[name])
            else:
                joined[name] = members if isinstance(members[0], str) else default_collate(members)
        if self.mask is not None:
            first = next(iter(self.values))
            joined[self.mask] = self._pad([torch.ones(len(sample[first]), dtype=torch.int64) for sample in samples], 0)
        return joined

    def _pad(self, tensors: list[Tensor], value: float) -> Tensor:
        filled = [tensor for tensor in tensors if len(tensor)]
        if filled:  # as_tensor([]) is float32, and decides nothing; of [1, 2] and [0.5] all are floats
            dtype = reduce(torch.promote_types, [tensor.dtype for tensor in filled])
            empty = filled[0].new_zeros(0, *filled[0].shape[1:], dtype=dtype)
            tensors = [tensor.to(dtype) if len(tensor) else empty for tensor in tensors]
        longest = max(len(tensor) for tensor in tensors)
        missing = -longest % self.multiple_of
        if missing:
            tensors = [*tensors, tensors[0].new_zeros(longest + missing, *tensors[0].shape[1:])]
        padded = pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=self.side)
        return padded[:-1] if missing else padded
