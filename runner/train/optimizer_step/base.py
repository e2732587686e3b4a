"""One optimizer step: forward, backward, and the update.

What a recipe puts between them (clipping, a scaler, an average of the weights) is chosen once, when the run is built:
what is off is not there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.core.trees import map_in_kind

Step = Callable[..., Mapping[str, Any]]


Do = Callable[[], object]


Look = Callable[[Optimizer], object]


class OptimizerStep:
    """Plain optimizer step.

    Args:
        net: what a step calls: the model, or the model in a wrapper (DistributedDataParallel).
        loss: what a step calls with the output and the target.
        step: `step(batch, net, loss)`, see `runner.train.steps`.
        optimizer: over the parameters of the model and of the loss.

    Attributes:
        metrics: those of training that it updates itself, micro-batch by micro-batch; the loop updates the others.
        scale: what the loss is multiplied by before its backward.
        parts: into which a batch of the loader is cut.
        warn: is told what the log must say.
        after_backward: hooks, each called as `hook(optimizer)` with the gradients there and not used yet.
    """

    metrics: Sequence[Any] = ()
    scale: float = 1.0
    parts: int = 1

    def __init__(self, net: nn.Module, loss: Callable[..., Any], step: Step, optimizer: Optimizer) -> None:
        self.net, self.loss, self.step, self.optimizer = net, loss, step, optimizer
        self.warn: Callable[[str], object] = print
        self.after_backward: list[Look] = []

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one optimizer step; return the step outputs."""
        outcome = self.backward(batch)
        self.apply()
        return outcome

    def backward(self, batch: Any) -> Mapping[str, Any]:
        """Compute the gradients of a batch."""
        outcome = self.step(batch, self.net, self.loss)
        outcome["loss"].backward()
        return outcome

    def apply(self) -> None:
        """Step the optimizer and clear the gradients."""
        for look in self.after_backward:
            look(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self, batch: Any, model: nn.Module) -> Mapping[str, Any]:
        """Return the step outputs of a batch, without training on it."""
        return self.step(batch, model, self.loss)

    def watch(self, look: Look) -> Do:
        """Call `look(optimizer)` before each use of the gradients; return a function that stops it."""
        self.after_backward.append(look)
        return lambda: self.after_backward.remove(look)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: plain numbers by name, `parts` among them."""
        return {"parts": self.parts}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; nothing changes here, where batches stay whole."""


class CloneOutputs:
    """Step that clones its outputs: torch.compile's CUDA graphs overwrite them, and metrics keep them."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, *args: Any, **named: Any) -> Mapping[str, Any]:
        outcome = self.step(*args, **named)
        return {name: map_in_kind(Tensor.clone, value) for name, value in outcome.items()}


class NoGradScaler:
    """Gradient scaler without scaling; `GradScaler` is the one for fp16."""

    scale: float = 1.0

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def backward(self, loss: Tensor, **settings: Any) -> None:
        """Accumulate the gradients of a loss; `settings` are those of `Tensor.backward`."""
        loss.backward(**settings)

    def unscale(self) -> None: ...

    def step(self) -> None:
        """Step the optimizer."""
        self.optimizer.step()


class OptimizerStepWithHooks(OptimizerStep):
    """Optimizer step with hooks, in order, before it (clipping) and after it (EMA).

    What stands in `before` finds the gradients in the parameters; where fp16 has scaled them they are unscaled by then.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[..., Any],
        step: Step,
        optimizer: Optimizer,
        *,
        scaler: NoGradScaler | None = None,
        before: Iterable[Do] = (),
        after: Iterable[Do] = (),
    ) -> None:
        super().__init__(net, loss, step, optimizer)
        self.scaler = scaler or NoGradScaler(optimizer)
        self.before, self.after = list(before), list(after)

    def backward(self, batch: Any) -> Mapping[str, Any]:
        """Compute the gradients of a batch."""
        outcome = self.step(batch, self.net, self.loss)
        self.scaler.backward(outcome["loss"])
        return outcome

    def apply(self) -> None:
        """Run the hooks and step the optimizer; clear the gradients."""
        self.scaler.unscale()
        if self.after_backward:
            self.scale = self.scaler.scale  # of this backward; the scaler's step may change it
            for look in self.after_backward:
                look(self.optimizer)
        for do in self.before:
            do()
        self.scaler.step()
        self.optimizer.zero_grad()
        for do in self.after:
            do()
