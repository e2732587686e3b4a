"""Signatures of callables, followed through `**kwargs`."""

import ast
import collections.abc
import dataclasses
import inspect
import os
import pathlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

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


# Annotations that are narrower than what the class documents and takes.
DOCUMENTED = {
    ("torchvision.transforms.v2._augment.RandomErasing", "value"): float
    | typing.Literal["random"]
    | collections.abc.Sequence[float]
}


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
        return CallableParameters(own, {}, open=_is_wrapped_to_take_more(target))
    further, still_open = _trace_keywords(target, keywords, depth)
    return CallableParameters(own, further, still_open)


def _is_wrapped_to_take_more(target: Any) -> bool:
    """Return whether a decorator of a constructor reads names by itself that its signature lacks.

    Configurations of `transformers` do: each takes `num_labels` beside its fields.
    """
    if not isinstance(target, type):
        return False
    function: Any = next((vars(owner)["__init__"] for owner in target.__mro__ if "__init__" in vars(owner)), None)
    while hasattr(function, "__wrapped__"):
        if _is_reading_keywords(function):
            return True
        function = function.__wrapped__
    return False


def _is_reading_keywords(function: Any) -> bool:
    """Return whether a function goes through its `**kwargs` by itself, in place of passing them on alone."""
    code = getattr(function, "__code__", None)
    if code is None or not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    keywords = code.co_varnames[code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return False
    return any(
        isinstance(node, ast.Attribute) and _is(node.value, keywords) and node.attr == "items"
        for node in ast.walk(tree)
    )


def _resolve_annotation(parameter: inspect.Parameter, target: Callable[..., Any]) -> inspect.Parameter:
    """Return the parameter with an annotation that is written as text resolved."""
    home = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if (home, parameter.name) in DOCUMENTED:
        return parameter.replace(annotation=DOCUMENTED[home, parameter.name])
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
            placed = [argument for argument in node.args if not isinstance(argument, ast.Starred)]  # not `*args`
            taken = {k.arg for k in node.keywords if k.arg} | set(inner.positional[: len(placed)])
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
