"""Muon for tensors of any number of dimensions, such as the filters of a convolution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at 0, so that small singular values grow fast


def compute_orthogonal(matrix: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Return a matrix with the singular vectors of the given one, and singular values near 1, in bfloat16.

    By a quintic Newton-Schulz iteration (Jordan 2024, https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = COEFFICIENTS
    wide: Tensor = matrix.bfloat16() if matrix.size(0) <= matrix.size(1) else matrix.bfloat16().T
    wide = wide / (wide.norm() + eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.size(0) <= matrix.size(1) else wide.T


class FilterMuon(Optimizer):
    """Muon whose update sees a tensor as a matrix with a row for each filter or output feature.

    `torch.optim.Muon` takes matrices alone. The momentum buffer is a sum (as SGD has it), not a mean.

    Args:
        params: of at least two dimensions.
        lr: the length of a step along each orthogonal direction.
        momentum: of the gradients.
        nesterov: whether the gradient at hand is added to the momentum once more.
        steps: of the iteration that orthogonalizes.
        normalize: whether each tensor is scaled before its step so that its rows have a mean square norm of 1.
        weight_decay: decoupled, as AdamW has it.

    Raises:
        ValueError: a number is out of range, or a tensor has fewer than two dimensions.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.6,
        nesterov: bool = True,
        steps: int = 3,
        normalize: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or steps < 1:
            rule = "lr and weight_decay must be at least 0, momentum in [0, 1), steps at least 1"
            message = f"{rule}: {lr}, {weight_decay}, {momentum}, {steps}"
            raise ValueError(message)
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps, "normalize": normalize}
        settings["weight_decay"] = weight_decay
        super().__init__(params, settings)
        thin = [list(p.shape) for group in self.param_groups for p in group["params"] if p.dim() < 2]
        if thin:
            message = (
                f"takes tensors of at least two dimensions, and one has the shape {thin[0]}: give it `min_dims: 2`"
            )
            raise ValueError(message)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        if group["normalize"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        if group["weight_decay"]:
            parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
        update = compute_orthogonal(direction.reshape(len(direction), -1), group["steps"])
        parameter.add_(update.view(direction.shape).to(parameter.dtype), alpha=-float(group["lr"]))
