"""What a callable takes, also where it hands its `**kwargs` on, and whether a plain value fits an annotation."""

import ast
import collections.abc
import dataclasses
import enum
import inspect
import numbers
import os
import pathlib
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
class _Base:
    """The constructor that `super().__init__` means in a class that `owner` is a base of."""

    cls: type
    owner: type
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Never called; it stands where callables stand."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Accepts:
    """What a callable takes by name.

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
        """Whether there is an `*args`."""
        return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in self.own.values())

    @property
    def named(self) -> Parameters:
        """What may be given by name."""
        unnamed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {name: p for name, p in {**self.further, **self.own}.items() if p.kind not in unnamed}


def accepts(target: Callable[..., Any], depth: int = 0) -> Accepts | None:
    """What `target` takes; None where it has no signature that Python can see."""
    try:
        signature = inspect.signature(
            types.MethodType(target.function, target) if isinstance(target, _Base) else target
        )
    except (ValueError, TypeError):
        return None
    own = {name: _typed(parameter, target) for name, parameter in signature.parameters.items()}
    keywords = next((name for name, p in own.items() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    if keywords is None:
        return Accepts(own, {}, open=False)
    further, still_open = _through(target, keywords, depth)
    return Accepts(own, further, still_open)


def _typed(parameter: inspect.Parameter, target: Callable[..., Any]) -> inspect.Parameter:
    """The parameter with its annotation read where it is written as text."""
    written = parameter.annotation
    if not isinstance(written, str) and "ForwardRef(" not in repr(written):
        return parameter
    function, _ = _body(target)
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


def kind_of(parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter; without one, the type of a default that says more than a plain value does."""
    default = parameter.default
    if parameter.annotation is not inspect.Parameter.empty or default is inspect.Parameter.empty:
        return parameter.annotation
    if isinstance(default, type):
        return type
    own = type(default)
    named = (own.__module__, own.__name__) in (("torch", "device"), ("torch", "dtype"))
    module = any(base.__module__ == "torch.nn.modules.module" for base in own.__mro__)
    return own if isinstance(default, _BY_DEFAULT) or named or module else inspect.Parameter.empty


def wants_class(annotation: Any) -> bool:
    """Whether an annotation asks for a class, and not for an object of one."""
    return annotation is type or any(
        get_origin(kind) is type or kind is type for kind in (annotation, *get_args(annotation))
    )


class _Unfit:
    """Stands for a value that a parameter cannot take."""


UNFIT: Any = _Unfit()


def converted(value: Any, annotation: Any) -> Any:
    """A plain value as the annotation says it: an enum's member, a tuple, a path, a device, a dtype; else itself.

    `UNFIT` where the annotation names something else that no plain value is.
    """
    annotation = getattr(annotation, "__value__", getattr(annotation, "__supertype__", annotation))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return converted(value, args[0])
    if origin in (Union, types.UnionType):
        return _of_union(value, args)
    if origin is type or annotation is type:
        return value if isinstance(value, type) else UNFIT
    container = origin or annotation
    if container in (tuple, set, frozenset) and isinstance(value, list):
        return container(_members(value, args, container))
    if isinstance(value, list) and args and container in (list, *_ITERABLE):
        return _members(value, args, container)
    if isinstance(value, dict) and len(args) == 2 and container in (dict, collections.abc.Mapping):
        return {name: inner if (made := converted(inner, args[1])) is UNFIT else made for name, inner in value.items()}
    return _object(value, annotation) if isinstance(annotation, type) else value


def _members(value: list[Any], args: tuple[Any, ...], container: Any) -> list[Any]:
    kinds = [kind for kind in args if kind is not Ellipsis]
    if not kinds:
        return value
    each = kinds if container is tuple and Ellipsis not in args and len(kinds) == len(value) else kinds[:1] * len(value)
    made = [converted(member, kind) for member, kind in zip(value, each, strict=True)]
    return [member if one is UNFIT else one for member, one in zip(value, made, strict=True)]


