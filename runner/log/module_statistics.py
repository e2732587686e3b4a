"""Statistics of one training step: gradient norms, histograms, activations and gradients by module.

Hooks are there for that step only, so that no other step has anything more to do. Nothing waits for the device before
`close`, but histograms, which read the range of each tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.core import rng
from runner.core.errors import ConfigError, Mistake, RunError, describe_error
from runner.core.patterns import compile_pattern, diagnose_no_match
from runner.core.trees import iterate_tensors
from runner.log import summaries

BINS = 64


STATISTICS = ("mean", "std", "abs_max", "zeros")


@dataclass(frozen=True)
class UserHook:
    """User's hook function; a run logs its result: a number, a tensor's mean, or several by name.

    It looks, and changes nothing: it gets detached tensors, draws from generators of its own, and what it returns does
    not take the place of an output.
    """

    label: str  # its key below `log.hooks`
    call: Callable[..., Any]  # `call(module, inputs, output)` or `call(module, gradient)`

    def values(self, name: str, module: nn.Module, *given: Any) -> Iterator[tuple[str, Tensor | float]]:
        """Yield the names and values that the function returns for one call of a module.

        Raises:
            RunError: it raises, returns no number, or has changed a tensor in place.
        """
        before = collect_versions(module, given)
        try:
            with torch.no_grad(), rng.fork_rng():
                said = self.call(module, *map(detach_tensors, given))
        except Exception as error:
            raise RunError(f"log.hooks.{self.label} raised at `{name}`: {describe_error(error)}") from error
        if collect_versions(module, given) != before:
            raise RunError(f"log.hooks.{self.label} changed a tensor of `{name}` in place: a hook only looks; clone it")
        named = said.items() if isinstance(said, Mapping) else [("", said)]
        for member, value in named:
            if value is None:
                continue
            if isinstance(value, Tensor) and value.numel() and not value.is_complex():
                value = value.detach().float().mean()  # noqa: PLW2901
            elif not isinstance(value, Real):
                kind = type(value).__name__
                raise RunError(f"log.hooks.{self.label} must return numbers, or a mapping of them, but returns {kind}")
            yield (
                f"{name}/{self.label}{f'/{member}' * bool(member)}",
                value if isinstance(value, Tensor) else float(value),
            )


def detach_tensors(value: Any) -> Any:
    """Detach all tensors in a value (lists, tuples and mappings included) from the graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: detach_tensors(member) for name, member in value.items()}
    return type(value)(map(detach_tensors, value)) if type(value) in (list, tuple) else value


def collect_versions(module: nn.Module, given: Any) -> list[int]:
    """Return the in-place modification counts of the tensors of a module and of the given value."""
    return [tensor._version for tensor in (*module.parameters(), *module.buffers(), *iterate_tensors(given))]  # noqa: SLF001


@dataclass(frozen=True)
class Hook:
    """Statistics to log of the outputs (`forward`) and their gradients (`backward`) of some modules."""

    label: str  # its key below `log.hooks`
    module: tuple[type[nn.Module], ...] | None  # subclasses count
    name: str | None  # matched with `re.fullmatch` against the module's qualified name; the root's is empty
    forward: tuple[str | UserHook, ...]
    backward: tuple[str | UserHook, ...]
    optional: bool = False  # whether it may match nothing


Wanted = tuple[set[str | UserHook], set[str | UserHook]]  # statistics of outputs, of gradients


def select_statistics(model: nn.Module, hooks: Sequence[Hook]) -> dict[str, Wanted]:
    """Return the statistics to log, by name of each matched module; a meta model is sufficient.

    Raises:
        ConfigError: a hook matches nothing.
    """
    modules = dict(model.named_modules())
    found: dict[str, Wanted] = {}
    mistakes: list[Mistake] = []
    for hook in hooks:
        key = f"log.hooks.{hook.label}"
        pattern = None if hook.name is None else compile_pattern(f"{key}.name", hook.name, mistakes)
        if hook.name is not None and pattern is None:
            continue
        named = [name for name in modules if pattern is None or pattern.fullmatch(name)]
        matching = [name for name in named if hook.module is None or isinstance(modules[name], hook.module)]
        for name in matching:
            forward, backward = found.setdefault(name, (set(), set()))
            forward.update(hook.forward)
            backward.update(hook.backward)
        if not matching and not hook.optional:
            mistakes.append(_make_no_match_mistake(key, hook, named, modules))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _make_no_match_mistake(key: str, hook: Hook, named: Sequence[str], modules: Mapping[str, nn.Module]) -> Mistake:
    if hook.name is not None and not named:
        return diagnose_no_match(f"{key}.name", hook.name, [name for name in modules if name], "a module")
    kinds = sorted({type(module).__name__ for module in modules.values()})
    wanted = " or ".join(kind.__name__ for kind in hook.module or ())
    rule = f"must match a module{' of these names' * (hook.name is not None)}, and none is a {wanted}"
    return Mistake(f"{key}.module", rule, remedy=f"types are {', '.join(kinds)}", kind="no-match")


