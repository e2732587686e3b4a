"""Python state of a step: numbers and containers in its parts, which no leading dimension carries."""

from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from runner.train.vectorized.stack import StepModule

PLAIN = (bool, int, float, complex, str, bytes, type(None))
STEP = "the step"  # of the user, which is no copy
MOST = 1_000  # members of a container that are looked at

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def read_python_state(step: StepModule) -> dict[tuple[str, str], Any]:
    """Read what model, loss and step hold in plain Python: (part, attribute) → a copy of its value."""
    return {
        (label, name): _copy_plain(value)
        for label, part in _iterate_parts(step)
        for name, value in vars(part).items()
        if name not in _OF_EVERY_MODULE and _is_plain(value)
    }


def find_changed_state(step: StepModule, before: Mapping[tuple[str, str], Any]) -> str:
    """Return in words the first attribute that is not what it was; empty where all are."""
    now = read_python_state(step)
    changed = (place for place, value in before.items() if place not in now or not _is_same(now[place], value))
    return next((f"`{name}` of {label}" for label, name in changed), "")


def restore_step(step: StepModule, before: Mapping[tuple[str, str], Any]) -> None:
    """Put back what the user's step held in plain Python; model and loss of a stack are copies."""
    own = dict(_iterate_parts(step)).get(STEP)
    if own is not None:
        vars(own).update({name: value for (label, name), value in before.items() if label == STEP})


def _copy_plain(value: Any) -> Any:
    """Copy containers, and not the tensors in them: those of a stack cannot be."""
    if isinstance(value, MutableMapping):
        copied = copy(value)
        for name, member in value.items():
            copied[name] = _copy_plain(member)
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(_copy_plain, value))
    return copy(value) if isinstance(value, set) else value


def _iterate_parts(step: StepModule) -> Iterator[tuple[str, Any]]:
    for path, module in step.named_modules():
        if path:
            label = f"`{path.removeprefix('model.')}`" if path != "model" else "the model"
            yield f"{label} ({type(module).__name__})", module
    for label, part in (("the loss", step.loss), (STEP, step.step)):
        whole = part.func if isinstance(part, partial) else part
        whole = whole.__self__ if isinstance(whole, MethodType) else whole
        if hasattr(whole, "__dict__") and not isinstance(whole, nn.Module | type):
            yield label, whole


def _is_plain(value: Any) -> bool:
    """Return whether a value is plain data that can be copied and compared, and not too much of it."""
    if isinstance(value, Mapping):
        return (
            type(value).__module__ in ("builtins", "collections")
            and len(value) <= MOST
            and _has_plain_members(value.values())
        )
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= MOST and _has_plain_members(value)
    return isinstance(value, PLAIN)


def _has_plain_members(values: Any) -> bool:
    return all(isinstance(value, (*PLAIN, Tensor)) or _is_plain(value) for value in values)


def _is_same(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, Tensor) or isinstance(other, Tensor):
        return True  # what a step has seen last; a state that counts is a buffer
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other) or repr(one) == repr(other)  # NaN equals nothing
