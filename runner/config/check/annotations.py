"""Fit of plain values to annotations: whether a value fits, its conversion, and words for a misfit."""

import collections.abc
import datetime as dt
import decimal
import enum
import fractions
import inspect
import numbers
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from runner.core.durations import is_duration

_BY_DEFAULT = (enum.Enum, tuple, set, frozenset, pathlib.PurePath)


def infer_annotation(parameter: inspect.Parameter) -> Any:
    """Return a parameter's annotation, or the type of its default where that is no plain value."""
    default = parameter.default
    if parameter.annotation is not inspect.Parameter.empty or default is inspect.Parameter.empty:
        return parameter.annotation
    if isinstance(default, type):
        return type
    if isinstance(default, types.FunctionType | types.BuiltinFunctionType):
        return Callable[..., Any] | str  # a text may name one
    own: Any = type(default)
    named = (own.__module__, own.__name__) in (("torch", "device"), ("torch", "dtype"))
    module = any(base.__module__ == "torch.nn.modules.module" for base in own.__mro__)
    known = isinstance(default, (*_BY_DEFAULT, *_SPELLINGS)) or named or module or not _is_from_library(own)
    return own if known else inspect.Parameter.empty


def wants_class(annotation: Any) -> bool:
    """Return whether an annotation asks for a class, not for an instance."""
    return annotation is type or any(
        get_origin(kind) is type or kind is type for kind in (annotation, *get_args(annotation))
    )


def takes_class_keys(annotation: Any) -> bool:
    """Return whether an annotation asks for a mapping whose keys are classes: `dict[type, float]`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(map(takes_class_keys, args))
    return origin in _MAPPINGS and len(args) == 2 and wants_class(args[0])


class _UnfitValue:
    """Type of the marker `UNFIT`: a value that a parameter cannot take."""

    def __repr__(self) -> str:
        return "UNFIT"


UNFIT: Any = _UnfitValue()


def convert(value: Any, annotation: Any) -> Any:
    """Convert a plain value to an annotated enum, tuple, path, device or dtype; else return it.

    `UNFIT` where the annotation names something else that no plain value is.
    """
    annotation = getattr(annotation, "__value__", getattr(annotation, "__supertype__", annotation))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return convert(value, args[0])
    if origin in (Union, types.UnionType):
        return _convert_to_union(value, args)
    if origin is type or annotation is type:
        return value if isinstance(value, type) else UNFIT
    container = origin or annotation
    if container in (tuple, set, frozenset) and isinstance(value, list):
        return container(_convert_members(value, args, container))
    if isinstance(value, list) and args and container in (list, *_ITERABLE):
        return _convert_members(value, args, container)
    if isinstance(value, dict) and len(args) == 2 and container in _MAPPINGS:
        keys = _convert_members(list(value), args[:1], list)
        return dict(zip(keys, _convert_members(list(value.values()), args[1:], list), strict=True))
    if container in _SPELLINGS or _is_array(container):
        return _convert_by_spelling(value, container, args)
    return _convert_to_class(value, annotation) if isinstance(annotation, type) else value


_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


# Classes with a plain spelling: what it may be, and the function that makes the object.
_SPELLINGS: dict[Any, tuple[tuple[type, ...], Callable[[Any], Any]]] = {
    decimal.Decimal: ((int, float, str), lambda value: decimal.Decimal(str(value))),
    fractions.Fraction: ((int, float, str), lambda value: fractions.Fraction(str(value))),
    re.Pattern: ((str,), re.compile),
    range: ((list,), lambda value: range(*value)),
    bytes: ((str,), str.encode),
    dt.datetime: ((str,), dt.datetime.fromisoformat),
    dt.date: ((str,), dt.date.fromisoformat),
    dt.time: ((str,), dt.time.fromisoformat),
}


def _is_array(kind: Any) -> bool:
    return (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == ("numpy", "ndarray")


def _convert_by_spelling(value: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    """Convert a plain value to an instance of a class of Python or NumPy."""
    plain: tuple[type, ...]
    make: Any
    if _is_array(kind):
        dtype = next((name for name in get_args(args[1]) if isinstance(name, type)), None) if len(args) > 1 else None
        asarray: Any = sys.modules["numpy"].asarray
        plain, make = (list,), lambda members: asarray(members, dtype)
    else:
        plain, make = _SPELLINGS[kind]
    if isinstance(value, kind):
        return value
    if not isinstance(value, plain) or isinstance(value, bool):
        return UNFIT if isinstance(value, bool | int | float | str | list | dict) else value
    try:
        return make(value)
    except (ValueError, TypeError, ArithmeticError, re.error):
        return UNFIT


def _convert_members(value: list[Any], args: tuple[Any, ...], container: Any) -> list[Any]:
    kinds = [kind for kind in args if kind is not Ellipsis]
    if not kinds:
        return value
    each = kinds if container is tuple and Ellipsis not in args and len(kinds) == len(value) else kinds[:1] * len(value)
    made = [convert(member, kind) for member, kind in zip(value, each, strict=True)]
    return [member if one is UNFIT else one for member, one in zip(value, made, strict=True)]


def _convert_to_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Convert a plain value to a member of a union: enums first, then plain types, then the others."""
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
    for kind in enums:
        if (member := convert(value, kind)) is not UNFIT:
            return member
    if any(kind in _PLAIN and _PLAIN[kind](value) for kind in kinds):
        return value
    for kind in kinds:
        if kind not in _PLAIN and kind not in enums and _fits(value, kind, durations=False):
            made = convert(value, kind)
            if made is not UNFIT:
                return made
    return UNFIT if all(isinstance(kind, type) for kind in kinds) else value


