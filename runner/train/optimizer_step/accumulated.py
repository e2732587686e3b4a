"""Gradient accumulation: several micro-batches in one optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from runner.train.optimizer_step.base import OptimizerStepWithHooks


class AccumulatedStep(OptimizerStepWithHooks):
    """Optimizer step of several micro-batches; its gradients are those of one batch of all samples.

    Each loss is weighted by its share of the samples. Where all `count` micro-batches have the size of the first, that
    is `(loss / count).backward()`, to the bit; where they do not (the end of an epoch), the gradients are corrected by
    one factor, once. A loss that sums (`reduction: sum`) is not weighted. A normalisation layer sees micro-batches.

    The metrics of training are updated here: their outputs are not kept for longer than a micro-batch.
    """

    def __init__(self, *args: Any, count: int = 1, metrics: Sequence[Any] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.count, self.metrics, self.sums = count, metrics, is_summed(self.loss)

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
            outcomes.append(detach_small(outcome))
        whole = sum(outcome.get("size", 1) for outcome in outcomes)
        if whole != first * self.count and not self.sums:
            self._correct(first * self.count / whole)
        return combine_outcomes(outcomes, sums=self.sums)

    def note(self, outcome: Mapping[str, Any]) -> None:
        """Update the training metrics with a micro-batch."""
        for metric in self.metrics:
            metric.update(outcome["output"].detach(), outcome["target"])

    def _correct(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


_LARGE = ("output", "target")


def detach_small(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return a micro-batch's step outputs without graph, and without what is as large as the batch."""
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in outcome.items()
        if name not in _LARGE
    }


def is_summed(loss: Callable[..., Any]) -> bool:
    """Return whether a loss sums over samples, by its `reduction` (attribute or bound argument)."""
    reduction = getattr(loss, "reduction", getattr(loss, "keywords", {}).get("reduction"))
    return bool(reduction == "sum")


def combine_outcomes(outcomes: Sequence[Mapping[str, Any]], *, sums: bool = False) -> Mapping[str, Any]:
    """Combine micro-batches' step outputs: means over samples; the loss is summed if `is_summed`."""
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
