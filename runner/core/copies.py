"""Copies of samples and batches, which may then be changed in place."""

import copy
from collections.abc import Iterable, MutableMapping, MutableSequence
from typing import Any

import numpy as np
from torch import Tensor


def copy_owned(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copy a sample or a member of one (tensors, arrays, images, nested) so that it may change in place.

    A tensor that is part of a larger one is copied without the rest.
    """
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = _copy_member(value, memo)
    return memo[id(value)]


def _copy_member(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value, memo)
    if isinstance(value, np.ndarray):
        return copy.deepcopy(value) if value.dtype == object else value.copy(order="K")
    if hasattr(value, "convert") and hasattr(value, "tobytes"):
        return _copy_image(value)
    if value is None or callable(value) or isinstance(value, str | bytes | int | float | complex | np.generic | type):
        return value
    if isinstance(value, tuple):
        members = [copy_owned(member, memo) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    for way in (_copy_object, copy.deepcopy):
        try:
            return way(value, memo)
        except Exception:  # noqa: BLE001  of a user's class that has no copies
            memo.pop(id(value), None)
    return value


def _copy_tensor(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Clone a tensor, with the attributes that a subclass gave it."""
    again = tensor.clone()
    if type(tensor) is not Tensor:
        for name, member in vars(tensor).items():
            if name not in vars(again):
                setattr(again, name, copy_owned(member, memo))
    return again


def _copy_object(value: Any, memo: dict[int, Any]) -> Any:
    again = memo[id(value)] = copy.copy(value)
    if isinstance(again, MutableMapping):
        again.update({name: copy_owned(member, memo) for name, member in value.items()})
    elif isinstance(again, MutableSequence):
        for place, member in enumerate(value):
            again[place] = copy_owned(member, memo)
    slots = {name for kind in type(value).__mro__ for name in _list_names(vars(kind).get("__slots__", ()))}
    for name in [*getattr(value, "__dict__", {}), *slots]:
        if hasattr(value, name):
            object.__setattr__(again, name, copy_owned(getattr(value, name), memo))
    return again


def _list_names(slots: str | Iterable[str]) -> Iterable[str]:
    return [slots] if isinstance(slots, str) else slots


def _copy_image(image: Any) -> Any:
    """A PIL image with the name of its file, of its format and its EXIF, which Pillow's own copy has not.

    Frames of an animation are read from its file as they are asked for, so that one stays as it is.
    """
    if getattr(image, "is_animated", False):
        return image
    again = image.copy()
    if hasattr(image, "tag_v2"):
        again._exif = image.getexif()  # noqa: SLF001  of a TIFF file, the only place for it
    for name in ("format", "filename"):
        if getattr(image, name, None) is not None:
            setattr(again, name, getattr(image, name))
    return again
