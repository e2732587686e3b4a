"""One optimizer step: forward, backward, and the update.

What a recipe puts between them (clipping, a scaler, an average of the weights) is chosen here once, when the run is
built, so that the loop does nothing for what is off.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


class Update:
    """The plain one.

    Args:
        net: what a step calls: the model, or the model in a wrapper (DistributedDataParallel).
        loss: what a step calls with the output and the target.
        step: `step(batch, net, loss)`, see `runner.step`.
        optimizer: over the parameters of the model and of the loss.
    """

    def __init__(
        self, net: nn.Module, loss: Callable[..., Any], step: Callable[..., Mapping[str, Any]], optimizer: Optimizer
    ) -> None:
        self.net, self.loss, self.step, self.optimizer = net, loss, step, optimizer

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one optimizer step; what the step said."""
        outcome = self.backward(batch)
        self.apply()
        return outcome

    def backward(self, batch: Any) -> Mapping[str, Any]:
        """Compute the gradients of a batch."""
        outcome = self.step(batch, self.net, self.loss)
        outcome["loss"].backward()
        return outcome

    def apply(self) -> None:
        """Let the optimizer use the gradients, and clear them."""
        self.optimizer.step()
        self.optimizer.zero_grad()
