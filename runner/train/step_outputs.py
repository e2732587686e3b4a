"""Additional step outputs: all fields beside loss, output, target and size."""

import math
import operator
from collections.abc import Mapping
from copy import deepcopy
from itertools import starmap
from numbers import Real
from typing import Any

from torch import Tensor

RESERVED = frozenset({"loss", "output", "target", "size"})
NO_NUMBERS = frozenset({"loss_is", "artifacts"})  # read by the runner, too, where an outcome has them
WEIGHTED = frozenset({"value", "weight"})


def is_weighted(value: Any) -> bool:
    """Return whether a field has a weight of its own: `{"value": v, "weight": n}`."""
    return isinstance(value, Mapping) and value.keys() == WEIGHTED


class StepOutputs:
    """Numbers of several steps (tensors by their mean) and the last value of each string.

    The weight of a number in a mean is the size of its batch, or, of `{"value": v, "weight": n}`, its own. What a
    metric gets (`reserved`) is no number, and whatever else an outcome has (None, lists, objects) is the step's own
    business.

    Attributes:
        artifacts: of the last step that gave some.
    """

    def __init__(self, reserved: frozenset[str] = RESERVED) -> None:
        self.reserved = reserved | NO_NUMBERS
        self.waiting: dict[str, list[Tensor | float]] = {}
        self.sizes: dict[str, list[Tensor | float]] = {}
        self.words: dict[str, str] = {}
        self.artifacts: Any = None

    def add(self, outcome: Mapping[str, Any], size: Tensor | float) -> None:
        """Add the outputs of a step; `size` samples are its weight in a mean."""
        self.artifacts = outcome.get("artifacts", self.artifacts)
        for name in outcome.keys() - self.reserved:
            value, weight = outcome[name], size
            if isinstance(value, str):
                self.words[name] = value
                continue
            if is_weighted(value):
                value, weight = value["value"], value["weight"]
                weight = weight.detach() if isinstance(weight, Tensor) else float(weight)
            if isinstance(value, Tensor) and value.numel() and not value.is_complex():
                value = value.detach().float().mean()
            elif not isinstance(value, Real):
                continue
            self.waiting.setdefault(name, []).append(value if isinstance(value, Tensor) else float(value))
            self.sizes.setdefault(name, []).append(weight)

    def read(self) -> dict[str, list[float]]:
        """Return the numbers, with a wait for the device."""
        for name, values in self.waiting.items():
            self.waiting[name] = [float(value) for value in values]
            self.sizes[name] = [as_number(size) for size in self.sizes[name]]
        return self.waiting  # type: ignore[return-value]  # floats by now

    def means(self) -> dict[str, float]:
        """Return the mean of each number, weighted by the sizes; NaN where all weights are 0."""
        return {name: compute_mean(values, self.sizes[name]) for name, values in sorted(self.read().items())}

    def clear(self) -> None:
        """Drop all values."""
        self.waiting, self.sizes, self.words, self.artifacts = {}, {}, {}, None

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return deepcopy({"values": self.read(), "sizes": self.sizes, "words": self.words})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state_dict."""
        self.waiting, self.sizes, self.words = (deepcopy(state[name]) for name in ("values", "sizes", "words"))


def as_number(size: Any) -> Any:
    """Return a size or weight as a plain number."""
    return size.item() if isinstance(size, Tensor) else size


def compute_mean(values: Any, weights: Any, *, sums: bool = False) -> float:
    """Compute the weighted mean of values, or of `sums`; what has the weight 0 is left out."""
    if not all(weights):
        pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
        values, weights = [value for value, _ in pairs], [weight for _, weight in pairs]
    whole = math.fsum(weights)
    if not whole:
        return math.nan
    return math.fsum(values if sums else starmap(operator.mul, zip(values, weights, strict=True))) / whole
