"""Optimizers of a stack: SGD, Adam, AdamW and RMSprop with settings of its own for each job.

The settings are read from the runs' own optimizers at each step, where the schedules change them. The state is stacked,
and each run's optimizer has views of it under torch's names, so that its state_dict is that of the job alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.train.vectorized.alike import AlikeJobs
from runner.train.vectorized.stack import Stack, get_tensors, stack_tensors

Number = float | Tensor

MOST_FUSED = 4  # groups of jobs with equal settings that are updated one after the other; of more all at once


def make_numbers(values: Sequence[float], like: Tensor) -> Number:
    """Return the one value of all jobs, or a tensor [jobs, 1, ...] that broadcasts over `like`."""
    if all(value == values[0] for value in values):
        return values[0]
    made = torch.tensor(values, dtype=torch.float64).to(like.dtype)
    return made.to(like.device).view(-1, *[1] * (like.dim() - 1))


class StackedOptimizer:
    """Base of a stack's optimizers: settings by param group, state by parameter.

    Args:
        stack: whose parameters; the runs' optimizers have the same param groups, each with its own settings.
        alike: which of the runs have the same settings at every step.
    """

    flags: tuple[str, ...] = ()  # settings that must be equal in all jobs
    tensors: tuple[str, ...] = ()  # names of the state, beside `step`

    def __init__(self, stack: Stack, alike: AlikeJobs) -> None:
        self.stack, self.alike = stack, alike
        self.state: dict[str, dict[str, Tensor]] = {}
        self.groups: list[list[str]] = []
        self.steps: dict[str, list[float]] = {}  # taken by each job, by parameter
        self.settings: list[GroupSettings] = []  # of each param group
        self.owned: list[dict[str, Tensor]] = []  # the parameters of each run
        # Of parameters and state, which stay where they are until a job leaves.
        self._rows: dict[Any, list[Tensor]] = {}
        self._layouts: dict[Any, list[tuple[int, ...] | None]] = {}
        self._bind()

    def keep(self, rows: Sequence[int], alike: AlikeJobs) -> None:
        """Go on with these rows, after the stack has given up the others."""
        self.alike = alike
        for row in range(len(rows)):
            self.write_steps(row, rows[row])
        self._bind()

    def _bind(self) -> None:
        """Take up the runs' own state; make it views of the stack's."""
        runs = self.stack.runs
        owned = self.owned = [get_tensors(run)[0] for run in runs]
        for run in runs:  # else a schedule warns that it comes before the first step
            run.optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        names = {id(parameter): name for name, parameter in owned[0].items()}
        self.groups = [[names[id(one)] for one in group["params"]] for group in runs[0].optimizer.param_groups]
        self.settings = [GroupSettings() for _ in self.groups]
        self.state = {}
        self._rows.clear()
        self._layouts.clear()
        for name in self.stack.parameters:
            entries = [run.optimizer.state.get(own[name], {}) for run, own in zip(runs, owned, strict=True)]
            self._take(name, entries)
            if name in self.state:
                self.attach(name)

    def _take(self, name: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Stack the state of one parameter; a part that only others have is zero, and counts nothing."""
        parts: dict[str, Tensor] = {}
        for part in self.tensors:
            there = [entry[part] for entry in entries if isinstance(entry.get(part), Tensor)]
            if there:
                zero = torch.zeros_like(there[0])
                parts[part] = stack_tensors(
                    [entry[part] if isinstance(entry.get(part), Tensor) else zero for entry in entries]
                )
        if parts or any("step" in entry for entry in entries):
            self.state[name] = parts
        self.steps[name] = [float(entry["step"]) if "step" in entry else 0.0 for entry in entries]

    def attach(self, name: str) -> None:
        """Give each run's optimizer its row of a parameter's state."""
        for row, run in enumerate(self.stack.runs):
            parameter = self.owned[row][name]
            group = next(g for g in run.optimizer.param_groups if any(one is parameter for one in g["params"]))
            entry = run.optimizer.state[parameter]
            for part, stacked in self.state[name].items():
                if self.holds(part, group):
                    entry[part] = stacked[row]

    def holds(self, part: str, group: Mapping[str, Any]) -> bool:
        """Return whether torch's optimizer has this part of the state with these settings."""
        return True

    def write_steps(self, row: int, counted_as: int | None = None) -> None:
        """Write the counts of steps into a run's optimizer, before somebody looks at it."""
        if not self.counts:
            return
        run, place = self.stack.runs[row], row if counted_as is None else counted_as
        for name, parameter in get_tensors(run)[0].items():
            if name in self.state:
                run.optimizer.state[parameter]["step"] = torch.tensor(self.steps[name][place], dtype=torch.float32)

    counts = True  # whether torch's optimizer keeps the number of its steps

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient, each job's with its settings."""
        parameters = self.stack.parameters
        for number, owned in enumerate(self.groups):
            groups = [run.optimizer.param_groups[number] for run in self.alike.leaders]
            names = [name for name in owned if parameters[name].grad is not None]
            if self.counts:
                for name in names:
                    self.steps[name] = [count + 1 for count in self.steps[name]]
            if len(groups) <= MOST_FUSED and self.can_be_fused(names):
                sizes = [stop - start for start, stop in self.alike.spans]
                parts = [grad.split(sizes) for name in names if (grad := parameters[name].grad) is not None]
                for (start, stop), group, *grads in zip(self.alike.spans, groups, *parts, strict=True):
                    self.update_fused(names, slice(start, stop), grads, group)
                continue
            settings = self.settings[number]
            settings.begin(self.alike.spread(groups))
            for name in names:
                settings.parameter, grad = parameters[name], parameters[name].grad
                assert grad is not None
                self.update(name, settings.parameter, grad, settings, self.steps[name])

    def can_be_fused(self, names: Sequence[str]) -> bool:
        """Return whether one kernel of torch may update these parameters of several jobs: on a CPU, in fp32.

        It goes over memory from end to end, so parameter, gradient and state must lie in one way.
        """
        return False

    def update_fused(self, names: Sequence[str], rows: slice, grads: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update parameters of the jobs in `rows`, which have these gradients and settings."""
        raise NotImplementedError

    def lie_alike(self, names: Sequence[str], *parts: str) -> bool:
        """Return whether parameters, gradients, and these parts of the state lie in one way."""
        key = (*names, *parts)
        layouts = self._layouts.get(key)
        if layouts is None:  # where a part is not there yet, it is looked at again
            layouts = [self._find_layout(name, parts) for name in names]
            if None in layouts:
                return False
            self._layouts[key] = layouts
        grads = (self.stack.parameters[name].grad for name in names)
        return all(grad is not None and grad.stride() == layout for grad, layout in zip(grads, layouts, strict=True))

    def _find_layout(self, name: str, parts: Sequence[str]) -> tuple[int, ...] | None:
        """Return how a parameter in fp32 on the CPU and these parts of its state lie; None where they differ."""
        parameter, state = self.stack.parameters[name], self.state.get(name, {})
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            return None
        layout = parameter.stride()
        return layout if all(part in state and state[part].stride() == layout for part in parts) else None

    def select(self, part: str, names: Sequence[str], rows: slice) -> list[Tensor]:
        """Return rows of the parameters (`""`), or of a part of their state."""
        key = part, tuple(names), rows.start
        found = self._rows.get(key)
        if found is None:
            whole = [self.state[name][part] if part else self.stack.parameters[name] for name in names]
            found = self._rows[key] = [tensor[rows] for tensor in whole]
        return found

    def update(
        self, name: str, parameter: Tensor, grad: Tensor, settings: "GroupSettings", steps: Sequence[float]
    ) -> None:
        """Update one parameter [jobs, ...] in place."""
        raise NotImplementedError

    def ensure(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the state of a parameter, made and given to the runs where it is not there yet."""
        if name not in self.state:
            self.state[name] = make()
            self.attach(name)
        return self.state[name]

    def decay(self, parameter: Tensor, grad: Tensor, settings: "GroupSettings") -> Tensor:
        """Return the gradient that is descended: its sign by `maximize`, the weight decay of L2 added."""
        if settings.is_plain("maximize", "weight_decay"):
            return grad
        sign = settings.numbers("sign", lambda group: -1.0 if group["maximize"] else 1.0)
        if isinstance(sign, Tensor) or sign != 1.0:
            grad = grad * sign
        rate = settings.numbers("weight_decay", lambda group: group["weight_decay"])
        if isinstance(rate, Tensor):
            return torch.addcmul(grad, parameter, rate)
        return grad.add(parameter, alpha=rate) if rate else grad


class GroupSettings:
    """Settings of one param group in every job, as numbers that broadcast over a parameter.

    Each is read once a step, and made into a tensor only where it has changed since the last step.

    Attributes:
        groups: of this step, one a job.
        parameter: over which the numbers broadcast.
    """

    parameter: Tensor

    def __init__(self) -> None:
        self.groups: Sequence[Mapping[str, Any]] = []
        self._plain: dict[tuple[str, ...], bool] = {}  # of this step
        self._read: dict[Any, list[float]] = {}  # of this step
        self._made: dict[Any, tuple[list[float], Number]] = {}

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Begin a step."""
        self.groups = groups
        self._read.clear()
        self._plain.clear()

    def is_plain(self, *names: str) -> bool:
        """Return whether these settings are zero or false in every job."""
        plain = self._plain.get(names)
        if plain is None:
            plain = self._plain[names] = not any(group[name] for group in self.groups for name in names)
        return plain

    def numbers(self, name: Any, read: Callable[[Mapping[str, Any]], float]) -> Number:
        """Return one number or [jobs, 1, ...] of what `read` gives of a group."""
        values = self._read.get(name)
        if values is None:
            values = self._read[name] = [float(read(group)) for group in self.groups]
        return self._make(name, values)

    def by_step(self, name: Any, steps: Sequence[float], read: Callable[[Mapping[str, Any], float], float]) -> Number:
        """Return one number or [jobs, 1, ...] of a group and the number of the step."""
        key = (name, tuple(steps))
        values = self._read.get(key)
        if values is None:
            values = [float(read(group, step)) for group, step in zip(self.groups, steps, strict=True)]
            self._read[key] = values
        return self._make(name, values)

    def _make(self, name: Any, values: list[float]) -> Number:
        key = (name, self.parameter.dim(), self.parameter.dtype)
        made = self._made.get(key)
        if made is None or made[0] != values:
            made = self._made[key] = values, make_numbers(values, self.parameter)
        return made[1]


def add_scaled(target: Tensor, scale: Number, value: Tensor) -> None:
    """Add `scale * value` in place."""
    if isinstance(scale, Tensor):
        target.addcmul_(value, scale)
    else:
        target.add_(value, alpha=scale)


class StackedSGD(StackedOptimizer):
    """SGD as `torch.optim.SGD` computes it: momentum, dampening, Nesterov, weight decay, maximize."""

    tensors = ("momentum_buffer",)
    counts = False

    def can_be_fused(self, names: Sequence[str]) -> bool:
        moves = any(group["momentum"] for run in self.alike.leaders for group in run.optimizer.param_groups)
        return self.lie_alike(names, *(["momentum_buffer"] if moves else []))

    def update_fused(self, names: Sequence[str], rows: slice, grads: list[Tensor], group: Mapping[str, Any]) -> None:
        torch._fused_sgd_(
            self.select("", names, rows),
            grads,
            self.select("momentum_buffer", names, rows) if group["momentum"] else [],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=float(group["lr"]),
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )

    def holds(self, part: str, group: Mapping[str, Any]) -> bool:
        return bool(group["momentum"])

    def update(
        self, name: str, parameter: Tensor, grad: Tensor, settings: GroupSettings, steps: Sequence[float]
    ) -> None:
        grad = self.decay(parameter, grad, settings)
        rate = settings.numbers("rate", lambda group: -float(group["lr"]))
        if settings.is_plain("momentum"):
            add_scaled(parameter, rate, grad)
            return
        momentum = settings.numbers("momentum", lambda group: group["momentum"])
        if name not in self.state:
            buffer = self.ensure(name, lambda: {"momentum_buffer": grad.clone()})["momentum_buffer"]
        else:
            # Without momentum torch takes the gradient itself, whatever the dampening.
            share = settings.numbers("share", lambda group: 1 - group["dampening"] if group["momentum"] else 1.0)
            buffer = self.state[name]["momentum_buffer"]
            add_scaled(buffer.mul_(momentum), share, grad)
        if settings.is_plain("nesterov"):
            add_scaled(parameter, rate, buffer)
            return
        ahead = settings.numbers("nesterov", lambda group: 1.0 if group["nesterov"] else 0.0)
        if isinstance(ahead, Tensor):
            grad = torch.where(ahead.bool(), grad + momentum * buffer, buffer)
        elif ahead:
            grad = grad + momentum * buffer
        else:
            grad = buffer
        add_scaled(parameter, rate, grad)


class StackedAdam(StackedOptimizer):
    """Adam and AdamW as `torch.optim` computes them."""

    flags = ("amsgrad", "decoupled_weight_decay")
    tensors = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def can_be_fused(self, names: Sequence[str]) -> bool:
        amsgrad = self.stack.runs[0].optimizer.param_groups[0]["amsgrad"]
        counted = [self.steps[name][start:stop] for name in names for start, stop in self.alike.spans]
        parts = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
        return self.lie_alike(names, *parts) and all(len(set(steps)) == 1 for steps in counted)

    def update_fused(self, names: Sequence[str], rows: slice, grads: list[Tensor], group: Mapping[str, Any]) -> None:
        decoupled = group.get("decoupled_weight_decay")
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            self.select("", names, rows),
            grads,
            self.select("exp_avg", names, rows),
            self.select("exp_avg_sq", names, rows),
            self.select("max_exp_avg_sq", names, rows) if group["amsgrad"] else [],
            [torch.tensor(self.steps[name][rows.start]) for name in names],
            lr=float(group["lr"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )

    def update(
        self, name: str, parameter: Tensor, grad: Tensor, settings: GroupSettings, steps: Sequence[float]
    ) -> None:
        first = settings.groups[0]
        if first.get("decoupled_weight_decay"):
            sign = settings.numbers("sign", lambda group: -1.0 if group["maximize"] else 1.0)
            if isinstance(sign, Tensor) or sign != 1.0:
                grad = grad * sign
            parameter.mul_(settings.numbers("keep", lambda group: 1 - float(group["lr"]) * group["weight_decay"]))
        else:
            grad = self.decay(parameter, grad, settings)
        parts = self.ensure(name, lambda: self._make_state(parameter, amsgrad=first["amsgrad"]))
        mean, square = parts["exp_avg"], parts["exp_avg_sq"]
        weight = settings.numbers("1 - beta1", lambda group: 1 - group["betas"][0])
        if isinstance(weight, Tensor):
            mean.lerp_(grad, weight.expand_as(mean))
        else:
            mean.lerp_(grad, weight)
        square.mul_(settings.numbers("beta2", lambda group: group["betas"][1]))
        share = settings.numbers("1 - beta2", lambda group: 1 - group["betas"][1])
        if isinstance(share, Tensor):
            square.add_(grad * grad * share)
        else:
            square.addcmul_(grad, grad, value=share)
        if first["amsgrad"]:
            square = torch.maximum(parts["max_exp_avg_sq"], square, out=parts["max_exp_avg_sq"])
        root = settings.by_step("root", steps, lambda group, step: (1 - group["betas"][1] ** step) ** 0.5)
        rate = settings.by_step(
            "step", steps, lambda group, step: -float(group["lr"]) / (1 - group["betas"][0] ** step)
        )
        divisor = square.sqrt().div_(root).add_(settings.numbers("eps", lambda group: group["eps"]))
        if isinstance(rate, Tensor):
            parameter.add_(mean / divisor * rate)
        else:
            parameter.addcdiv_(mean, divisor, value=rate)

    @staticmethod
    def _make_state(parameter: Tensor, *, amsgrad: bool) -> dict[str, Tensor]:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
        return {name: torch.zeros_like(parameter, requires_grad=False) for name in names}


class StackedRMSprop(StackedOptimizer):
    """RMSprop as `torch.optim.RMSprop` computes it."""

    flags = ("centered",)
    tensors = ("square_avg", "momentum_buffer", "grad_avg")

    def holds(self, part: str, group: Mapping[str, Any]) -> bool:
        return bool(group["momentum"]) if part == "momentum_buffer" else True

    def update(
        self, name: str, parameter: Tensor, grad: Tensor, settings: GroupSettings, steps: Sequence[float]
    ) -> None:
        first = settings.groups[0]
        moves = any(group["momentum"] for group in settings.groups)
        grad = self.decay(parameter, grad, settings)
        parts = self.ensure(name, lambda: self._make_state(parameter, centered=first["centered"], moves=moves))
        square = parts["square_avg"].mul_(settings.numbers("alpha", lambda group: group["alpha"]))
        share = settings.numbers("1 - alpha", lambda group: 1 - group["alpha"])
        if isinstance(share, Tensor):
            square.add_(grad * grad * share)
        else:
            square.addcmul_(grad, grad, value=share)
        if first["centered"]:
            mean = parts["grad_avg"]
            mean.lerp_(grad, share.expand_as(mean) if isinstance(share, Tensor) else share)
            root = square.addcmul(mean, mean, value=-1).sqrt_()
        else:
            root = square.sqrt()
        root.add_(settings.numbers("eps", lambda group: group["eps"]))
        rate = settings.numbers("rate", lambda group: -float(group["lr"]))
        if not moves:
            parameter.add_(grad / root * rate)
            return
        buffer = parts["momentum_buffer"]
        buffer.mul_(settings.numbers("momentum", lambda group: group["momentum"])).addcdiv_(grad, root)
        add_scaled(parameter, rate, buffer)

    @staticmethod
    def _make_state(parameter: Tensor, *, centered: bool, moves: bool) -> dict[str, Tensor]:
        names = ["square_avg", *(["momentum_buffer"] if moves else []), *(["grad_avg"] if centered else [])]
        return {name: torch.zeros_like(parameter, requires_grad=False) for name in names}


KINDS: dict[type[torch.optim.Optimizer], type[StackedOptimizer]] = {
    torch.optim.SGD: StackedSGD,
    torch.optim.Adam: StackedAdam,
    torch.optim.AdamW: StackedAdam,
    torch.optim.RMSprop: StackedRMSprop,
}


def make_stacked_optimizer(stack: Stack, alike: AlikeJobs) -> StackedOptimizer:
    """Make the optimizer of a stack, of the kind that its runs have."""
    return KINDS[type(stack.runs[0].optimizer)](stack, alike)


class StackedClipping:
    """Clipping of each job's gradients by its own `train.clip_value` and `train.clip_norm`."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    @torch.no_grad()
    def __call__(self) -> None:
        """Clip in place."""
        grads = [parameter.grad for parameter in self.stack.parameters.values() if parameter.grad is not None]
        settings = [run.config["train"] for run in self.stack.runs]
        if any(one["clip_value"] is not None for one in settings):
            bounds = [float("inf") if one["clip_value"] is None else one["clip_value"] for one in settings]
            for grad in grads:
                most = torch.tensor(bounds, dtype=grad.dtype, device=grad.device).view(-1, *[1] * (grad.dim() - 1))
                torch.clamp(grad, -most, most, out=grad)
        if any(one["clip_norm"] is not None for one in settings) and grads:
            norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
            whole = torch.linalg.vector_norm(norms, dim=0)
            most = torch.tensor([one["clip_norm"] or 0.0 for one in settings], dtype=whole.dtype, device=whole.device)
            factor = torch.clamp(most / (whole + 1e-6), max=1.0)
            clipped = torch.tensor([one["clip_norm"] is not None for one in settings], device=whole.device)
            factor = torch.where(clipped, factor, torch.ones_like(factor))
            for grad in grads:
                grad.mul_(factor.view(-1, *[1] * (grad.dim() - 1)))
