"""Initialisation by ordered rules for modules and tensors, or by one function for `model.apply`."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.core import rng
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.patterns import compile_pattern, diagnose_no_match, find_nearest

Value = float | Callable[[Tensor], object]  # a number fills; a function changes its tensor in place


@dataclass(frozen=True)
class Rule:
    """Initialisation of tensors in modules of the type `module` (or a subclass) whose name matches `name`."""

    label: str  # its key below `init.rules`
    module: type[nn.Module] | tuple[type[nn.Module], ...] | None
    name: str | None  # matched with `re.fullmatch` against the module's qualified name; the root's is empty
    tensors: Mapping[str, Value]  # by the tensor's name in its module: weight, bias, running_mean, in_proj_weight
    optional: bool = False  # whether it may match nothing
    last: bool = False  # of the chosen modules that share a parent, only the last one (the norm that ends a block)


@dataclass(frozen=True)
class InitRow:
    """Planned initialisation of one parameter or buffer; `rule` is None for a tensor left unchanged."""

    tensor: str  # its qualified name, the first of them where it is tied
    rule: str | None = None
    key: str = ""  # `init.rules.<label>.<tensor>`
    value: Value | None = None

    def __str__(self) -> str:
        return "left as it is" if self.value is None else spell(self.value)


@dataclass
class _NamedTensor:
    """One tensor of the model, its first name and its row."""

    name: str
    tensor: Tensor
    row: InitRow | None = None


@dataclass
class _TensorIndex:
    """Index of a model: modules by all their names, and tensors, each once."""

    root: nn.Module
    names: dict[nn.Module, list[str]] = field(default_factory=dict)
    slots: dict[int, _NamedTensor] = field(default_factory=dict)  # by the tensor's identity: tied ones share a slot

    def __post_init__(self) -> None:
        for name, module in self.root.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        for module, names in self.names.items():
            for local, tensor in iterate_own_tensors(module):
                self.slots.setdefault(id(tensor), _NamedTensor(f"{names[0]}.{local}".lstrip("."), tensor))


def iterate_own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the module's own parameters and buffers (persistent or not) with their local names."""
    for registered in (module._parameters, module._buffers):  # noqa: SLF001  public iterators would drop tied names
        for name, tensor in registered.items():
            if tensor is not None:
                yield name, tensor


def spell(value: object) -> str:
    """Format a value as a reader would write it: `0.01`, `kaiming_normal_(mode='fan_out')`."""
    if isinstance(value, functools.partial):
        arguments = [repr(argument) for argument in value.args]
        arguments += [f"{name}={argument!r}" for name, argument in value.keywords.items()]
        return f"{spell(value.func)}({', '.join(arguments)})"
    return getattr(value, "__name__", repr(value))


def plan_rules(model: nn.Module, rules: Sequence[Rule]) -> list[InitRow]:
    """Match the rules with a model, on the meta device too; no tensor changes.

    Returns:
        One row for each parameter and buffer, in the model's order; for each the first rule that names it counts.

    Raises:
        ConfigError: a rule, or a tensor that it names, matches nothing, is shadowed by earlier rules (neither where the
            rule is optional), or cannot take its value.
    """
    known = _TensorIndex(model)
    mistakes = [mistake for rule in rules for mistake in _match(known, rule)]
    if mistakes:
        raise ConfigError(mistakes)
    return [slot.row or InitRow(slot.name) for slot in known.slots.values()]


def apply_rules(model: nn.Module, rules: Sequence[Rule], seed: int) -> list[InitRow]:
    """Initialise through `model.apply`; unmatched tensors stay unchanged, a tied tensor is filled once.

    Each tensor draws from its own stream `(seed, 'init', name)`: its numbers do not depend on other tensors or rules.

    Returns:
        The rows of `plan_rules`.

    Raises:
        ConfigError: as `plan_rules`; the model is untouched then.
        RunError: a function refuses a tensor or gives a new one instead of changing it.
    """
    rows = plan_rules(model, rules)
    by_name = {row.tensor: row for row in rows if row.rule is not None}
    names = {slot_id: slot.name for slot_id, slot in _TensorIndex(model).slots.items()}

    def visit(module: nn.Module) -> None:
        for _, tensor in iterate_own_tensors(module):
            row = by_name.pop(names[id(tensor)], None)
            if row is not None:
                _fill(row, tensor, seed)

    model.apply(visit)
    return rows


