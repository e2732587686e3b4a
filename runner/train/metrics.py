"""Built-in metrics; any object with `update(output, target)`, `compute()` and `reset()` works too.

The accumulators stay on the device of the data: nothing is read back before `compute`.
"""

import math
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor

WAITING = 2**18  # elements of output kept before they are counted


class Accuracy:
    """Share of samples whose target is among the `top_k` largest logits.

    `update` takes logits [N, C, ...] of any float dtype and class indices [N, ...], or shares of classes [N, C, ...] as
    MixUp and CutMix make them, of which the largest counts. `compute` gives a number in [0, 1], NaN before any update.

    Small batches wait and are counted together: four small operators a step cost the small CNN 7% of its speed.
    """

    higher_is_better = True

    def __init__(self, top_k: int = 1) -> None:
        self.top_k = top_k
        self.reset()

    def reset(self) -> None:
        """Reset the counts."""
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._elements = 0
        self._hits: Tensor | float = 0.0
        self._count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch; neither tensor may be changed in place afterwards."""
        self._waiting.append((output, target))
        self._elements += output.numel()
        if self._elements >= WAITING:
            self._count_waiting()

    def compute(self) -> float:
        """Return the share of hits so far."""
        self._count_waiting()
        return float(self._hits) / self._count if self._count else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return hits and count as plain numbers."""
        self._count_waiting()
        return {"hits": float(self._hits), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict."""
        self.reset()
        self._hits, self._count = state["hits"], state["count"]

    def _count_waiting(self) -> None:
        batches, self._waiting, self._elements = self._waiting, [], 0
        if len({(output.shape[1:], target.shape[1:]) for output, target in batches}) == 1:
            outputs, targets = zip(*batches, strict=True)
            batches = [(torch.cat(outputs), torch.cat(targets))]
        for output, target in batches:
            classes = target.argmax(1) if target.shape == output.shape and target.is_floating_point() else target
            if self.top_k == 1:
                right = output.argmax(1) == classes
            else:
                right = (output.topk(self.top_k, dim=1).indices == classes.unsqueeze(1)).any(1)
            if right.shape != classes.shape:
                message = f"the target of an output {list(output.shape)} must be its classes, not {list(target.shape)}"
                raise ValueError(message)
            self._hits = self._hits + right.sum()
            self._count += right.numel()


class MeanSquaredError:
    """Mean of the squared differences over all elements; `root=True` gives its square root.

    `update` takes two tensors of one shape. `compute` is NaN before any update.
    """

    higher_is_better = False

    def __init__(self, *, root: bool = False) -> None:
        self.root = root
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: the shapes differ, and not in ones in front alone.
        """
        if output.shape != target.shape and _strip_leading_ones(output) != _strip_leading_ones(target):
            message = f"output and target must have one shape, and have {list(output.shape)} and {list(target.shape)}"
            raise ValueError(message)
        self.total = self.total + (output - target).square().sum(dtype=torch.float64)
        self.count += target.numel()

    def compute(self) -> float:
        """Return the mean so far."""
        mean = float(self.total) / self.count if self.count else math.nan
        return math.sqrt(mean) if self.root else mean


def _strip_leading_ones(tensor: Tensor) -> list[int]:
    """Return a tensor's shape without its leading ones, which broadcasting adds."""
    return list(dropwhile(lambda size: size == 1, tensor.shape))
