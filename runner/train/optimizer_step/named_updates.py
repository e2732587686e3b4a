"""Optimizer steps that a user's step asks for by name: `update("generator", loss)`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.core.errors import RunError
from runner.core.trees import count_samples
from runner.train.optimizer_step.accumulated import AccumulatedStep, combine_outcomes, detach_small
from runner.train.optimizer_step.base import NoGradScaler
from runner.train.optimizer_step.precision import GradScaler
from runner.train.optimizer_step.several_optimizers import get_members


class NoUpdate:
    """Update of an evaluation: every call does nothing, and it is false."""

    def __call__(self, *_: Any, **__: Any) -> None: ...

    def __bool__(self) -> bool:
        return False


NO_UPDATE = NoUpdate()


ROUNDING = 1e-9  # of a sum of shares


class GradScalers:
    """Gradient scalers of several optimizers by name, each with its own scale; `""` is all together."""

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.members = {name: GradScaler(one, device) for name, one in list_targets(optimizer).items()}
        self.active = next(iter(self.members.values()))  # that of the last backward

    @property
    def grad_scaler(self) -> torch.amp.GradScaler:
        """Torch's scaler of the last backward."""
        return self.active.grad_scaler

    @property
    def scale(self) -> float:
        """Factor of the last loss; waits for the device."""
        return self.active.scale

    @property
    def skipped(self) -> int:
        """Number of updates skipped so far; waits for the device."""
        return sum(member.skipped for member in self.members.values())

    @property
    def exhausted(self) -> bool:
        """Whether some gradients stay infinite however small the scale; waits for the device."""
        return any(member.exhausted for member in self.members.values())

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers by optimizer."""
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict."""
        for name, member in self.members.items():
            member.load_state_dict(state[name])


def list_targets(optimizer: Optimizer) -> dict[str, Optimizer]:
    """List what an update may name: each optimizer, and `""` for all of them."""
    return {"": optimizer, **get_members(optimizer)}


class UpdateTarget:
    """Optimizer that an update names: its parameters, scaler and clipping, and its losses so far."""

    def __init__(self, optimizer: Optimizer, scaler: NoGradScaler | None, clips: Iterable[Callable[..., Any]]) -> None:
        self.optimizer, self.scaler, self.clips = optimizer, scaler or NoGradScaler(optimizer), list(clips)
        self.calls, self.weight = 0, 0.0  # losses since its last step, and what they count of a whole step's

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that train now; a thaw changes them."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]


