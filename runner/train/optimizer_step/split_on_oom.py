"""Out of memory in training: an optimizer step that splits its batch into parts."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from runner.core import rng
from runner.core.copies import copy_owned
from runner.core.trees import count_samples, slice_samples
from runner.train.metric_inputs import detach
from runner.train.oom import is_out_of_memory
from runner.train.optimizer_step.accumulated import AccumulatedStep


class OomSplitStep(AccumulatedStep):
    """Optimizer step that retries a batch out of memory in twice as many parts; same gradients.

    What the failed attempt changed is put back first: generators, buffers, the batch, the state of step and loss. The
    number of parts is kept for the batches to come. As with accumulation, a normalisation layer sees the parts.
    """

    def __init__(self, *args: Any, model: nn.Module, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.model, self.parts, self.each = model, 1, self.count
        self.waiting: list[Mapping[str, Any]] = []

    def backward(self, batch: Any) -> Mapping[str, Any]:
        """Compute the gradients of a batch, or of a group of them, in as many parts as it takes.

        Raises:
            torch.OutOfMemoryError: a single sample does not fit.
        """
        group = batch if self.each > 1 else [batch]
        untouched = copy_owned(list(group))  # the step may change its batch, and an attempt that fails must not
        before = self._changeable()
        while True:
            self.count = self.each * self.parts
            try:
                outcome = super().backward([part for member in group for part in cut(member, self.parts)])
                break
            except Exception as error:
                if not is_out_of_memory(error) or self.parts >= max(map(count_samples, group)):
                    raise
            # Only here, where the error and all that its frames held is gone, is the memory free.
            self._put_back(before)
            group = copy_owned(untouched)
            self.parts *= 2
            self.warn(f"out of memory: batches are computed in {self.parts} parts from here on (train.split_on_oom)")
        for seen in self.waiting:
            super().note(seen)
        self.waiting.clear()
        return outcome

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.parts = saved["parts"]

    def note(self, outcome: Mapping[str, Any]) -> None:
        """Keep the metrics' inputs until the whole step is done."""
        self.waiting.append({name: detach(value) for name, value in outcome.items() if name in self.large})

    def _changeable(self) -> tuple[Any, ...]:
        owners = [owner for owner in (self.model, self.loss) if isinstance(owner, nn.Module)]
        buffers = [(buffer, buffer.clone()) for owner in owners for buffer in owner.buffers()]
        parts = [part for part in (self.step,) if hasattr(part, "state_dict")]
        return rng.get_state(), buffers, [(part, deepcopy(part.state_dict())) for part in parts]

    def _put_back(self, before: tuple[Any, ...]) -> None:
        generators, buffers, parts = before
        self.waiting.clear()
        self.optimizer.zero_grad()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for part, state in parts:
            part.load_state_dict(state)
        rng.set_state(generators)


def cut(batch: Any, parts: int) -> list[Any]:
    """Cut a batch into nearly equal parts; members not as long as the batch are in every part."""
    whole = count_samples(batch)
    if parts == 1:
        return [batch]
    bounds = [whole * part // parts for part in range(parts + 1)]
    return [slice_samples(batch, whole, slice(a, b)) for a, b in pairwise(bounds) if a < b]
