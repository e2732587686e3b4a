"""Several micro-batches that make one optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from runner.train.optimizer_step.base import Recipe


class Accumulating(Recipe):
    """Several micro-batches make one optimizer step: the gradients are those of one batch of all their samples.

    Each loss is weighted by its share of the samples. Where all `count` micro-batches have the size of the first, that
    is `(loss / count).backward()`, to the bit; where they do not (the end of an epoch), the gradients are corrected by
    one factor, once. A loss that sums (`reduction: sum`) is not weighted. A normalisation layer sees micro-batches.

    The metrics of training are updated here: their outputs are not kept for longer than a micro-batch.
    """

    def __init__(self, *args: Any, count: int = 1, metrics: Sequence[Any] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.count, self.metrics, self.sums = count, metrics, sums(self.loss)

    def backward(self, batch: Sequence[Any]) -> Mapping[str, Any]:
        """Compute the gradients of a group of micro-batches."""
        outcomes = []
        first = 0
        for micro_batch in batch:
            outcome = self.step(micro_batch, self.net, self.loss)
            size = outcome.get("size", 1)
            first = first or size
            loss = outcome["loss"] if self.sums else outcome["loss"] / self.count
            self.scaler.backward(loss if self.sums or size == first else loss * (size / first))
            if self.metrics:
                self.note(outcome)
            outcomes.append({name: _detached(value) for name, value in outcome.items() if name not in _LARGE})
        whole = sum(outcome.get("size", 1) for outcome in outcomes)
        if whole != first * self.count and not self.sums:
            self._correct(first * self.count / whole)
        return combined(outcomes, sums=self.sums)

    def note(self, outcome: Mapping[str, Any]) -> None:
        """Give the metrics of training what they get of a micro-batch."""
        for metric in self.metrics:
            metric.update(outcome["output"].detach(), outcome["target"])

    def _correct(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


_LARGE = ("output", "target")


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def sums(loss: Callable[..., Any]) -> bool:
    """Whether a loss sums over its samples, as far as its `reduction` (an attribute, or a bound argument) says."""
    reduction = getattr(loss, "reduction", getattr(loss, "keywords", {}).get("reduction"))
    return bool(reduction == "sum")


def combined(outcomes: Sequence[Mapping[str, Any]], *, sums: bool = False) -> Mapping[str, Any]:
    """What several micro-batches' steps said, as one: numbers are means over samples (the loss a sum where it sums)."""
    sizes = [outcome.get("size", 1) for outcome in outcomes]
    whole = sum(sizes)
    last = dict(outcomes[-1])
    for name, value in last.items():
        if _is_number(value):
            members = [outcome[name] * (size / whole) for outcome, size in zip(outcomes, sizes, strict=True)]
            last[name] = torch.stack(members).sum() if isinstance(value, Tensor) else sum(members)
    if sums:
        last["loss"] = torch.stack([outcome["loss"] for outcome in outcomes]).sum()
    return {**last, "size": whole}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
