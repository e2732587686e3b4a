"""Metrics that need no further package; any object with `update(output, target)`, `compute()`, `reset()` fits too.

The accumulators stay on the device of the data: nothing is read back before `compute`.
"""

import math
from typing import Any

import torch
from torch import Tensor


class Accuracy:
    """Share of samples whose target is among the `top_k` largest logits.

    `update` takes logits [N, C, ...] of any float dtype and class indices [N, ...]. `compute` gives a number in [0, 1],
    NaN before any update.
    """

    def __init__(self, top_k: int = 1) -> None:
        self.top_k = top_k
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.hits: Tensor | float = 0.0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch; of shares [N, C] as MixUp and CutMix make them, the class with the largest counts."""
        if target.shape == output.shape and target.is_floating_point():
            target = target.argmax(1)
        if self.top_k == 1:
            right = output.argmax(1) == target
        else:
            right = (output.topk(self.top_k, dim=1).indices == target.unsqueeze(1)).any(1)
        self.hits = self.hits + right.sum()
        self.count += right.numel()

    def compute(self) -> float:
        """The share so far."""
        return float(self.hits) / self.count if self.count else math.nan


class MeanSquaredError:
    """Mean of the squared differences over all elements; `root=True` gives its square root.

    `update` takes two tensors of one shape. `compute` is NaN before any update.
    """

    def __init__(self, *, root: bool = False) -> None:
        self.root = root
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch."""
        self.total = self.total + (output - target).square().sum(dtype=torch.float64)
        self.count += target.numel()

    def compute(self) -> float:
        """The mean so far."""
        mean = float(self.total) / self.count if self.count else math.nan
        return math.sqrt(mean) if self.root else mean


def accumulators(metric: Any) -> dict[str, Any]:
    """What a metric has seen, as tensors and plain numbers, to be saved (torchmetrics name theirs in `_defaults`)."""
    names = getattr(metric, "_defaults", None) or vars(metric)
    kept = (Tensor, int, float, str, list)
    values = {name: getattr(metric, name) for name in names if isinstance(getattr(metric, name), kept)}
    if hasattr(metric, "_update_count"):
        values["_update_count"] = metric._update_count  # noqa: SLF001  torchmetrics warns at compute without it
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def set_accumulators(metric: Any, saved: dict[str, Any], device: torch.device) -> None:
    """Put back what `accumulators` gave."""
    for name, value in saved.items():
        setattr(metric, name, value.to(device) if isinstance(value, Tensor) else value)