def _of_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    """An enum's member where there is one, the value where a plain type takes it, else the first that takes it."""
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
    for kind in enums:
        if (member := converted(value, kind)) is not UNFIT:
            return member
    if any(kind in _PLAIN and _PLAIN[kind](value) for kind in kinds):
        return value
    for kind in kinds:
        if kind not in _PLAIN and kind not in enums and _fits(value, kind, durations=False):
            made = converted(value, kind)
            if made is not UNFIT:
                return made
    return UNFIT if all(isinstance(kind, type) for kind in kinds) else value


def _object(value: Any, kind: type) -> Any:
    """A plain value as an object of a class that can be written as one."""
    if kind in _PLAIN or kind is object:
        return value
    if issubclass(kind, enum.Enum):
        return _enum_member(value, kind)
    try:
        if isinstance(value, kind):
            return value
    except TypeError:  # a protocol, a TypedDict
        return value
    if (kind.__module__, kind.__name__) in (("torch", "device"), ("torch", "dtype")):
        return _of_torch(value, kind) if isinstance(value, str) else value
    if issubclass(kind, pathlib.PurePath):
        return kind(value) if isinstance(value, str) else UNFIT
    if kind is os.PathLike:
        return pathlib.Path(value) if isinstance(value, str) else UNFIT
    return UNFIT if _surely_fails(value, kind) else value


def _surely_fails(value: Any, kind: type) -> bool:
    """Whether a plain value can never stand for an object of a class: libraries take more than they annotate."""
    if not isinstance(value, str | int | float | list | dict) or kind.__module__ == "builtins":
        return False
    if kind.__module__.startswith("torch"):  # it says Tensor where it takes a number too
        return kind.__name__[0].isupper() and isinstance(value, str | list | dict)
    return not _of_a_library(kind)


@cache
def _of_a_library(kind: type) -> bool:
    """Whether a class comes with Python or an installed package, and not from the user's own files."""
    top = kind.__module__.partition(".")[0]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return top in sys.stdlib_module_names or not file or "site-packages" in file or "dist-packages" in file


def _enum_member(value: Any, kind: type[enum.Enum]) -> Any:
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


def _of_torch(value: str, kind: type) -> Any:
    torch = sys.modules.get("torch")
    if kind.__name__ == "device":
        try:
            return kind(value)
        except (RuntimeError, ValueError):
            return UNFIT
    found = getattr(torch, value.removeprefix("torch."), None)
    return found if isinstance(found, kind) else UNFIT


def _body(target: Callable[..., Any]) -> tuple[Callable[..., Any] | None, type | None]:
    """The Python function that runs, and the class that defines it."""
    if isinstance(target, _Base):
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
def _tree(function: Callable[..., Any]) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _through(target: Callable[..., Any], keywords: str, depth: int) -> tuple[Parameters, bool]:
    """The parameters that `**keywords` of `target` reaches, and whether it reaches others that cannot be seen."""
    function, owner = _body(target)
    tree = _tree(function) if function is not None and depth < _DEPTH else None
    if function is None or tree is None:
        return _behind(target, depth)
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
                else accepts(callee, depth + 1)
                if callee is not _NOTHING
                else Accepts({}, {}, open=False)
            )
            if inner is None:
                blind = True
                continue
            taken = {k.arg for k in node.keywords if k.arg} | set(inner.positional[: len(node.args)])
            found |= {name: p for name, p in inner.named.items() if name not in taken}
            blind |= inner.open
        for name in _literals(node, keywords):
            handled = True
            found.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    if blind or not (forwarded or handled):
        behind, still_open = _behind(target, depth)
        return {**behind, **found}, still_open
    return found, False


_NOTHING: Any = object()  # a base class that takes no arguments


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _literals(node: ast.AST, keywords: str) -> list[str]:
    """`kwargs.pop("name")`, `kwargs.get("name")`, `kwargs["name"]`."""
    place: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is(node.func.value, keywords):
        place = node.args[0] if node.func.attr in {"pop", "get"} and node.args else None
    elif isinstance(node, ast.Subscript) and _is(node.value, keywords) and isinstance(node.ctx, ast.Load):
        place = node.slice
    return [str(place.value)] if isinstance(place, ast.Constant) else []