def _convert_to_class(value: Any, kind: type) -> Any:
    """Convert a plain value to an instance of a class that has a plain spelling."""
    if kind in _PLAIN or kind is object:
        return value
    if issubclass(kind, enum.Enum):
        return _find_enum_member(value, kind)
    try:
        if isinstance(value, kind):
            return value
    except TypeError:  # a protocol, a TypedDict
        return value
    if (kind.__module__, kind.__name__) in (("torch", "device"), ("torch", "dtype")):
        return _convert_to_torch(value, kind) if isinstance(value, str) else UNFIT
    if issubclass(kind, tuple) and isinstance(value, list):
        return _convert_to_tuple(value, kind)
    if issubclass(kind, pathlib.PurePath):
        return kind(value) if isinstance(value, str) else UNFIT
    if kind is os.PathLike:
        return pathlib.Path(value) if isinstance(value, str) else UNFIT
    return UNFIT if _is_surely_unfit(value, kind) else value


def _convert_to_tuple(value: list[Any], kind: type[tuple[Any, ...]]) -> Any:
    """Convert a list to a named tuple, or to another subclass of tuple."""
    fields = getattr(kind, "_fields", None)
    if fields is None:
        return kind(value)
    kinds = [kind.__annotations__.get(name, object) for name in fields[: len(value)]]
    try:
        return kind(*_convert_members(value, tuple(kinds), tuple))
    except TypeError:  # of another length
        return UNFIT


def _is_surely_unfit(value: Any, kind: type) -> bool:
    """Return whether a plain value can never stand for an instance of a class."""
    if not isinstance(value, str | int | float | list | dict) or kind.__module__ == "builtins":
        return False
    if kind.__module__.startswith("torch"):  # it says Tensor where it takes a number too
        return kind.__name__[0].isupper() and isinstance(value, str | list | dict)
    return not _is_from_library(kind)


@cache
def _is_from_library(kind: type) -> bool:
    """Return whether a class comes with Python or an installed package, not from user files."""
    top = kind.__module__.partition(".")[0]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return top in sys.stdlib_module_names or not file or "site-packages" in file or "dist-packages" in file


def _find_enum_member(value: Any, kind: type[enum.Enum]) -> Any:
    if isinstance(value, kind):
        return value
    name = value.rpartition(".")[2] if isinstance(value, str) else None  # `Mode.FAST`, as Python writes it
    for member in kind.__members__.values():
        if value == member.value and type(value) is type(member.value):
            return member
    if name is not None:
        for known, member in kind.__members__.items():
            if name in (known, known.lower()):
                return member
    try:
        return kind(value)
    except (ValueError, KeyError, TypeError):
        return UNFIT


def _convert_to_torch(value: str, kind: type) -> Any:
    torch = sys.modules.get("torch")
    if kind.__name__ == "device":
        try:
            return kind(value)
        except (RuntimeError, ValueError):
            return UNFIT
    found = getattr(torch, value.removeprefix("torch."), None)
    return found if isinstance(found, kind) else UNFIT


def takes_steps(parameter: inspect.Parameter) -> bool:
    """Return whether a duration (`2ep`, `100st`) in a parameter's place stands for optimizer steps.

    It does where the annotation has a number and no text, in a list or a mapping too, and where there is none, unless
    the default is a text or a truth value.
    """
    if parameter.annotation is inspect.Parameter.empty:
        return not isinstance(parameter.default, str | bool)
    return _takes_number(parameter.annotation) and not _takes_text(parameter.annotation)


