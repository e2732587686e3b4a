"""Gradient accumulation: several micro-batches in one optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from runner.train.loss_weights import compute_divisor, is_summed, read_kind
from runner.train.optimizer_step.base import OptimizerStepWithHooks
from runner.train.step_outputs import is_weighted

Take = Callable[[Mapping[str, Any]], object]  # a metric takes what it needs of an outcome


class AccumulatedStep(OptimizerStepWithHooks):
    """Optimizer step of several micro-batches; its gradients are those of one batch of all samples.

    Each loss is weighted by its share of the samples (of the targets, see `compute_divisor`; of what the step's `size`
    counts where it gives `loss_is`). Where all `count` micro-batches have the weight of the first, that is `(loss /
    count).backward()`, to the bit; where they do not (the end of an epoch), the gradients are corrected by one factor,
    once. A loss that sums (`reduction: sum`, `loss_is: sum`) is not weighted. A normalisation layer sees micro-batches.

    The metrics of training are updated here: their outputs are not kept for longer than a micro-batch.
    """

    def __init__(self, *args: Any, count: int = 1, metrics: Sequence[Take] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.count, self.metrics, self.sums = count, metrics, is_summed(self.loss)
        self.large = frozenset({"output", "target"})  # not kept for longer than a micro-batch

    def backward(self, batch: Sequence[Any]) -> Mapping[str, Any]:
        """Compute the gradients of a group of micro-batches."""
        outcomes: list[Mapping[str, Any]] = []
        weights: list[Any] = []
        for micro_batch in batch:
            outcome = self.step(micro_batch, self.net, self.loss)
            sums = read_kind(outcome, sums=self.sums)
            weights.append(1 if sums else find_weight(self.loss, outcome))
            self.scaler.backward(outcome["loss"] if sums else self._weigh(outcome["loss"], weights))
            if self.metrics:
                self.note(outcome)
            outcomes.append(detach_small(outcome, self.large))
        if not sums:
            self._correct(weights)
        return combine_outcomes(outcomes, weights, sums=sums)

    def note(self, outcome: Mapping[str, Any]) -> None:
        """Update the training metrics with a micro-batch."""
        for take in self.metrics:
            take(outcome)

    def _weigh(self, loss: Tensor, weights: Sequence[Any]) -> Tensor:
        loss, weight, first = loss / self.count, weights[-1], get_reference(weights)
        if isinstance(weight, Tensor):  # no number here, which would wait for the device
            return torch.where(weight > 0, loss * (weight / first), torch.zeros_like(loss))
        return loss if weight == first else loss * (weight / first)

    def _correct(self, weights: Sequence[Any]) -> None:
        first, whole = get_reference(weights), sum(weights)
        if not isinstance(whole, Tensor) and whole == first * self.count:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(first * self.count / whole)


def get_reference(weights: Sequence[Any]) -> Any:
    """Return the weight that the others are relative to: that of the first micro-batch, unless it is 0."""
    if isinstance(weights[0], Tensor):
        return weights[0].where(weights[0] > 0, 1)
    return weights[0] or 1


def detach_small(outcome: Mapping[str, Any], large: frozenset[str]) -> dict[str, Any]:
    """Return a micro-batch's step outputs without graph, and without what is as large as the batch."""
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in outcome.items()
        if name not in large
    }


def find_weight(loss: Any, outcome: Mapping[str, Any]) -> Any:
    """Return the weight of a mean loss among others: a number, or a tensor on the device."""
    size = outcome.get("size", 1)
    if "loss_is" in outcome:
        return size
    divisor = compute_divisor(loss, outcome.get("target"))
    return size if divisor is None else divisor


def combine_outcomes(
    outcomes: Sequence[Mapping[str, Any]], weights: Sequence[Any] = (), *, sums: bool = False
) -> Mapping[str, Any]:
    """Combine micro-batches' step outputs: means over samples; the loss by `weights`, or summed."""
    sizes = [outcome.get("size", 1) for outcome in outcomes]
    whole = sum(sizes)
    last = dict(outcomes[-1])
    for name, value in last.items():
        if is_weighted(value):
            own = [outcome[name] for outcome in outcomes if name in outcome]
            weight = sum(field["weight"] for field in own)
            total = sum(field["value"] * field["weight"] for field in own)
            last[name] = {"value": total / weight, "weight": weight}
        elif _is_number(value) and name != "loss":
            members = [outcome[name] * (size / whole) for outcome, size in zip(outcomes, sizes, strict=True)]
            last[name] = torch.stack(members).sum() if isinstance(value, Tensor) else sum(members)
    parts = [outcome["loss"] for outcome in outcomes]
    if not sums:
        weights = weights or sizes
        every = sum(weights)
        parts = [part * (weight / every) for part, weight in zip(parts, weights, strict=True)]
    return {**last, "loss": torch.stack(parts).sum(), "size": whole}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
