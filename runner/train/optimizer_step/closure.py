"""Optimizer steps by a closure that is called several times (LBFGS), or by the user's step (GANs)."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.core.errors import RunError
from runner.train.optimizer_step.base import Do, Look, OptimizerStep, Step
from runner.train.optimizer_step.several_optimizers import get_members


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether an optimizer evaluates the model itself, through a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def is_custom_step(step: Callable[..., Any]) -> bool:
    """Return whether a step asks for `optimizer` or `update`: it decides itself what is learnt, and when."""
    return has_parameter(step, "optimizer") or has_parameter(step, "update")


def has_parameter(step: Callable[..., Any], name: str) -> bool:
    """Return whether a step has a parameter of this name."""
    try:
        return name in inspect.signature(step).parameters
    except ValueError:  # bound to an argument that it does not have, which is said elsewhere
        return False


class OptimizerStepWithAfterHooks(OptimizerStep):
    """Optimizer step with hooks after it, in order (EMA)."""

    def __init__(
        self, net: nn.Module, loss: Callable[..., Any], step: Step, optimizer: Optimizer, after: Iterable[Do] = ()
    ) -> None:
        super().__init__(net, loss, step, optimizer)
        self.after = list(after)

    def follow(self) -> None:
        """Run the hooks after a step."""
        for do in self.after:
            do()


class ClosureStep(OptimizerStepWithAfterHooks):
    """Optimizer step by a closure that evaluates loss and gradients; each call draws new dropout masks.

    What is reported is the first evaluation: the loss before the step, as `optimizer.step(closure)` returns it.
    """

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one optimizer step; return the step outputs of the first evaluation."""
        outcomes: list[Mapping[str, Any]] = []

        def closure() -> Any:
            self.optimizer.zero_grad()
            outcome = self.backward(batch)
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:  # torch's LBFGS takes a view of them all as one vector
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad.contiguous()
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


class CustomStep(OptimizerStepWithAfterHooks):
    """User step that does its own backward and update with the `optimizer` of its signature.

    In an evaluation it gets None in its place.
    """

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Take one step; return its outputs."""
        outcome = self.step(batch, self.net, self.loss, optimizer=self.optimizer)
        self.follow()
        return outcome

    def evaluate(self, batch: Any, model: nn.Module) -> Mapping[str, Any]:
        """Return the step outputs of a batch, without training on it."""
        return self.step(batch, model, self.loss, optimizer=None)

    def watch(self, look: Look) -> Do:
        """Call `look(optimizer)` before each step of each optimizer; return a function that stops it."""

        def before(optimizer: Optimizer, *_: Any) -> None:
            look(optimizer)

        members = get_members(self.optimizer).values()
        handles = [member.register_step_pre_hook(before) for member in members]

        def end() -> None:
            for handle in handles:
                handle.remove()

        return end
