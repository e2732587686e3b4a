"""Averages of the weights, used by evaluations and saved beside the raw weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.core.errors import RunError
from runner.train.single_process import FULL_TENSORS, FullTensors


class WeightAverage:
    """Average of a model's weights; a subclass says what an update does.

    Buffers of floating point are averaged like parameters, as timm and torchvision do it: averaged weights need the
    statistics of activations that are averaged alike. Whole numbers (`num_batches_tracked`) and buffers with infinite
    numbers (a mask) are copied. Buffers that no state_dict holds are left alone.

    Args:
        model: whose weights; its parameters stay the same objects.
        every: optimizer steps between two updates.
        start: the optimizer step of the first update; 0: the first multiple of `every`.
        before: optimizer steps that were taken before this training.
        update_bn: whether batch normalisation gets statistics of the averaged weights, see `update_statistics`.
        layout: how the parameters lie; of shards each process averages its own.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 1,
        start: int = 0,
        *,
        before: int = 0,
        update_bn: bool = False,
        layout: FullTensors = FULL_TENSORS,
    ) -> None:
        self.model, self.every, self.start, self.layout = model, every, start, layout
        self.before, self.update_bn, self.refreshed = before, update_bn, 0
        least = max(start, before + 1)
        self.first = least + (start - least) % every  # the step of the first update
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

    @property
    def updates(self) -> int:
        """Updates until now; without any, the weights are the model's own."""
        step = self.before + self.count
        return 0 if step < self.first else (step - self.first) // self.every + 1

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after an optimizer step, if that is due."""
        self.count += 1
        step = self.before + self.count
        if step < self.first or (step - self.first) % self.every:
            return
        live = [tensor.detach() for tensor in self._averaged()]
        if live:
            self.average(live, (step - self.first) // self.every)
        for copy, tensor in zip(self.copies, self._copied(), strict=True):
            copy.copy_(tensor)

    def average(self, live: list[Tensor], updates: int) -> None:
        """Update `means` with the tensors as they are now, after so many updates."""
        raise NotImplementedError

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Swap the averaged weights into the model. Tensors stay the same, so compiled code stays valid."""
        if not self.updates:
            yield
            return
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
        """Return a plain state_dict under the names of the model's; before the first update, the model's."""
        return self._put_names(self._by_tensor() if self.updates else {})

    def collect_beginning(self) -> dict[str, Any]:
        """Return a state_dict of what the first update needs besides the weights of then; empty for nothing."""
        return {}

    def _put_names(self, means: dict[int, Tensor]) -> dict[str, Any]:
        return {
            name: self.layout.like(means[id(value)], value) if id(value) in means else value
            for name, value in self.model.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any], *, is_beginning: bool = False) -> None:
        """Load what `state_dict` or `collect_beginning` gave; the caller has restored `count`."""
        self.refreshed = self.updates
        means = self._by_tensor()
        for name, value in self.model.state_dict(keep_vars=True).items():
            if id(value) in means:
                means[id(value)].copy_(self.layout.here([saved[name]])[0])


class EMA(WeightAverage):
    """Moving average: `average = decay * average + (1 - decay) * weights`.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)` and `use_buffers=True`: the first update
    copies.

    Args:
        model: whose weights.
        decay: between 0 and 1.
        every: optimizer steps between two updates.
        start: the step of the first update.
        settings: of `WeightAverage`.
    """

    def __init__(
        self, model: nn.Module, decay: "Decay | float", every: int = 1, start: int = 1, **settings: Any
    ) -> None:
        super().__init__(model, every, start, **settings)
        self.decay = decay if isinstance(decay, Decay) else Decay(decay)

    def average(self, live: list[Tensor], updates: int) -> None:
        if not updates:
            torch._foreach_copy_(self.means, live)
        else:  # few kernels for all, as torch's own has it
            torch._foreach_lerp_(self.means, live, 1 - self.decay.at(self.before + self.count))


class MeanOfWeights(WeightAverage):
    """Mean of the weights at each update, as stochastic weight averaging has it (Izmailov et al. 2018).

    As `torch.optim.swa_utils.AveragedModel` with `use_buffers=True`, to the bit on a CPU.
    """

    def average(self, live: list[Tensor], updates: int) -> None:
        if not updates:
            torch._foreach_copy_(self.means, live)
            return
        differences = torch._foreach_sub(live, self.means)  # noqa: SLF001  as torch.optim.swa_utils
        torch._foreach_div_(differences, updates + 1)
        torch._foreach_add_(self.means, list(differences))


class Lookahead(WeightAverage):
    """Slow weights, which an update moves towards the fast ones and copies back (Zhang et al. 2019).

    `slow = decay * slow + (1 - decay) * fast; fast = slow`. They begin as the weights at `start`; where that is 0, as
    those before the first step.
    """

    def __init__(self, model: nn.Module, decay: "Decay", every: int = 1, start: int = 0, **settings: Any) -> None:
        super().__init__(model, every, start, **settings)
        self.decay = decay

    def collect_beginning(self) -> dict[str, Any]:
        """Return the slow weights before their first update: those before the first step."""
        return self._put_names(self._by_tensor()) if self._is_beginning else {}

    @property
    def _is_beginning(self) -> bool:
        return not self.start and self.count > 0 and not self.updates

    def load_state_dict(self, saved: dict[str, Any], *, is_beginning: bool = False) -> None:
        """Load a state_dict.

        Raises:
            RunError: it is of a step before the first update, and an earlier release did not save the slow weights.
        """
        if self._is_beginning and not is_beginning:
            rule = f"this checkpoint of before its first update, after step {self.first:,}, has no slow weights"
            raise RunError(f"train.average: lookahead cannot be continued exactly from here: {rule}")
        super().load_state_dict(saved, is_beginning=is_beginning)

    def average(self, live: list[Tensor], updates: int) -> None:
        if not updates and self.start:
            torch._foreach_copy_(self.means, live)
            return
        torch._foreach_lerp_(self.means, live, 1 - self.decay.at(self.before + self.count))
        torch._foreach_copy_(live, self.means)


class Decay:
    """Decay of an average: constant, or growing as a power of the share of the training that is done."""

    def __init__(self, decay: float, power: float = 0.0, total_steps: int = 1) -> None:
        self.decay, self.power, self.total_steps = decay, power, max(1, total_steps)

    def at(self, step: int) -> float:
        """Return the decay after so many optimizer steps."""
        return float(self.decay * (step / self.total_steps) ** self.power) if self.power else self.decay
