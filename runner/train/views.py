"""Views of an evaluation's input (test-time augmentation), whose outputs are averaged."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from runner.core.errors import RunError


class AverageOverViews:
    """Model that gives the weighted mean of its outputs over several views of its input.

    All else is the model's own.

    Args:
        model: called with one input.
        views: gives from an input several of its shape, or pairs of a weight and one.
    """

    def __init__(self, model: nn.Module, views: Callable[[Any], Iterable[Any]]) -> None:
        self.model, self.views = model, views

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        if len(inputs) != 1 or named:
            raise RunError("transform.views needs a model with one input")
        total: Tensor | None = None
        whole = 0.0
        for view in self.views(inputs[0]):
            weight, seen = view if isinstance(view, tuple) else (1.0, view)
            output = self.model(seen)
            if not isinstance(output, Tensor):
                raise RunError(f"transform.views averages one tensor, and the model gives {type(output).__name__}")
            total = weight * output if total is None else total + weight * output
            whole += weight
        if total is None:
            raise RunError("transform.views gives no view")
        return total if whole == 1 else total / whole
