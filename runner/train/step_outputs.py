"""Additional step outputs: all fields beside loss, output, target and size."""

from collections.abc import Mapping
from copy import deepcopy
from numbers import Real
from typing import Any

from torch import Tensor

RESERVED = frozenset({"loss", "output", "target", "size"})


class StepOutputs:
    """Numbers of several steps (tensors by their mean) and the last value of each string.

    Whatever else an outcome has (None, lists, objects) is the step's own business.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, list[Tensor | float]] = {}
        self.sizes: dict[str, list[int]] = {}
        self.words: dict[str, str] = {}

    def add(self, outcome: Mapping[str, Any], size: int) -> None:
        """Add the outputs of a step; `size` samples are its weight in a mean."""
        for name in outcome.keys() - RESERVED:
            value = outcome[name]
            if isinstance(value, str):
                self.words[name] = value
                continue
            if isinstance(value, Tensor) and value.numel() and not value.is_complex():
                value = value.detach().float().mean()
            elif not isinstance(value, Real):
                continue
            self.waiting.setdefault(name, []).append(value if isinstance(value, Tensor) else float(value))
            self.sizes.setdefault(name, []).append(size)

    def read(self) -> dict[str, list[float]]:
        """Return the numbers, with a wait for the device."""
        for name, values in self.waiting.items():
            self.waiting[name] = [float(value) for value in values]
        return self.waiting  # type: ignore[return-value]  # floats by now

    def means(self) -> dict[str, float]:
        """Return the mean of each number, weighted by the sizes."""
        return {
            name: sum(value * size for value, size in zip(values, self.sizes[name], strict=True))
            / sum(self.sizes[name])
            for name, values in sorted(self.read().items())
        }

    def clear(self) -> None:
        """Drop all values."""
        self.waiting, self.sizes, self.words = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return deepcopy({"values": self.read(), "sizes": self.sizes, "words": self.words})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state_dict."""
        self.waiting, self.sizes, self.words = (deepcopy(state[name]) for name in ("values", "sizes", "words"))