class StepWithUpdates(AccumulatedStep):
    """User step with an argument `update(name, loss)`, which steps an optimizer by the recipe.

    A call computes the gradients of that optimizer's parameters alone, outside of autocast, and steps it: unscaled,
    averaged over the processes, clipped. `update(loss)` steps all optimizers. With `train.accumulate` the user's step
    is called with each micro-batch, and an optimizer steps at each k-th call where there are k of them. Each loss is
    weighted by its micro-batch's share of the samples, unless it sums.

    Args:
        clips: functions of parameters that clip their gradients, in order.
        scalers: of fp16, one for each optimizer.
        settings: of `AccumulatedStep`.

    Attributes:
        share: factor of each loss: this process's share of the batch.
        average: is given the parameters before each optimizer step, to average their gradients over the processes.
    """

    def __init__(
        self,
        *args: Any,
        clips: Sequence[Callable[..., Any]] = (),
        scalers: GradScalers | None = None,
        takes_optimizer: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.scalers = scalers
        self.targets = {
            name: UpdateTarget(one, None if scalers is None else scalers.members[name], clips)
            for name, one in list_targets(self.optimizer).items()
        }
        self.given = {"optimizer": self.optimizer} if takes_optimizer else {}
        self.each, self.divisor = self.count, 1.0  # micro-batches of a step; what each loss is divided by
        self.measure: Callable[[Sequence[Any]], list[int]] = lambda group: [*map(count_samples, group)]
        self.share = 1.0
        self.average: Callable[[Sequence[nn.Parameter]], object] = lambda _: None

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Call the user's step with each micro-batch; return the step outputs."""
        group = batch if self.each > 1 else [batch]
        self.count = len(group)
        sizes = self.measure(group) if self.each > 1 and not self.sums else [1] * len(group)
        even = len({*sizes}) == 1
        outcomes = []
        for micro_batch, size in zip(group, sizes, strict=True):
            self.divisor = len(group) if even else sum(sizes) / size
            if self.sums:
                self.divisor = 1
            outcome = self.step(micro_batch, self.net, self.loss, update=self.update, **self.given)
            if self.each == 1:
                outcomes.append(outcome)
                continue
            if self.metrics:
                self.note(outcome)
            outcomes.append(detach_small(outcome, self.large))
        for target in self.targets.values():
            if target.calls:  # fewer than there are micro-batches: the user's step left some out
                self._step(target)
        for do in self.after:
            do()
        return outcomes[0] if self.each == 1 else combine_outcomes(outcomes, sums=self.sums)

    def update(self, name: Any, loss: Tensor | None = None, *, retain_graph: bool = False) -> None:
        """Add a loss to the gradients of an optimizer, and step it where that was the last one.

        Args:
            name: of the optimizer; left out, all of them are meant.
            loss: one number.
            retain_graph: whether a further loss of this step uses the same graph.

        Raises:
            RunError: no optimizer has that name, or the loss is not one number with a gradient.
        """
        name, loss = ("", name) if loss is None else (name, loss)
        check_update(name, loss, self.targets)
        assert isinstance(loss, Tensor)
        target = self.targets[name]
        with torch.autocast(loss.device.type, enabled=False):
            if self.scalers is not None:
                self.scalers.active = self.scalers.members[name]
            loss = loss if self.divisor == 1 else loss / self.divisor
            loss = loss if self.share == 1 else loss * self.share
            target.scaler.backward(loss, inputs=target.parameters, retain_graph=retain_graph)
            target.calls += 1
            target.weight += 1 / self.divisor
            if target.calls == self.count:
                self._step(target)

    def _step(self, target: UpdateTarget) -> None:
        parameters, optimizer = target.parameters, target.optimizer
        if abs(target.weight - 1) > ROUNDING and not self.sums:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(target.weight)
        self.average(parameters)
        target.scaler.unscale()
        if self.after_backward:
            self.scale = target.scaler.scale
            for member in get_members(optimizer).values():
                for look in self.after_backward:
                    look(member)
        for clip in target.clips:
            clip(parameters)
        target.scaler.step()
        optimizer.zero_grad()
        target.calls, target.weight = 0, 0.0
        if torch.is_autocast_cache_enabled():
            torch.clear_autocast_cache()  # it holds casts of the weights as they were

    def evaluate(self, batch: Any, model: nn.Module) -> Mapping[str, Any]:
        """Return the step outputs of a batch, without training on it."""
        given = dict.fromkeys(self.given)
        return self.step(batch, model, self.loss, update=NO_UPDATE, **given)


def check_update(name: Any, loss: Any, known: Iterable[str]) -> None:
    """Check the arguments of an update.

    Raises:
        RunError: no optimizer has that name, or the loss is not one number with a gradient.
    """
    names = [one for one in known if one]
    if name not in {"", *names}:
        said = ", ".join(f"`{one}`" for one in names) if names else "none: there is one, so leave the name out"
        raise RunError(f"update({name!r}, …): no optimizer has that name; their names are {said}")
    said = f"update({name!r}, …)" if name else "update(…)"
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"the shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RunError(f"{said} must get a loss of one number, but gets {given}")
    if not loss.requires_grad:
        raise RunError(f"{said} gets a loss without a gradient (a `detach`, or all that it uses is frozen)")


class CheckedUpdate:
    """Update of a step that is only tried: it checks its arguments and changes nothing."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def __call__(self, name: Any, loss: Any = None, **_: Any) -> None:
        name, loss = ("", name) if loss is None else (name, loss)
        check_update(name, loss, self.names)