def apply_function(model: nn.Module, function: Callable[[nn.Module], object], seed: int) -> list[str]:
    """Pass `function` to `model.apply`; each module has the stream `(seed, 'init', module name)`.

    Returns:
        The names of the tensors that it changed.

    Raises:
        ConfigError: it changed none.
    """
    names = {module: name for name, module in model.named_modules()}
    before = {slot.name: slot.tensor.detach().clone() for slot in _TensorIndex(model).slots.values()}

    def visit(module: nn.Module) -> None:
        with torch.no_grad(), rng.stream(rng.derive_key(seed, "init", names[module])):
            function(module)

    model.apply(visit)
    after = {slot.name: slot.tensor for slot in _TensorIndex(model).slots.values()}
    changed = [name for name, tensor in after.items() if name not in before or not _is_equal(before[name], tensor)]
    if not changed:
        raise ConfigError(
            [Mistake("init.apply", "must change a tensor of the model", spell(function), kind="no-effect")]
        )
    return changed


def _is_equal(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    inexact = before.is_floating_point() or before.is_complex()  # NaN, as memory may hold it, is the same as NaN
    return torch.allclose(before, after, 0, 0, equal_nan=True) if inexact else torch.equal(before, after)


def _fill(row: InitRow, tensor: Tensor, seed: int) -> None:
    assert row.value is not None
    if not callable(row.value):
        with torch.no_grad():
            tensor.fill_(row.value)
        return
    shape, problem = tensor.shape, None
    with torch.no_grad(), rng.stream(rng.derive_key(seed, "init", row.tensor)):
        try:
            result = row.value(tensor)
        except Exception as error:  # a user's function may raise anything
            message = f"{row.key}: {row} refuses {row.tensor} {list(shape)}: {type(error).__name__}: {error}"
            raise RunError(message) from error
    if isinstance(result, Tensor) and result.data_ptr() != tensor.data_ptr():
        problem = "gives a new tensor: an init function changes the one it gets, in place"
    elif tensor.shape != shape:
        problem = f"changes the shape to {list(tensor.shape)}"
    if problem:
        raise RunError(f"{row.key}: {row} on {row.tensor} {list(shape)} {problem}")


def _match(known: _TensorIndex, rule: Rule) -> list[Mistake]:
    """Assign a rule's tensors to it; return the rule's mistakes."""
    key = f"init.rules.{rule.label}"
    if not rule.tensors:
        return [Mistake(key, "must say what happens to a tensor", remedy="for example `weight: 0`", kind="missing")]
    mistakes: list[Mistake] = []
    expression = None if rule.name is None else compile_pattern(f"{key}.name", rule.name, mistakes)
    if mistakes:
        return mistakes
    modules = _choose(known, rule, expression)
    if not modules:
        return [] if rule.optional else [_diagnose_no_module(known, rule, key)]
    for local, value in rule.tensors.items():
        entry = f"{key}.{local}"
        slots = [
            known.slots[id(tensor)]
            for module in modules
            for name, tensor in iterate_own_tensors(module)
            if name == local
        ]
        won = [slot for slot in slots if slot.row is None]
        for slot in won:
            slot.row = InitRow(slot.name, rule.label, entry, value)
        if won:
            mistakes += _check_value(entry, value, won)
        elif slots and not rule.optional:
            first = ", ".join(dict.fromkeys(f"`{slot.row.rule}`" for slot in slots if slot.row))
            remedy = f"move `{rule.label}` before {first}, or leave it out"
            mistakes.append(
                Mistake(
                    entry,
                    f"must have an effect, but {first} comes first for every tensor",
                    remedy=remedy,
                    kind="no-effect",
                )
            )
        elif not rule.optional:
            mistakes.append(_diagnose_no_tensor(modules, entry, local, known))
    return mistakes


def _choose(known: _TensorIndex, rule: Rule, expression: re.Pattern[str] | None) -> list[nn.Module]:
    chosen: dict[nn.Module, str] = {}
    for module, names in known.names.items():
        if rule.module is None or isinstance(module, rule.module):
            fitting = [name for name in names if expression is None or expression.fullmatch(name)]
            if fitting:
                chosen[module] = fitting[0]
    if rule.last:
        # In the model's order, so that a later module of a parent replaces an earlier one.
        return list({name.rpartition(".")[0]: module for module, name in chosen.items()}.values())
    return list(chosen)


def _diagnose_no_module(known: _TensorIndex, rule: Rule, key: str) -> Mistake:
    types = rule.module if isinstance(rule.module, tuple) else () if rule.module is None else (rule.module,)
    of_type = [module for module in known.names if not types or isinstance(module, types)]
    if rule.name is None or not of_type:
        present = sorted({type(module).__name__ for module in known.names if not list(module.children())})
        wanted = " or ".join(kind.__name__ for kind in types)
        rule_text = f"must match a module, but the model has no {wanted}"
        return Mistake(
            f"{key}.module",
            rule_text,
            remedy=f"the model has {', '.join(present)}; or `optional: true`",
            kind="no-match",
        )
    names = [name for module in of_type for name in known.names[module] if name]
    tensors = [slot.name for slot in known.slots.values() if re.fullmatch(rule.name, slot.name)]
    if tensors:
        owner, _, local = tensors[0].rpartition(".")
        remedy = f"`{tensors[0]}` is a tensor: write `name: {re.escape(owner)!r}` and `{local}: …`"
        return Mistake(f"{key}.name", "must match the name of a module", rule.name, remedy=remedy, kind="no-match")
    return diagnose_no_match(f"{key}.name", rule.name, names, "the name of a module")


def _diagnose_no_tensor(modules: Sequence[nn.Module], entry: str, local: str, known: _TensorIndex) -> Mistake:
    kinds = ", ".join(sorted({type(module).__name__ for module in modules}))
    absent = any(local in module._parameters or local in module._buffers for module in modules)  # noqa: SLF001
    if absent:
        remedy = f"built without it (as with `{local}=False`); take it out, or `optional: true`"
        return Mistake(
            entry,
            f"must name a tensor, but it is None in every {kinds} that the rule matches",
            remedy=remedy,
            kind="no-match",
        )
    names = sorted({name for module in modules for name, _ in iterate_own_tensors(module)})
    near = find_nearest(local, names)
    if not names:
        remedy = f"`{known.names[modules[0]][0]}` holds no tensor of its own, its children do"
    else:
        remedy = f"did you mean `{near}`?" if near else f"they have {', '.join(names)}; or `optional: true`"
    return Mistake(
        entry,
        f"must name a tensor of the modules that the rule matches ({kinds})",
        remedy=remedy,
        suggestion=near,
        kind="no-match",
    )


def _check_value(entry: str, value: Value, slots: Sequence[_NamedTensor]) -> list[Mistake]:
    """Check by shape and dtype whether tensors can take a value; report the first one that cannot."""
    problems = [(slot, problem) for slot in slots if (problem := _find_problem(value, slot.tensor))]
    if not problems:
        return []
    slot, problem = problems[0]
    others = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    shape = "" if is_lazy(slot.tensor) else f" {list(slot.tensor.shape)}"
    return [Mistake(entry, f"cannot be done to {slot.name}{shape}{others}: {problem}", spell(value), kind="refused")]


def _find_problem(value: Value, tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "it has no shape before the first forward"
    if not callable(value):
        whole = tensor.is_floating_point() or tensor.is_complex() or float(value).is_integer()
        return "" if whole else f"{tensor.dtype} holds whole numbers"
    inner = value.func if isinstance(value, functools.partial) else value
    if getattr(inner, "__module__", None) != "torch.nn.init" or not tensor.numel():
        return ""  # a user's function is not called before its time
    # A thin tensor of the same rank: torch.nn.init asks for no more, and its first call on meta imports for seconds.
    thin = torch.empty([tensor.shape[0], *[1] * (tensor.dim() - 1)] if tensor.dim() else [])
    try:
        with torch.no_grad(), rng.fork_rng():
            value(thin)
    except ValueError as error:  # what torch.nn.init raises about shapes
        return str(error)
    except Exception:  # noqa: BLE001  the live tensor will show it
        return ""
    return ""