class TensorStatistics:
    """Statistics over all tensors of one step: every micro-batch and every call of a module."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.wanted = set(wanted)
        self.parts: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, tensor: Tensor) -> None:
        """Add a tensor of any shape and float dtype, without waiting for its device."""
        with torch.no_grad():
            values = tensor.detach().float()
            none = values.new_zeros(())
            spread = bool(self.wanted & {"mean", "std"})
            variance, mean = torch.var_mean(values, correction=0) if spread else (none, none)
            largest = values.abs().amax() if "abs_max" in self.wanted else none
            zeros = (values == 0).float().mean() if "zeros" in self.wanted else none
        self.parts.append((values.numel(), mean, variance, largest, zeros))

    def values(self) -> dict[str, Tensor]:
        """Return the statistics by name, as scalar tensors on the device."""
        sizes, *columns = zip(*self.parts, strict=True)
        mean, variance, largest, zeros = (torch.stack(column) for column in columns)
        shares = torch.tensor(sizes, dtype=mean.dtype, device=mean.device) / sum(sizes)
        middle = (shares * mean).sum()
        found = {
            "mean": middle,
            "std": (shares * (variance + (mean - middle).square())).sum().sqrt(),
            "abs_max": largest.amax(),
            "zeros": (shares * zeros).sum(),
        }
        return {name: found[name] for name in STATISTICS if name in self.wanted}


class ModuleStatistics:
    """Gradient norms, histograms and module statistics of the step between `open` and `close`.

    Args:
        model: whose modules and parameters are looked at.
        optimizer: whose groups have a gradient norm each.
        modules: by name, which statistics of their outputs and of the gradients of these; see `select_statistics`.
        gradient_norm: whether the norm of all gradients, and of each group's, is wanted.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, modules: Mapping[str, Wanted], *, gradient_norm: bool
    ) -> None:
        self.model, self.optimizer, self.modules, self.gradient_norm = model, optimizer, modules, gradient_norm
        self.numbers = self.histograms = False
        self.handles: list[Any] = []
        self.statistics: dict[str, TensorStatistics] = {}
        self.said: dict[str, list[Tensor | float]] = {}  # by hooks of the user's own
        self.scaler: Any = None  # of fp16's losses, whose gradients these hooks see unscaled
        self.norms: dict[str, Tensor] = {}
        self.gradients: list[Any] = []

    def open(self, *, numbers: bool, histograms: bool) -> None:
        """Prepare a step: `numbers` asks for gradient norms and the statistics of the hooks."""
        self.statistics, self.said, self.norms, self.gradients = {}, {}, {}, []
        self.numbers, self.histograms = numbers, histograms
        if numbers:
            self.hang()

    def hang(self) -> None:
        """Register the forward hooks."""
        modules = dict(self.model.named_modules())
        for name, wanted in self.modules.items():
            self.handles.append(modules[name].register_forward_hook(self._hook(name or "(model)", wanted)))

    def take_down(self) -> bool:
        """Remove the hooks; return whether there were any."""
        handles, self.handles = self.handles, []
        for handle in handles:
            handle.remove()
        return bool(handles)

    def _hook(self, name: str, wanted: Wanted) -> Callable[[nn.Module, Any, Any], None]:
        forward, backward = ({what for what in part if isinstance(what, str)} for part in wanted)
        own, own_backward = ([what for what in part if isinstance(what, UserHook)] for part in wanted)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for one in own:
                self._take(one.values(f"forward/{name}", module, args, output))
            tensor = find_float_tensor(output)
            if tensor is None:
                return
            if own_backward and tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, name, own_backward, module))
            if forward:
                self.statistics.setdefault(f"forward/{name}", TensorStatistics(forward)).add(tensor)
            if backward and tensor.requires_grad:
                gradients = self.statistics.setdefault(f"backward/{name}", TensorStatistics(backward))
                tensor.register_hook(gradients.add)  # a module's own backward hook would forbid in-place activations

        return hook

    def _gradient(self, name: str, own: Sequence[UserHook], module: nn.Module, gradient: Tensor) -> None:
        scale = 1.0 if self.scaler is None else self.scaler.scale
        for one in own:
            self._take(one.values(f"backward/{name}", module, gradient if scale == 1 else gradient / scale))

    def _take(self, values: Iterable[tuple[str, Tensor | float]]) -> None:
        for name, value in values:
            self.said.setdefault(name, []).append(value)

    def look(self, optimizer: Optimizer) -> None:
        """Compute norms and histograms of an optimizer's gradients, between its backward and its step."""
        if self.numbers and self.gradient_norm:
            names = {id(group): str(group.get("name", i)) for i, group in enumerate(self.optimizer.param_groups)}
            self.norms |= compute_gradient_norms(
                {names[id(group)]: group["params"] for group in optimizer.param_groups}
            )
        if self.histograms:
            used = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
            named = {name: p.grad for name, p in self.model.named_parameters() if id(p) in used and p.grad is not None}
            self.gradients += make_histograms("gradients", named)

    def close(self, scale: float = 1.0) -> tuple[dict[str, float], list[Any]]:
        """Return the step's numbers by name and its TensorBoard messages.

        The losses were multiplied by `scale`, and so were the gradients that the hooks saw.
        """
        self.take_down()
        seen = add_total_norm(self.norms)
        for name, statistics in self.statistics.items():
            if statistics.parts:
                seen |= {f"{name}/{what}": value for what, value in statistics.values().items()}
        numbers = torch.stack([value.float() for value in seen.values()]).tolist() if seen else []
        if scale != 1:
            scaled = [name.startswith("backward/") and not name.endswith("/zeros") for name in seen]
            numbers = [
                number / scale if is_scaled else number for number, is_scaled in zip(numbers, scaled, strict=True)
            ]
        shown = [*self.gradients]
        if self.histograms:
            shown += make_histograms("weights", dict(self.model.named_parameters()))
        own = {name: sum(map(float, values)) / len(values) for name, values in self.said.items()}
        self.statistics, self.said, self.norms, self.gradients = {}, {}, {}, []
        return dict(zip(seen, numbers, strict=True)) | own, shown


