"""Tensors of all jobs that a model takes for those of one: a step of a stack without torch.vmap.

torch.vmap takes 0.1 to 0.4 ms of Python an operator with a rule of its own, more than the kernels of 16 small layers.
Here a model is called with tensors whose shape is that of one job, and each operator of a short list is computed for
all jobs by the same rules. Whatever is not on the list is an error, never a guess: torch.vmap maps such a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.train.vectorized.per_job import PerJobNumber, PerJobNumberError


class NoRuleError(RuntimeError):
    """Failure to compute an operator for all jobs: it has no rule here."""


@dataclass(frozen=True)
class DirectCall:
    """Call of a rule by `apply_rule`, not by torch.vmap."""

    batch_size: int  # jobs; torch's name for them


class Answers(Protocol):
    """Rules of layers, see `vmap_rules.StackRules`."""

    generators: Sequence[torch.Generator]

    def answer(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Apply the rule of a layer."""

    def has_rule(self, func: Any) -> bool:
        """Return whether a layer has a rule."""


class JobsTensor(Tensor):
    """Tensor of one job to whoever looks at it, and a stack of those of all jobs to the rules.

    Attributes:
        stacked: with a dimension for the jobs.
        place: of that dimension.
        rules: of layers.
    """

    stacked: Tensor
    place: int
    rules: Answers
    busy = False  # while a rule is applied, which works on stacked tensors alone

    @staticmethod
    def __new__(cls: type[Self], stacked: Tensor, place: int, rules: Answers) -> Self:
        shape = stacked.shape[:place] + stacked.shape[place + 1 :]
        made: Self = Tensor._make_wrapper_subclass(  # noqa: SLF001
            cls, shape, dtype=stacked.dtype, device=stacked.device
        )
        made.stacked, made.place, made.rules = stacked, place, rules
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute an operator for all jobs."""
        if func in OF_ONE_JOB:
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  there is no public way
                return func(*args, **(kwargs or {}))
        if JobsTensor.busy:
            message = f"{getattr(func, '__name__', func)} within a rule"
            raise NoRuleError(message)
        JobsTensor.busy = True
        try:
            rule = RULES.get(func)
            if rule is not None:
                if any(isinstance(value, PerJobNumber) for value in (*args, *(kwargs or {}).values())):
                    message = (
                        f"a number that differs among the jobs is an argument of {getattr(func, '__name__', func)}"
                    )
                    raise PerJobNumberError(message)
                return rule(func, *args, **(kwargs or {}))
            rules = next(value.rules for value in (*args, *(kwargs or {}).values()) if isinstance(value, JobsTensor))
            if not rules.has_rule(func):
                message = f"{getattr(func, '__name__', func)} has no rule"
                raise NoRuleError(message)
            return rules.answer(func, args, dict(kwargs or {}))
        finally:
            JobsTensor.busy = False

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuse what reaches the kernels without a rule."""
        message = f"{func} has no rule"
        raise NoRuleError(message)

    def like(self, stacked: Tensor, place: int) -> "JobsTensor":
        """Return another tensor of the same jobs."""
        return JobsTensor(stacked, place, self.rules)

    def get_in_front(self) -> Tensor:
        """Return the stacked tensor [jobs, ...]."""
        return self.stacked.movedim(self.place, 0) if self.place else self.stacked


def apply_rule(rule: Any, *args: Any) -> Any:
    """Apply an `autograd.Function` whose `vmap` computes all jobs: at once, or where torch.vmap says so."""
    first = next((value for value in args if isinstance(value, JobsTensor)), None)
    if first is None:
        return rule.apply(*args)
    places = tuple(value.place if isinstance(value, JobsTensor) else None for value in args)
    stacked = (value.stacked if isinstance(value, JobsTensor) else value for value in args)
    info = DirectCall(len(first.rules.generators))
    return first.like(*rule.vmap(info, places, *stacked))


# ---- rules


def _compute_each(func: Any, x: JobsTensor, *args: Any, **named: Any) -> JobsTensor:
    """Compute a function of single numbers."""
    if any(isinstance(value, Tensor) for value in (*args, *named.values())):
        message = f"{func.__name__} of several tensors"
        raise NoRuleError(message)
    return x.like(func(x.stacked, *args, **named), x.place)


