"""Accumulators of metrics: all that a metric remembers, as plain data for a checkpoint."""

import enum
import functools
import inspect
import io
import os
import random
import re
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.core.errors import RunError
from runner.core.progress import TrainingProgress

KIND = "kind"  # the key that tells a tagged value from plain data
PLAIN = (bool, int, float, str, type(None))
MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter, defaultdict)}
SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (tuple, set, frozenset, deque, torch.Size)}
# Kind → type, its plain form, and how that becomes a value or is given to one again.
VALUES: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "number": (np.generic, lambda value: torch.from_numpy(np.array(value)), lambda plain: plain.numpy()[()]),
    "array": (np.ndarray, lambda value: torch.from_numpy(value.copy()), lambda plain: plain.numpy().copy()),
    "complex": (complex, lambda value: [value.real, value.imag], lambda plain: complex(*plain)),
    "bytes": (bytes, list, bytes),
}
GENERATORS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any, Any], object]]] = {
    "torch": (torch.Generator, lambda value: value.get_state(), lambda value, plain: value.set_state(plain)),
    "numpy": (
        np.random.Generator,
        lambda value: value.bit_generator.state,
        lambda value, plain: setattr(value.bit_generator, "state", plain),
    ),
    "python": (random.Random, lambda value: value.getstate(), lambda value, plain: value.setstate(plain)),
}
# Built anew from the config, and no accumulator.
CONSTANT = (
    *(type, enum.Enum, os.PathLike, re.Pattern, range, slice, functools.partial, weakref.ref, io.IOBase),
    *(TrainingProgress, torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, np.ufunc),
    *(type(threading.Lock()), type(threading.RLock()), type(os)),
)
# Of `torchmetrics.Metric` itself: settings, functions and caches.
OF_TORCHMETRICS = """update compute _update_signature _device _dtype _cache _computed _forward_cache _defaults
_persistent _reductions _to_sync _should_unsync _is_synced _enable_grad _dtype_convert dist_sync_fn
distributed_available_fn process_group compute_on_cpu sync_on_compute dist_sync_on_step compute_with_cache
_TORCH_GREATER_EQUAL_2_1"""
NOT_SAVED = frozenset({*vars(nn.Module()), *OF_TORCHMETRICS.split()})
REMEDY = "give the metric `state_dict` and `load_state_dict`"


def get_accumulators(metric: Any, place: str = "") -> dict[str, Any]:
    """Return the accumulators of a metric as plain data and tensors, for a checkpoint.

    They are its own `state_dict` where it has one, else all attributes: numbers, strings, tensors, arrays, containers,
    generators, further metrics, modules and objects, nested in each other. `place` is its name for messages.

    Raises:
        RunError: an attribute can not be saved.
    """
    if _has_own_state(metric):
        state: dict[str, Any] = metric.state_dict()
        return state
    return _collect(metric, place or type(metric).__name__, set())


def set_accumulators(metric: Any, saved: Mapping[str, Any], device: torch.device) -> None:
    """Restore a metric from the values of `get_accumulators`.

    Raises:
        RunError: it has an object that the metric's constructor does not make.
    """
    if _has_own_state(metric) or any("." in name for name in saved):  # the latter of an earlier version
        metric.load_state_dict(saved)
    else:
        _restore(metric, saved, type(metric).__name__, device)


def _has_own_state(owner: Any) -> bool:
    """Return whether an object has a `state_dict` that is not torch's or torchmetrics' of any module."""
    if not all(callable(getattr(owner, name, None)) for name in ("state_dict", "load_state_dict")):
        return False
    defined = getattr(type(owner), "state_dict", None)
    return not str(getattr(defined, "__module__", "")).startswith(("torch.nn.", "torchmetrics."))


def _collect(owner: Any, place: str, outer: set[int]) -> dict[str, Any]:
    """Collect an object's attributes; `outer` holds the objects that it is inside of."""
    outer = outer | {id(owner)}
    if hasattr(owner, "_compute_groups_create_state_ref"):  # of a MetricCollection, which updates one of a group
        owner._compute_groups_create_state_ref()  # noqa: SLF001
    found = {}
    for name, value in _list_attributes(owner):
        if id(value) in outer or _is_constant(value):
            continue
        if isinstance(value, nn.Module) and hasattr(owner, "_defaults") and not _holds_metric(value):
            continue  # a network that torchmetrics computes features with
        found[name] = _encode(value, f"{place}.{name}", outer)
    return found