def find_float_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in a module's output (tuples, lists, mappings included)."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((tensor for member in members if (tensor := find_float_tensor(member)) is not None), None)


def compute_gradient_norms(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Compute the 2-norm of the gradients of each parameter group that has gradients."""
    gradients = {name: [p.grad for p in parameters if p.grad is not None] for name, parameters in groups.items()}
    return {
        name: gather_full_tensor(nn.utils.get_total_norm(members)) for name, members in gradients.items() if members
    }


def add_total_norm(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the total norm as `gradient_norm`, and each norm by its name if there are several."""
    if not norms:
        return {}
    total = {"gradient_norm": torch.linalg.vector_norm(torch.stack([*norms.values()]))}
    return total | ({f"gradient_norm/{name}": norm for name, norm in norms.items()} if len(norms) > 1 else {})


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over ranks; every rank must call this function."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def make_histograms(prefix: str, tensors: Mapping[str, Tensor]) -> list[Any]:
    """Make a histogram `<prefix>/<name>` of BINS equal bins per tensor, without NaNs and infinities."""
    flat = {
        name: gather_full_tensor(tensor).detach().float().flatten()
        for name, tensor in tensors.items()
        if tensor.numel()
    }
    if not flat:
        return []
    flat = {name: values[torch.isfinite(values)] for name, values in flat.items()}
    flat = {name: values for name, values in flat.items() if values.numel()}
    bounds = [torch.stack([*values.aminmax(), values.sum(), values.square().sum()]) for values in flat.values()]
    shown = []
    for (name, values), (low, high, total, squares) in zip(flat.items(), torch.stack(bounds).tolist(), strict=True):
        places = ((values - low) * (BINS / ((high - low) or 1))).long().clamp_(0, BINS - 1)
        counts = torch.bincount(places, minlength=BINS).cpu()  # unlike histc it is deterministic on a GPU
        shown.append(summaries.make_histogram(f"{prefix}/{name}", counts, low, high, total, squares))
    return shown
