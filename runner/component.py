"""A `_target_` node as a live object: the one place that instantiates what a config names."""

import enum
import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Any

import torch

from runner.config.trust import locate
from runner.errors import RunError

Trust = tuple[str, ...]


def component(
    node: Mapping[str, Any],
    key: str,
    *supplied: Any,
    trust: Trust = (),
    call: bool = True,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """What a `_target_` node describes: a class is instantiated; a function is called, or bound where `call` is false.

    Its own `_partial_` says nothing more: what it is bound to first is passed here. Nested, it is kept.

    Args:
        node: `_target_` and the arguments; nested nodes are built first.
        key: the node's place in the config, for messages.
        supplied: positional arguments that the runner gives.
        trust: patterns of names trusted on the command line.
        given: arguments that the runner gives by name.
        call: whether a function in this slot is to be called now (a model) or with each sample or tensor (a transform).

    Raises:
        RunError: the callable refuses its arguments.
    """
    plain = {name: value for name, value in node.items() if name != "_partial_"}
    return _made(plain, key, *supplied, trust=trust, call=call, given=given)


def _made(
    node: Mapping[str, Any],
    key: str,
    *supplied: Any,
    trust: Trust = (),
    call: bool = True,
    given: Mapping[str, Any] | None = None,
) -> Any:
    target = locate(node["_target_"], trust)
    arguments = {
        name: argument(value, f"{key}.{name}", _annotation(target, name), trust)
        for name, value in node.items()
        if name not in ("_target_", "_args_", "_partial_")
    } | dict(given or {})
    positional = [argument(value, f"{key}._args_", None, trust) for value in node.get("_args_", [])]
    bound = node.get("_partial_", not (call or isinstance(target, type)))
    if bound:
        return functools.partial(target, *supplied, *positional, **arguments) if arguments or positional else target
    try:
        return target(*supplied, *positional, **arguments)
    except Exception as error:
        raise Refused(key, node, error, _fetch_by_hand(target, arguments, error)) from error


class Refused(RunError):
    """A callable did not take its arguments; `key` and `node` say which, `cause` what it said."""

    def __init__(self, key: str, node: Mapping[str, Any], cause: Exception, remedy: str = "") -> None:
        self.key, self.node, self.cause = key, node, cause
        self.said = f"{type(cause).__name__}: {cause}"
        super().__init__(f"{key}: {node['_target_']} refused: {self.said}{remedy}")


def _fetch_by_hand(target: Any, arguments: Mapping[str, Any], error: Exception) -> str:
    """What to do where a dataset of torchvision could not be downloaded: which file to bring, and where to."""
    offline = isinstance(error, OSError) or "download" in str(error).lower() or "not found" in str(error).lower()
    root, archive = arguments.get("root"), getattr(target, "filename", None)
    if not offline or root is None:
        return ""
    if archive is None:
        return f". Where this machine cannot download, bring the files from another into `{root}/`"
    checksum = f" (MD5 {target.tgz_md5})" if hasattr(target, "tgz_md5") else ""
    return (
        f". Where this machine cannot download, fetch {getattr(target, 'url', archive)} on another and put "
        f"{archive}{checksum} into `{root}/`: it is unpacked from there, and nothing is downloaded"
    )


def argument(value: Any, key: str, annotation: Any, trust: Trust = ()) -> Any:
    """An argument ready to be passed: nested components are built; names of dtypes and enum members are those."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _made(value, key, trust=trust, call="Callable" not in str(annotation))
        return {name: argument(member, f"{key}.{name}", None, trust) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [argument(member, f"{key}[{i}]", annotation, trust) for i, member in enumerate(value)]
    if isinstance(value, str) and value.startswith("torch."):
        dtype = getattr(torch, value.removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    return _member(value, annotation) if isinstance(value, str) else value


def _member(text: str, annotation: Any) -> Any:
    """The enum member that a text means by its value or its name, where the annotation has an enum; else the text."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            for member in kind:
                if text in (member.value, member.name, member.name.lower()):
                    return member
    return text


def _annotation(target: Any, name: str) -> Any:
    try:
        parameter = inspect.signature(target).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return None if parameter is None else parameter.annotation