def _resolve(node: ast.expr, function: Callable[..., Any], owner: type | None, target: Any) -> Any:
    """The callable that an expression in a function's body names; None where that is not known before it runs."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and _is(node.value.func, "super"):
        made = target.cls if isinstance(target, _Base) else target
        if owner is None or not isinstance(made, type):
            return None
        later = made.__mro__[made.__mro__.index(owner) + 1 :]
        after = next((base for base in later if node.attr in base.__dict__), object)
        if after is object or (after.__module__ == "torch.nn.modules.module" and after.__name__ == "Module"):
            return _NOTHING
        constructor = after.__dict__[node.attr]
        return _Base(made, after, constructor) if callable(constructor) else None
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


def _behind(target: Callable[..., Any], depth: int) -> tuple[Parameters, bool]:
    """The parameters of the class that a function is annotated to return."""
    made = None if isinstance(target, type | _Base) else returned_class(target)
    if made is None or depth >= _DEPTH or made.__module__.startswith("torch.nn"):
        return {}, True
    inner = accepts(made, depth + 1)
    return (inner.named, inner.open) if inner is not None else ({}, True)


def returned_class(target: Callable[..., Any]) -> type | None:
    """The class that a function's annotation says it returns."""
    function = inspect.unwrap(target)
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307  source code, already imported
        except Exception:  # noqa: BLE001
            return None
    return annotation if isinstance(annotation, type) else None


def misfit(value: Any, parameter: inspect.Parameter, *, durations: bool) -> str:
    """What a parameter takes, in words, where a plain value is certainly something else; empty where it may fit."""
    default = parameter.default
    if type(value) is type(default) and not isinstance(value, str):
        return ""
    if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        return ""
    annotation = kind_of(parameter)
    if annotation is inspect.Parameter.empty:
        number = isinstance(default, int | float) or (
            default is not inspect.Parameter.empty and isinstance(default, bool)
        )
        wrong = number and isinstance(value, str) and not (durations and is_duration(value))
        return "must be " + _words(type(default)) if wrong else ""
    if value is None:
        return "" if annotation not in (bool, int, float, str) or default is None else "must be " + _words(annotation)
    return "" if _fits(value, annotation, durations=durations) else "must be " + _words(annotation)


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
    """Whether a plain value may be what an annotation says; what is not understood fits.

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
    if (origin or annotation) in (list, tuple, set, *_ITERABLE):
        return _fits_container(value, origin or annotation, args, durations=durations)
    return converted(value, annotation) is not UNFIT


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


def _words(annotation: Any) -> str:  # noqa: C901  one kind after another
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(kind) for kind in args))
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in args)
    if origin is type or annotation is type:
        return "a class (`{_target_: …}`)"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(f"`{choice}`" for choice in choices(annotation))
    if isinstance(annotation, type) and (issubclass(annotation, pathlib.PurePath) or annotation is os.PathLike):
        return "a path"
    if (getattr(annotation, "__module__", ""), getattr(annotation, "__name__", "")) == ("torch", "device"):
        return "a device, such as `cpu` or `cuda:0`"
    plain = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    if (origin or annotation) is collections.abc.Callable:
        return "a function or an object to call (`{_target_: …}`)"
    if (origin or annotation) in (list, tuple, set, *_ITERABLE):
        members = [plain[kind].split()[-1] for kind in args if kind in plain and kind not in (bool, type(None))]
        if origin is tuple and Ellipsis not in args:
            return f"a list of {len(args)} {members[0] if members else 'value'}s"
        return f"a list of {members[0]}s" if members else "a list"
    return getattr(annotation, "__name__", str(annotation))


def choices(annotation: Any) -> list[str]:
    """The texts that a `Literal` or an enum of texts allows."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        plain = all(isinstance(member.value, str | int | float) for member in annotation)
        return [str(member.value) if plain else name for name, member in annotation.__members__.items()]
    return [choice for kind in get_args(annotation) for choice in choices(kind)]
