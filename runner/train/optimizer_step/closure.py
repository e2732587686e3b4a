"""Two more kinds of optimizer step: by a closure that is called several times (LBFGS), by the step itself (GANs)."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.core.errors import RunError
from runner.train.optimizer_step.base import Do, Look, Step, Update


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer evaluates the model itself, as often as it likes."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def is_own(step: Callable[..., Any]) -> bool:
    """Whether a step asks for the optimizer: it then does its own backward and its own update."""
    return "optimizer" in inspect.signature(step).parameters


class Followed(Update):
    """With something to do after each step (an average of the weights), in order."""

    def __init__(
        self, net: nn.Module, loss: Callable[..., Any], step: Step, optimizer: Optimizer, after: Iterable[Do] = ()
    ) -> None:
        super().__init__(net, loss, step, optimizer)
        self.after = list(after)

    def follow(self) -> None:
        """A step is done."""
        for do in self.after:
            do()


class Closure(Followed):
    """The optimizer calls a closure that evaluates the loss and its gradients; each time dropout draws anew.

    What is reported is the first evaluation: the loss before the step, as `optimizer.step(closure)` returns it.
    """

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one optimizer step; what the step said the first time."""
        outcomes: list[Mapping[str, Any]] = []

        def closure() -> Any:
            self.optimizer.zero_grad()
            outcome = self.backward(batch)
            if not outcomes:
                outcomes.append(outcome)
                for look in self.after_backward:  # once a step, at its first evaluation
                    look(self.optimizer)
            return outcome["loss"]

        self.optimizer.step(closure)
        self.optimizer.zero_grad()
        self.follow()
        if not outcomes:
            message = f"{type(self.optimizer).__name__} never called its closure"
            raise RunError(message)
        return outcomes[0]


class Own(Followed):
    """The step does its own backward and its own update, with the optimizer that its signature asks for.

    In an evaluation it gets None in its place.
    """

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one step; what it said."""
        outcome = self.step(batch, self.net, self.loss, optimizer=self.optimizer)
        self.follow()
        return outcome

    def evaluate(self, batch: Any, model: nn.Module) -> Mapping[str, Any]:
        """What the step says of a batch that nothing is learnt from."""
        return self.step(batch, model, self.loss, optimizer=None)

    def watch(self, look: Look) -> Do:
        """Call `look(optimizer)` before each step of each optimizer from now on; the result ends it."""
        members = getattr(self.optimizer, "optimizers", {"": self.optimizer}).values()
        handles = [member.register_step_pre_hook(lambda optimizer, *_: look(optimizer)) for member in members]

        def end() -> None:
            for handle in handles:
                handle.remove()

        return end