def _combine(func: Any, one: Any, other: Any, **named: Any) -> JobsTensor:
    """Add, multiply and so on: two tensors of the jobs, or one and a number or a tensor of nobody."""
    first: JobsTensor = one if isinstance(one, JobsTensor) else other
    if any(isinstance(value, Tensor) for value in named.values()):
        message = f"{func.__name__} of several tensors"
        raise NoRuleError(message)
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        one, other = (value.stacked if isinstance(value, JobsTensor) else value for value in (one, other))
        return first.like(func(one, other, **named), first.place)
    if (
        isinstance(one, JobsTensor)
        and isinstance(other, JobsTensor)
        and one.place == other.place
        and one.dim() == other.dim()
    ):
        return first.like(func(one.stacked, other.stacked, **named), first.place)
    dims = max(one.dim(), other.dim())
    return first.like(func(_spread(one, dims), _spread(other, dims), **named), 0)


def _spread(value: Tensor, dims: int) -> Tensor:
    """Return [jobs, ...] with as many further dimensions; a tensor of nobody broadcasts as it is."""
    if not isinstance(value, JobsTensor):
        return value
    front = value.get_in_front()
    return front.reshape(len(front), *[1] * (dims - value.dim()), *front.shape[1:])


def _change(func: Any, x: JobsTensor, *args: Any) -> JobsTensor:
    """Change a tensor in place by numbers."""
    if any(isinstance(value, Tensor) for value in args):
        message = f"{func.__name__} with a tensor"
        raise NoRuleError(message)
    func(x.stacked, *args)
    return x


def _flatten(func: Any, x: JobsTensor, start_dim: int = 0, end_dim: int = -1) -> JobsTensor:
    dims = x.dim()
    if not dims:
        message = "flatten of a number"
        raise NoRuleError(message)
    return x.like(func(x.get_in_front(), start_dim % dims + 1, end_dim % dims + 1), 0)


def _reshape(_func: Any, x: JobsTensor, *shape: Any) -> JobsTensor:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if not all(isinstance(size, int) for size in sizes):
        message = "a view as another dtype"
        raise NoRuleError(message)
    front = x.get_in_front()
    return x.like(front.reshape(len(front), *sizes), 0)


def _reduce(func: Any, x: JobsTensor, dim: Any = None, keepdim: bool = False) -> JobsTensor:
    front = x.get_in_front()
    if dim is None:
        return x.like(func(front.reshape(len(front), -1), 1), 0)
    places = [dim] if isinstance(dim, int) else [*dim]
    if not x.dim() or not places:
        message = f"{func.__name__} over {dim}"
        raise NoRuleError(message)
    return x.like(func(front, [place % x.dim() + 1 for place in places], keepdim), 0)


def _detach(func: Any, x: JobsTensor) -> JobsTensor:
    return x.like(func(x.stacked), x.place)


OF_ONE_JOB = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda")),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
        *(Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel),
    }
)
OF_NUMBERS = (
    *("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "square", "abs", "neg", "clamp", "erf", "sin", "cos"),
    *("softplus", "silu", "gelu", "elu", "leaky_relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "mish"),
    *("selu", "celu", "logsigmoid", "softsign", "tanhshrink"),
)
OF_TWO = (
    *("add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__"),
    *("__mul__", "__rmul__", "__truediv__", "__rtruediv__"),
)


def _find(names: Sequence[str], *owners: Any) -> list[Any]:
    return [getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)]


RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_find(OF_NUMBERS, Tensor, torch, F), _compute_each),
    **dict.fromkeys(_find(["__neg__", "__pow__", "pow", "float", "contiguous"], Tensor), _compute_each),
    **dict.fromkeys(_find(OF_TWO, Tensor, torch), _combine),
    **dict.fromkeys(_find(["add_", "sub_", "mul_", "div_", "zero_", "__iadd__", "__isub__"], Tensor), _change),
    **dict.fromkeys([Tensor.flatten, torch.flatten], _flatten),
    **dict.fromkeys([Tensor.reshape, Tensor.view, torch.reshape], _reshape),
    **dict.fromkeys(_find(["mean", "sum"], Tensor, torch), _reduce),
    Tensor.detach: _detach,
}


# ---- batches and step outputs


def wrap_batch(batch: Any, dims: Any, rules: Answers) -> Any:
    """Wrap the tensors of a batch that have a dimension for the jobs."""
    if isinstance(batch, Tensor):
        return batch if dims is None else JobsTensor(batch, dims, rules)
    if isinstance(batch, Mapping):
        return {name: wrap_batch(value, dims[name], rules) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        members = [wrap_batch(value, dim, rules) for value, dim in zip(batch, dims, strict=True)]
        return type(batch)(*members) if hasattr(batch, "_fields") else type(batch)(members)
    return batch


def unwrap_rows(value: Tensor, jobs: int) -> Tensor:
    """Return [jobs, ...] of a step output; one that is nobody's is everybody's."""
    return value.get_in_front() if isinstance(value, JobsTensor) else value.expand(jobs, *value.shape).clone()
