"""Functions of torch without the import of `torch._dynamo`, 1.5 s, until something is compiled.

Methods of optimizers and what runs on the meta device tell the compiler not to look into them, and import it to say so.
In a process without it there is nobody to be told. Whoever imports `torch._dynamo` finds torch as torch made it.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

COMPILER = "torch._dynamo"
HIDDEN = "__dynamo_disable"  # where what `torch._disable_dynamo` makes looks for the function to be called
IN_MODULES = ("torch._refs", "torch.utils.checkpoint")

_undone_by_import: list[Callable[[], object]] = []
_seen: WeakSet[FunctionType] = WeakSet()
_looked_at: list[tuple[int, int]] = []  # how many modules and modes there were when functions were last looked for


class _CompilerImport(MetaPathFinder):
    """Finder that finds nothing, and has everything put back before the compiler is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == COMPILER:
            restore_functions()


def keep_from_dynamo() -> None:
    """Let functions of torch run without `torch._dynamo` while nobody has imported it.

    Once more after an import of modules that define modes (TorchDispatchMode).
    """
    if COMPILER in sys.modules:
        return
    if not any(isinstance(finder, _CompilerImport) for finder in sys.meta_path):  # it stays there: an import walks them
        sys.meta_path.insert(0, _CompilerImport())
    there = (len(sys.modules), len(TorchDispatchMode.__subclasses__()))
    if _looked_at[-1:] == [there]:  # nothing new: a look takes 3 ms
        return
    _looked_at[:] = [there]
    for function in _list_hidden_functions():
        setattr(function, HIDDEN, function)
        _undone_by_import.append(functools.partial(delattr, function, HIDDEN))


def keep_step_from_dynamo(optimizer: Optimizer) -> None:
    """Let the decorated steps of an optimizer's class and of its bases run without `torch._dynamo`.

    A step that somebody has bound before the compiler is imported (a scheduler binds it) stays without its marks.
    """
    if COMPILER in sys.modules:
        return
    for owner in type(optimizer).__mro__:
        before = vars(owner).get("step")
        is_hooked = getattr(before, "hooked", False)  # once an optimizer was made
        decorated: Any = getattr(before, "__wrapped__", None) if is_hooked else before
        if getattr(getattr(decorated, "__code__", None), "co_name", "") == "_use_grad":
            ours = _make_step(decorated.__wrapped__)
            _set_step(owner, ours, is_hooked=is_hooked)
            _undone_by_import.append(functools.partial(_put_step_back, owner, ours, decorated))


def _set_step(owner: Any, step: Any, *, is_hooked: bool) -> None:
    """Set the step of an optimizer's class, with the hooks that `Optimizer` gives one, or without."""
    owner.step = Optimizer.profile_hook_step(step) if is_hooked else step
    if is_hooked:
        owner.step.hooked = True


def _put_step_back(owner: Any, ours: Any, step: Any) -> None:
    """Put the step of an optimizer's class back, unless somebody else has set another one meanwhile."""
    now = vars(owner).get("step")
    is_hooked = getattr(now, "hooked", False)
    if now is ours or (is_hooked and getattr(now, "__wrapped__", None) is ours):
        _set_step(owner, step, is_hooked=is_hooked)


def restore_functions() -> None:
    """Put the functions of torch back as torch made them."""
    _looked_at.clear()
    while _undone_by_import:
        _undone_by_import.pop()()


def set_deterministic(*, on: bool, warn_only: bool) -> None:
    """Choose deterministic operators without the import of the compiler, unless it is there.

    A compiler that is imported later finds the choice in its environment.
    """
    if any(name.startswith("torch._inductor") for name in sys.modules):
        torch.use_deterministic_algorithms(on, warn_only=warn_only)
    else:
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(on))
        torch._C._set_deterministic_algorithms(on, warn_only=warn_only)  # noqa: SLF001


def _list_hidden_functions() -> Iterator[Any]:
    """Yield the functions that `torch._disable_dynamo` hides from the compiler, each once."""
    make_hidden: Any = vars(torch).get("_disable_dynamo", lambda fn: lambda: fn)
    hides = make_hidden(restore_functions).__code__  # of each function that hides one, its `fn`
    places: list[ModuleType | type] = [Optimizer, TorchDispatchMode]
    for kind in places:  # those that are appended, too
        places += kind.__subclasses__() if isinstance(kind, type) and kind is not Optimizer else []
    places += [module for name, module in [*sys.modules.items()] if name.startswith(IN_MODULES)]
    waiting = [one for place in places for one in vars(place).values() if isinstance(one, FunctionType)]
    while waiting:
        function = waiting.pop()
        if function in _seen:
            continue
        _seen.add(function)
        inner = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                inner[name] = cell.cell_contents
        if function.__code__ is hides and HIDDEN not in vars(inner["fn"]):
            yield inner["fn"]
        waiting += [one for one in inner.values() if isinstance(one, FunctionType)]


def _make_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Make what torch's `_use_grad_for_differentiable` makes, without the two marks for the compiler."""

    @functools.wraps(step)
    def take_step(self: Optimizer, *args: Any, **named: Any) -> Any:
        before = torch.is_grad_enabled()
        try:
            torch.set_grad_enabled(self.defaults["differentiable"])
            return step(self, *args, **named)
        finally:
            torch.set_grad_enabled(before)

    return take_step
