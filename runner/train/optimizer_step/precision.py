"""Mixed precision: autocast of a step, and gradient scaling against fp16 underflow."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.train.optimizer_step.base import NoGradScaler, Step

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what `device.precision` computes in, where it is not fp32


SMALLEST = 2.0**-20  # of a useful scale: gradients that are infinite even then are no matter of fp16


class Autocast:
    """Step whose matrix products and convolutions run in a lower precision, loss and backward included."""

    def __init__(self, step: Step, device: torch.device, precision: str) -> None:
        self.step, self.device_type, self.dtype = step, device.type, DTYPES[precision]

    def __call__(self, *args: Any, **named: Any) -> Any:
        with torch.autocast(self.device_type, dtype=self.dtype):
            return self.step(*args, **named)


class GradScaler(NoGradScaler):
    """Optimizer behind `torch.amp.GradScaler`; steps with infinite gradients are skipped and counted.

    The scale begins at 65536 and is halved at each such step, so the first few steps are often skipped.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        super().__init__(optimizer)
        self.grad_scaler = torch.amp.GradScaler(device.type)
        self._skipped: Tensor | float = 0.0  # on the device: to read it would wait
        # A scheduler warns where its step comes before the optimizer's first one, which may be skipped here.
        optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001

    def backward(self, loss: Tensor, **settings: Any) -> None:
        """Accumulate the scaled gradients of a loss; `settings` are those of `Tensor.backward`."""
        self.grad_scaler.scale(loss).backward(**settings)

    def unscale(self) -> None:
        """Unscale the gradients and check that all are finite."""
        self.grad_scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Step the optimizer if all gradients are finite; adapt the scale."""
        self.grad_scaler.step(self.optimizer)
        found = self.grad_scaler._found_inf_per_device(self.optimizer)  # noqa: SLF001  nothing public says it
        self._skipped = self._skipped + torch.stack(list(found.values())).amax()
        self.grad_scaler.update()

    @property
    def scale(self) -> float:  # type: ignore[override]  # read only
        """Current factor of the loss; waits for the device."""
        return self.grad_scaler.get_scale()

    @property
    def skipped(self) -> int:
        """Number of steps skipped so far; waits for the device."""
        return int(self._skipped)

    @property
    def exhausted(self) -> bool:
        """Whether the gradients stay infinite however small the scale; waits for the device."""
        return self.grad_scaler.get_scale() < SMALLEST

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {**self.grad_scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict."""
        self._skipped = float(state["skipped"])
        self.grad_scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})