def _takes_number(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", getattr(annotation, "__supertype__", annotation))
    known = annotation in (int, float, complex, numbers.Number, Any, object)
    bare = annotation in (list, tuple, dict, *_ITERABLE, *_MAPPINGS)
    return known or bare or any(map(_takes_number, get_args(annotation)))


def _takes_text(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", getattr(annotation, "__supertype__", annotation))
    if get_origin(annotation) in _MAPPINGS:
        return any(map(_takes_text, get_args(annotation)[1:]))
    return annotation is str or get_origin(annotation) is Literal or any(map(_takes_text, get_args(annotation)))


def describe_misfit(value: Any, parameter: inspect.Parameter, *, durations: bool) -> str:
    """Describe what a parameter takes where a plain value certainly does not fit; else empty."""
    default = parameter.default
    if type(value) is type(default) and not isinstance(value, str):
        return ""
    if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        return ""
    annotation = infer_annotation(parameter)
    if annotation is inspect.Parameter.empty:
        number = isinstance(default, int | float) or (
            default is not inspect.Parameter.empty and isinstance(default, bool)
        )
        wrong = number and isinstance(value, str) and not (durations and is_duration(value))
        return "must be " + _describe_annotation(type(default)) if wrong else ""
    if value is None:
        return (
            ""
            if annotation not in (bool, int, float, str) or default is None
            else "must be " + _describe_annotation(annotation)
        )
    return "" if _fits(value, annotation, durations=durations) else "must be " + _describe_annotation(annotation)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool | int),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: _is_number,
    complex: _is_number,
    numbers.Number: _is_number,
    str: lambda value: isinstance(value, str),
}


_ITERABLE = (collections.abc.Sequence, collections.abc.Iterable)


def _fits(value: Any, annotation: Any, *, durations: bool) -> bool:
    """Return whether a plain value may fit an annotation; every value fits an unknown annotation.

    A component has a check of its own; a duration stands for a number where `durations`, in a list too.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if (isinstance(value, dict) and "_target_" in value) or (durations and is_duration(value)):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind, durations=durations) for kind in args)
    if origin is Literal:
        return value in args
    if origin is typing.Annotated:
        return _fits(value, args[0], durations=durations)
    if annotation in _PLAIN:
        return _PLAIN[annotation](value)
    if (origin or annotation) is collections.abc.Callable:
        return False  # what is written in YAML is called only where it is a component
    if (origin or annotation) in _MAPPINGS:
        inner = args[1] if len(args) == 2 else object
        return isinstance(value, dict) and all(_fits(one, inner, durations=durations) for one in value.values())
    if (origin or annotation) in (list, tuple, set, frozenset, *_ITERABLE):
        return _fits_container(value, origin or annotation, args, durations=durations)
    return convert(value, annotation) is not UNFIT


def _fits_container(value: Any, container: Any, args: tuple[Any, ...], *, durations: bool) -> bool:
    if isinstance(value, str):
        return container in _ITERABLE and args in ((str,), ())
    if not isinstance(value, list):
        return isinstance(value, dict) and container is collections.abc.Iterable
    inner = [kind for kind in args if kind is not Ellipsis]
    if container is tuple and inner and Ellipsis not in args:
        pairs = zip(value, inner, strict=False)
        return len(inner) == len(value) and all(_fits(member, kind, durations=durations) for member, kind in pairs)
    return not inner or all(_fits(member, inner[0], durations=durations) for member in value)


def _describe_annotation(annotation: Any) -> str:  # noqa: C901  one kind after another
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe_annotation(kind) for kind in args))
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in args)
    if origin is type or annotation is type:
        return "a class (`{_target_: …}`)"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(f"`{choice}`" for choice in list_choices(annotation))
    if isinstance(annotation, type) and (issubclass(annotation, pathlib.PurePath) or annotation is os.PathLike):
        return "a path"
    if (getattr(annotation, "__module__", ""), getattr(annotation, "__name__", "")) == ("torch", "device"):
        return "a device, such as `cpu` or `cuda:0`"
    plain = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    if (origin or annotation) is collections.abc.Callable:
        return "a function or an object to call (`{_target_: …}`)"
    if (origin or annotation) in _MAPPINGS:
        return "a mapping" + f", each value {_describe_annotation(args[1])}" * (len(args) == 2 and args[1] is not Any)
    if (origin or annotation) in (list, tuple, set, frozenset, *_ITERABLE):
        members = [plain[kind].split()[-1] for kind in args if kind in plain and kind not in (bool, type(None))]
        if origin is tuple and Ellipsis not in args:
            return f"a list of {len(args)} {members[0] if members else 'value'}s"
        each = [kind for kind in args if isinstance(kind, type) or get_origin(kind) is not None]
        if each and not members and each[0] not in (bool, type(None), object):
            return f"a list, each {_describe_annotation(each[0])}"
        return f"a list of {members[0]}s" if members else "a list"
    return getattr(annotation, "__name__", str(annotation))


def list_choices(annotation: Any) -> list[str]:
    """Return the texts that a `Literal` or an enum allows."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        plain = all(isinstance(member.value, str | int | float) for member in annotation)
        return [str(member.value) if plain else name for name, member in annotation.__members__.items()]
    return [choice for kind in get_args(annotation) for choice in list_choices(kind)]