def _list_attributes(owner: Any) -> Iterable[tuple[str, Any]]:
    slots = [name for kind in type(owner).__mro__ for name in _list_names(vars(kind).get("__slots__", ()))]
    names = [name for name in [*getattr(owner, "__dict__", {}), *slots] if name not in ("__dict__", "__weakref__")]
    if isinstance(owner, nn.Module):
        names = [name for name in names if name not in NOT_SAVED]
        names += [*owner._parameters, *owner._buffers, *owner._modules]  # noqa: SLF001
    return [(name, getattr(owner, name)) for name in names if hasattr(owner, name)]


def _list_names(slots: str | Iterable[str]) -> Iterable[str]:
    return [slots] if isinstance(slots, str) else slots


def _is_constant(value: Any) -> bool:
    return isinstance(value, CONSTANT) or inspect.isroutine(value)


def _holds_metric(module: nn.Module) -> bool:
    return any(hasattr(part, "update") and hasattr(part, "compute") for part in module.modules())


def _encode(value: Any, place: str, outer: set[int]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in PLAIN:
        return value
    for kind, (base, to_plain, _) in {**VALUES, **GENERATORS}.items():
        if isinstance(value, base):
            with suppress(TypeError):  # of an array of objects or dates
                return {KIND: kind, "value": _encode(to_plain(value), place, outer)}
    if type(value) in MAPPINGS.values():
        names, members = ([*part] for part in (value, value.values()))
        pairs = [_encode(part, place, outer) for part in (names, members)]
        return {KIND: type(value).__name__, "value": pairs}
    if type(value) is list:
        return [_encode(member, f"{place}[{number}]", outer) for number, member in enumerate(value)]
    if type(value) in SEQUENCES.values():
        encoded = {KIND: type(value).__name__, "value": _encode([*value], place, outer)}
        return encoded | ({"length": value.maxlen} if isinstance(value, deque) else {})
    if _has_own_state(value):
        return {KIND: "state", "value": value.state_dict()}
    if _has_attributes(value):
        return {KIND: "object", "value": _collect(value, place, outer)}
    message = f"`{place}` is of the type {type(value).__name__}, which no checkpoint can hold: {REMEDY}"
    raise RunError(message)


def _has_attributes(value: Any) -> bool:
    """Return whether attributes are all that an object holds: it is no container, number or text."""
    if isinstance(value, Collection | int | float | complex | bytes) and not isinstance(value, nn.Module):
        return False
    return hasattr(value, "__dict__") or any("__slots__" in vars(kind) for kind in type(value).__mro__)


def _restore(owner: Any, saved: Mapping[str, Any], place: str, device: torch.device) -> None:
    for name, value in saved.items():
        live = getattr(owner, name, None)
        new = _decode(value, live, f"{place}.{name}", device)
        if isinstance(live, nn.Parameter):
            with torch.no_grad():
                live.copy_(new)
        elif new is not live:
            if name in getattr(owner, "__dict__", {}):
                owner.__dict__[name] = new  # as it is: a class may have a `__setattr__` of its own
            else:
                setattr(owner, name, new)


def _decode(saved: Any, live: Any, place: str, device: torch.device) -> Any:
    if isinstance(saved, Tensor):
        return saved.to(device)
    if isinstance(saved, list):
        known = [*live] if isinstance(live, list | tuple | deque) else []
        known += [None] * (len(saved) - len(known))
        members = enumerate(zip(saved, known, strict=False))
        return [_decode(member, own, f"{place}[{number}]", device) for number, (member, own) in members]
    if not isinstance(saved, Mapping):
        return saved
    kind, value = saved[KIND], saved["value"]
    if kind in VALUES:
        return VALUES[kind][2](_decode(value, None, place, torch.device("cpu")))
    if kind in MAPPINGS:
        names = _decode(value[0], None, place, device)
        own = [live.get(name) for name in names] if isinstance(live, Mapping) else None
        pairs = zip(names, _decode(value[1], own, place, device), strict=True)
        factory = [getattr(live, "default_factory", None)] if kind == "defaultdict" else []
        return MAPPINGS[kind](*factory, dict(pairs))
    if kind in SEQUENCES:
        members = _decode(value, live, place, device)
        return deque(members, saved["length"]) if kind == "deque" else SEQUENCES[kind](members)
    if live is None:
        message = f"`{place}` holds an object that the constructor does not make, so it cannot be restored: {REMEDY}"
        raise RunError(message)
    if kind == "object":
        _restore(live, value, place, device)
    elif kind == "state":
        live.load_state_dict(value)
    else:
        GENERATORS[kind][2](live, _decode(value, None, place, torch.device("cpu")))
    return live
