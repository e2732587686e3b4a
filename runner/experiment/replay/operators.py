"""Operator in which two runs of the same step differ: both are recorded, and compared.

The operators are seen by torch's `DebugMode`; where torch lacks it, by a dispatch mode and hooks of the modules.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runner.core.copies import copy_owned
from runner.core.digests import hash_tree
from runner.core.layouts import is_strided
from runner.core.paths import PACKAGE
from runner.core.trees import iterate_tensors
from runner.experiment.record.provenance import STANDARD_LIBRARY
from runner.train import pauses
from runner.train.plain_state import to_plain
from runner.train.state import Run
from runner.train.state_dict import collect_state, restore

TRIALS = 5  # pairs of runs of one step, until two differ


@dataclass(frozen=True)
class OperatorCall:
    """Call of an operator: name, module, line of user code, numbers it is given, digest of its result."""

    name: str
    module: str
    line: str
    numbers: str
    result: str
    backward: bool


class OperatorRecorder:
    """Recorder of the operators that a model calls, as a hook of DebugMode or of a dispatch mode."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[OperatorCall] = []
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.modules: dict[str, str] = {}  # in which a line of user code was called

    def note(self, function: Any, _types: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note a call."""
        if str(getattr(function, "namespace", "")) in ("debug_mode_ops", "profiler"):
            return
        numbers = repr([value for value in _flatten([args, kwargs or {}]) if isinstance(value, bool | int | float)])
        digest = hash_tree([one for one in iterate_tensors(_as_tree(result)) if is_strided(one) and not one.is_meta])
        lines, backward = _list_lines(), False
        line = lines[0] if lines else ""
        module = self.stack[-1] if self.stack else ""
        node: Any = torch._C._current_autograd_node()  # noqa: SLF001  as DebugMode does
        if node is not None:
            backward = True
            lines = _list_lines_of("".join(node.metadata.get("traceback_", []))) or lines
            line = lines[0] if lines else ""
            module = next((self.modules[one] for one in lines if one in self.modules), module)
        elif module:
            for one in lines:
                self.modules.setdefault(one, module)
        self.calls.append(OperatorCall(str(function), module, line, numbers, digest, backward))

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Keep the stack of the modules whose forward is under way."""

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.names.get(module, type(module).__name__))

        def leave(*_: Any) -> None:
            if self.stack:
                self.stack.pop()

        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class HookMode(TorchDispatchMode):
    """Dispatch mode that calls a hook after each operator, for a torch without DebugMode."""

    def __init__(self, hook: Callable[..., object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hook = hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, then the hook."""
        result = func(*args, **(kwargs or {}))
        self.hook(func, types, args, kwargs, result)
        return result


def watch_operators(hook: Callable[..., object]) -> AbstractContextManager[Any]:
    """Return a context in which a hook is called after each operator."""
    try:
        from torch.utils._debug_mode import DebugMode
    except ImportError:
        return HookMode(hook)
    stack = ExitStack()
    stack.enter_context(DebugMode.dispatch_hooks(record_hook=hook))
    mode: Any = DebugMode
    stack.enter_context(mode(record_output=False))
    return stack


def record_step(run: Run, batch: Any, state: Mapping[str, Any]) -> list[OperatorCall]:
    """Restore a run's state and train one step on a copy of a batch; return the operators called."""
    restore(run, to_plain(dict(state), copy=True))
    run.model.train()
    recorder = OperatorRecorder(run.model)
    with (
        torch.autograd.set_detect_anomaly(mode=True, check_nan=False),
        recorder.follow_modules(),
        watch_operators(recorder.note),
    ):
        run.update(copy_owned(batch))
    return recorder.calls


def find_operator(run: Run) -> dict[str, Any]:
    """Run the next step of a run twice from the same state; return the first operator that differs.

    Empty where all pairs are the same.
    """
    run.model.train()
    state = to_plain(collect_state(run), copy=True)
    batch = next(iter(pauses.iterate_batches(run)), None)
    for _ in range(TRIALS):
        one, other = record_step(run, batch, state), record_step(run, batch, state)
        if (found := compare_calls(one, other)) is not None:
            return found
    return {}


def compare_calls(one: list[OperatorCall], other: list[OperatorCall]) -> dict[str, Any] | None:
    """Compare two lists of calls; return the first that differs, None where none does."""
    for a, b in zip(one, other, strict=False):
        if a == b:
            continue
        from_python = a.numbers != b.numbers or a.name != b.name
        facts = {"operator": a.name, "module": a.module, "line": a.line, "backward": a.backward}
        return facts | {"from_python": from_python}
    if len(one) != len(other):
        last = max(one, other, key=len)[min(len(one), len(other))]
        return {"operator": last.name, "module": last.module, "line": last.line, "from_python": True}
    return None


def _as_tree(result: Any) -> Any:
    return list(result) if isinstance(result, tuple | list) else result


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for member in value.values():
            yield from _flatten(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _flatten(member)
    elif not isinstance(value, Tensor):
        yield value


_TORCH = str(Path(torch.__file__).parent)


def _is_user_code(path: str) -> bool:
    """Return whether a file is neither torch's, nor the runner's, nor Python's own."""
    return not path.startswith((_TORCH, "<", STANDARD_LIBRARY, f"{PACKAGE}/")) and "/site-packages/" not in path


def _list_lines() -> list[str]:
    """List the lines of user code on the stack, the innermost first; without one those of the runner."""
    frame: Any = sys._getframe(2)  # noqa: SLF001  a stack of objects costs more
    found, ours = [], []
    while frame is not None:
        path = frame.f_code.co_filename
        if _is_user_code(path):
            found.append(f"{path}:{frame.f_lineno}")
        elif path.startswith(f"{PACKAGE}/") and Path(path).name != Path(__file__).name:
            ours.append(f"{path}:{frame.f_lineno}")
        frame = frame.f_back
    return found or ours[:1]


def _list_lines_of(traceback: str) -> list[str]:
    """List the lines of user code in a formatted traceback, the innermost first."""
    found = []
    for line in traceback.splitlines():
        text = line.strip()
        if text.startswith('File "'):
            path, _, rest = text[6:].partition('", line ')
            if _is_user_code(path):
                found.append(f"{path}:{rest.partition(',')[0]}")
    return found[::-1]
