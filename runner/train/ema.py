"""Exponential moving average of the weights, used by evaluations and saved beside the raw weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.train.single_process import FULL_TENSORS, FullTensors


class EMA:
    """Moving average: `average = decay * average + (1 - decay) * weights`.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)` and `use_buffers=True`: the first update
    copies. Buffers of floating point are averaged like parameters, as timm and torchvision do it: averaged weights need
    the statistics of activations that are averaged alike. Whole numbers (`num_batches_tracked`) and buffers with
    infinite numbers (a mask) are copied. Buffers that no state_dict holds are left alone.

    Args:
        model: whose weights; its parameters stay the same objects.
        decay: between 0 and 1.
        every: optimizer steps between two updates; the first step is always one.
        layout: how the parameters lie; of shards each process averages its own.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1, layout: FullTensors = FULL_TENSORS) -> None:
        self.model, self.decay, self.every, self.layout = model, decay, every, layout
        self.count = 0  # optimizer steps seen
        saved = {id(value) for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
        self.parameters = [parameter for parameter in model.parameters() if id(parameter) in saved]
        self.buffers: list[tuple[nn.Module, str]] = []  # by their owners: a module may replace its buffer by another
        self.whole: list[tuple[nn.Module, str]] = []
        seen: set[int] = set()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if id(buffer) in saved and id(buffer) not in seen:
                    seen.add(id(buffer))
                    mean = buffer.is_floating_point() and bool(torch.isfinite(buffer).all())
                    (self.buffers if mean else self.whole).append((module, name))
        self.means = [tensor.detach().clone() for tensor in self._averaged()]
        self.copies = [tensor.detach().clone() for tensor in self._copied()]

    def _averaged(self) -> list[Tensor]:
        buffers = [getattr(module, name) for module, name in self.buffers]
        return [*self.layout.here(self.parameters), *buffers]

    def _copied(self) -> list[Tensor]:
        return [getattr(module, name) for module, name in self.whole]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after an optimizer step."""
        self.count += 1
        if (self.count - 1) % self.every:
            return
        live = [tensor.detach() for tensor in self._averaged()]
        if self.count == 1:
            torch._foreach_copy_(self.means, live)
        elif live:
            torch._foreach_lerp_(self.means, live, 1 - self.decay)  # few kernels for all, as torch's own has it
        for copy, tensor in zip(self.copies, self._copied(), strict=True):
            copy.copy_(tensor)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Swap the averaged weights into the model. Tensors stay the same, so compiled code stays valid."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        live = [*self._averaged(), *self._copied()]
        for mean, tensor in zip([*self.means, *self.copies], live, strict=True):
            kept = tensor.detach().clone()
            tensor.copy_(mean)
            mean.copy_(kept)

    def _by_tensor(self) -> dict[int, Tensor]:
        buffers = [getattr(module, name) for module, name in self.buffers]
        live = [*self.parameters, *buffers, *self._copied()]
        return {id(tensor): mean for tensor, mean in zip(live, [*self.means, *self.copies], strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return a plain state_dict under the names of the model's."""
        means = self._by_tensor()
        return {
            name: self.layout.like(means[id(value)], value) if id(value) in means else value
            for name, value in self.model.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load a state_dict; the caller restores `count`."""
        means = self._by_tensor()
        for name, value in self.model.state_dict(keep_vars=True).items():
            if id(value) in means:
                means[id(value)].copy_(self.layout.here([saved[name]])[0])
