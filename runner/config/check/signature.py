"""Signatures of callables, followed through `**kwargs`, and the fit of plain values to annotations."""

import ast
import collections.abc
import dataclasses
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
import textwrap
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from runner.core.durations import is_duration

_DEPTH = 6  # functions through which a `**kwargs` is followed


Parameters = dict[str, inspect.Parameter]


@dataclasses.dataclass(frozen=True)
class _SuperConstructor:
    """Constructor that `super().__init__` reaches: `owner` defines it, `cls` is the class being built."""

    cls: type
    owner: type
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError; the method only makes the object a callable for the type checker."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CallableParameters:
    """Parameters that a callable accepts.

    Attributes:
        own: the parameters of its own signature, in order.
        further: those that its `**kwargs` reaches in what it calls.
        open: whether other names are taken too, as far as can be seen.
    """

    own: Parameters
    further: Parameters
    open: bool

    @property
    def positional(self) -> list[str]:
        """Names of the parameters that may be given by position."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [name for name, parameter in self.own.items() if parameter.kind in kinds]

    @property
    def takes_any_number(self) -> bool:
        """Whether the signature has an `*args`."""
        return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in self.own.values())

    @property
    def named(self) -> Parameters:
        """Parameters that may be given by name, those behind `**kwargs` included."""
        unnamed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {name: p for name, p in {**self.further, **self.own}.items() if p.kind not in unnamed}


def inspect_parameters(target: Callable[..., Any], depth: int = 0) -> CallableParameters | None:
    """Return the parameters of `target`; None where Python cannot see a signature."""
    try:
        signature = inspect.signature(
            types.MethodType(target.function, target) if isinstance(target, _SuperConstructor) else target
        )
    except (ValueError, TypeError):
        return None
    own = {name: _resolve_annotation(parameter, target) for name, parameter in signature.parameters.items()}
    keywords = next((name for name, p in own.items() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    if keywords is None:
        return CallableParameters(own, {}, open=False)
    further, still_open = _trace_keywords(target, keywords, depth)
    return CallableParameters(own, further, still_open)


def _resolve_annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> inspect.Parameter:
    """Return the parameter with an annotation that is written as text resolved."""
    written = parameter.annotation
    if not isinstance(written, str) and "ForwardRef(" not in repr(written):
        return parameter
    function, _ = _find_body(target)
    # Names of these modules are often imported for type checkers only.
    torch = sys.modules.get("torch")
    common = {**vars(typing), **vars(collections.abc), "pathlib": pathlib, "Path": pathlib.Path, "os": os}
    names = {**common, **({"torch": torch} if torch else {}), **getattr(function, "__globals__", {})}
    try:
        holder = types.SimpleNamespace(__annotations__={"it": written}, __module__="")
        read = typing.get_type_hints(holder, globalns=names)["it"]
    except Exception:  # noqa: BLE001  names under TYPE_CHECKING, for instance
        read = inspect.Parameter.empty if isinstance(written, str) else written
    return parameter.replace(annotation=read)


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


class _UnfitValue:
    """Type of the marker `UNFIT`: a value that a parameter cannot take."""


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


def _find_body(target: Callable[..., Any]) -> tuple[Callable[..., Any] | None, type | None]:
    """Return the Python function that runs, and the class that defines it."""
    if isinstance(target, _SuperConstructor):
        return inspect.unwrap(target.function), target.owner
    if not isinstance(target, type):
        return inspect.unwrap(target), None
    for owner in target.__mro__:
        for name in ("__new__", "__init__"):
            function = owner.__dict__.get(name)
            function = function.__func__ if isinstance(function, staticmethod) else function
            if isinstance(function, types.FunctionType):
                return inspect.unwrap(function), owner
    return None, None


@cache
def _parse_source(function: Callable[..., Any]) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _trace_keywords(target: Callable[..., Any], keywords: str, depth: int) -> tuple[Parameters, bool]:
    """Return the parameters that `**keywords` of `target` reaches, and whether it reaches unseen ones."""
    function, owner = _find_body(target)
    tree = _parse_source(function) if function is not None and depth < _DEPTH else None
    if function is None or tree is None:
        return _inspect_returned_class(target, depth)
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_VARKEYWORDS:
        keywords = code.co_varnames[
            code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
        ]
    found: Parameters = {}
    forwarded = handled = blind = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(k.arg is None and _is(k.value, keywords) for k in node.keywords):
            forwarded = True
            callee = _resolve(node.func, function, owner, target)
            inner = (
                None
                if callee is None
                else inspect_parameters(callee, depth + 1)
                if callee is not _NOTHING
                else CallableParameters({}, {}, open=False)
            )
            if inner is None:
                blind = True
                continue
            taken = {k.arg for k in node.keywords if k.arg} | set(inner.positional[: len(node.args)])
            found |= {name: p for name, p in inner.named.items() if name not in taken}
            blind |= inner.open
        for name in _find_literal_keys(node, keywords):
            handled = True
            found.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    if blind or not (forwarded or handled):
        behind, still_open = _inspect_returned_class(target, depth)
        return {**behind, **found}, still_open
    return found, False


_NOTHING: Any = object()  # a base class that takes no arguments


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _find_literal_keys(node: ast.AST, keywords: str) -> list[str]:
    """Return the literal keys that an expression reads from `kwargs`: by `pop`, `get` or index."""
    place: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is(node.func.value, keywords):
        place = node.args[0] if node.func.attr in {"pop", "get"} and node.args else None
    elif isinstance(node, ast.Subscript) and _is(node.value, keywords) and isinstance(node.ctx, ast.Load):
        place = node.slice
    return [str(place.value)] if isinstance(place, ast.Constant) else []


def _resolve(node: ast.expr, function: Callable[..., Any], owner: type | None, target: Any) -> Any:
    """Return the callable that an expression in a function's body names; None where it is unknown."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and _is(node.value.func, "super"):
        made = target.cls if isinstance(target, _SuperConstructor) else target
        if owner is None or not isinstance(made, type):
            return None
        later = made.__mro__[made.__mro__.index(owner) + 1 :]
        after = next((base for base in later if node.attr in base.__dict__), object)
        if after is object or (after.__module__ == "torch.nn.modules.module" and after.__name__ == "Module"):
            return _NOTHING
        constructor = after.__dict__[node.attr]
        return _SuperConstructor(made, after, constructor) if callable(constructor) else None
    if isinstance(node, ast.Name):
        names = getattr(function, "__globals__", {})
        found = names.get(node.id)
        return found if callable(found) else None
    if isinstance(node, ast.Attribute):
        base = _resolve_any(node.value, function)
        found = getattr(base, node.attr, None) if base is not None else None
        return found if callable(found) else None
    return None


def _resolve_any(node: ast.expr, function: Callable[..., Any]) -> Any:
    if isinstance(node, ast.Name):
        return getattr(function, "__globals__", {}).get(node.id)
    if isinstance(node, ast.Attribute):
        base = _resolve_any(node.value, function)
        return getattr(base, node.attr, None) if base is not None else None
    return None


def _inspect_returned_class(target: Callable[..., Any], depth: int) -> tuple[Parameters, bool]:
    """Return the parameters of a function's annotated return class, and whether others are open."""
    made = None if isinstance(target, type | _SuperConstructor) else find_returned_class(target)
    if made is None or depth >= _DEPTH or made.__module__.startswith("torch.nn"):
        return {}, True
    inner = inspect_parameters(made, depth + 1)
    return (inner.named, inner.open) if inner is not None else ({}, True)


def find_returned_class(target: Callable[..., Any]) -> type | None:
    """Return the class that a function is annotated to return; None where there is none."""
    function = inspect.unwrap(target)
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307  source code, already imported
        except Exception:  # noqa: BLE001
            return None
    return annotation if isinstance(annotation, type) else None


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
