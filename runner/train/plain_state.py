"""Plain containers of a checkpoint: copies of a state for `torch.load(weights_only=True)`."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from runner.core.errors import RunError


def count_bytes(state: Any) -> int:
    """Count the bytes of all tensors in plain containers."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(count_bytes, state.values()))
    return sum(map(count_bytes, state)) if isinstance(state, list | tuple) else 0


def to_plain(state: Any, *, copy: bool = False) -> Any:
    """Copy `state` into containers for `torch.load(weights_only=True)`; equal values give equal bytes.

    Dictionaries, lists, tuples, strings, numbers, None and tensors (moved to the CPU, detached; one that stands in
    several places stays one; a view is cut out of what it looks into). On the CPU tensors are not copied, unless `copy`
    asks for it.

    Raises:
        RunError: something else is in it; names its key.
    """
    worker = _PlainContainers(copy=copy)
    try:
        result = worker.copy(state)
    except _NotPlainError as error:
        key = "".join(reversed(error.path)).lstrip(".")
        raise RunError(
            f"a checkpoint cannot hold `{key}` ({error}): only tensors, numbers, strings, None and plain "
            "dicts, lists and tuples of them can be loaded without running code"
        ) from None
    worker.finish()
    return result


NUMBERS = frozenset({bool, int, float, type(None)})


class _NotPlainError(Exception):
    """Value that is not plain; `path` has the keys to it, the innermost first."""

    def __init__(self, value: Any) -> None:
        kind = type(value)
        super().__init__(
            "a meta tensor" if isinstance(value, torch.Tensor) else f"{kind.__module__}.{kind.__qualname__}"
        )
        self.path: list[str] = []


class _PlainContainers:
    def __init__(self, *, copy: bool) -> None:
        self.copies = copy
        self.strings: dict[str, str] = {}  # pickle writes a repeated string once only if it is the same object
        self.tensors: dict[tuple[Any, ...], torch.Tensor] = {}
        self.devices: set[torch.device] = set()  # that copies are on their way from

    def finish(self) -> None:
        for device in self.devices:
            torch.cuda.current_stream(device).synchronize()

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in NUMBERS:
            return value
        if kind is str:
            return self.strings.setdefault(value, value)
        if kind is list or kind is tuple:
            return kind(self.members(value))
        if kind is dict:
            return self.items(value)
        if kind is OrderedDict:
            return self.ordered(value)
        if kind in (torch.Tensor, torch.nn.Parameter) and value.device.type != "meta":
            return self.tensor(value)
        raise _NotPlainError(value)

    def members(self, value: Sequence[Any]) -> list[Any]:
        kinds = set(map(type, value))
        if NUMBERS.issuperset(kinds):  # the losses since a log line, a generator's words
            return [*value]
        if kinds == {str}:
            return [self.strings.setdefault(member, member) for member in value]
        copies: list[Any] = []
        try:
            copies.extend(map(self.copy, value))
        except _NotPlainError as error:
            error.path.append(f"[{len(copies)}]")
            raise
        return copies

    def items(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        strings, copies, name = self.strings, dict[Any, Any](), None
        try:
            for name, member in value.items():
                key = strings.setdefault(name, name) if type(name) is str else self.copy(name)
                copies[key] = member if type(member) in NUMBERS else self.copy(member)
        except _NotPlainError as error:
            error.path.append(f".{name}")
            raise
        return copies

    def ordered(self, value: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
        copy = OrderedDict(self.items(value))
        if hasattr(value, "_metadata"):  # a state_dict's versions, which load_state_dict reads
            copy._metadata = self.items({"_metadata": value._metadata})["_metadata"]  # type: ignore[attr-defined]  # noqa: SLF001
        return copy

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        if value.layout is not torch.strided:
            return value.detach().cpu()
        where = (value.untyped_storage()._cdata, value.storage_offset())  # noqa: SLF001  the storage's identity
        same = (*where, value.shape, value.stride(), value.dtype)
        if same not in self.tensors:
            self.tensors[same] = self.on_cpu(value.detach())
        return self.tensors[same]

    def on_cpu(self, value: torch.Tensor) -> torch.Tensor:
        if value.is_cuda:  # into pinned memory, all of them at once
            self.devices.add(value.device)
            return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        copy = value if value.is_cpu else value.cpu()
        partial = copy.untyped_storage().nbytes() != copy.numel() * copy.element_size()
        return copy.clone() if partial or (self.copies and copy is value) else copy
