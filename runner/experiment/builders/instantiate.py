"""Instantiation of `_target_` nodes: the one module that builds the objects named in a config."""

import functools
import inspect
import itertools
import re
import typing
from collections.abc import Mapping
from typing import Any

import torch

from runner.config.check.annotations import (
    UNFIT,
    convert,
    infer_annotation,
    takes_class_keys,
    takes_steps,
    wants_class,
)
from runner.config.check.imports import import_object
from runner.config.check.signature import CallableParameters, inspect_parameters
from runner.core import rng
from runner.core.durations import is_duration
from runner.core.errors import RunError
from runner.core.progress import wants_progress
from runner.core.shared_answers import ask_once
from runner.experiment.builders.lending import get_loan

Trust = tuple[str, ...]


def instantiate(
    node: Mapping[str, Any],
    key: str,
    *supplied: Any,
    trust: Trust = (),
    call: bool = True,
    given: Mapping[str, Any] | None = None,
    seed: int | None = None,
    stream: tuple[str, ...] = (),
) -> Any:
    """Instantiate a `_target_` node: build a class; call a function, or bind it if `call` is false.

    Its own `_partial_: true` says nothing more: what it is bound to first is passed here. Nested, it is kept. With
    `_partial_: false` a function makes what the slot wants, as `timm.data.create_transform` makes a transform.

    Args:
        node: `_target_` and the arguments; nested nodes are built first.
        key: the node's place in the config, for messages.
        supplied: positional arguments that the runner gives.
        trust: patterns of names trusted on the command line.
        given: arguments that the runner gives by name.
        call: whether a function in this slot is to be called now (a model) or with each sample or tensor (a transform).
        seed: the constructor draws from the random stream `(seed, key)`; None: from the caller's.
        stream: names of the stream in place of `key`.

    Raises:
        RunError: the callable refuses its arguments.
    """
    plain = {name: value for name, value in node.items() if name != "_partial_"}
    call = call or node.get("_partial_") is False
    if seed is not None:
        with rng.stream(rng.derive_key(seed, *(stream or (key,)))):
            made = _instantiate_node(plain, key, *supplied, trust=trust, call=call, given=given)
    else:
        made = _instantiate_node(plain, key, *supplied, trust=trust, call=call, given=given)
    return get_loan().bind(made, key)


def _instantiate_node(
    node: Mapping[str, Any],
    key: str,
    *supplied: Any,
    trust: Trust = (),
    call: bool = True,
    given: Mapping[str, Any] | None = None,
) -> Any:
    target = import_object(node["_target_"], trust)
    takes = ask_once(("parameters", node["_target_"], trust), lambda: inspect_parameters(target))
    names = [name for name in node if name not in ("_target_", "_args_", "_partial_")]
    kinds, by_position = (
        _get_annotations(takes, {*names, *(given or {})}, len(supplied), len(node.get("_args_", [])))
        if names or "_args_" in node
        else ({}, [])
    )
    counted = {name: _count_durations(node[name], f"{key}.{name}", takes, name) for name in names}
    arguments = {name: build_argument(counted[name], f"{key}.{name}", kinds.get(name), trust) for name in names} | dict(
        given or {}
    )
    if takes is not None and "progress" not in arguments and wants_progress_of(takes):
        arguments["progress"] = get_loan().give(key)
    further = node.get("_args_", [])
    if takes is not None:
        places = itertools.zip_longest(further, takes.positional[len(supplied) :][: len(further)], fillvalue="")
        further = [_count_durations(value, f"{key}._args_", takes, place) for value, place in places]
    placed = itertools.zip_longest(further, by_position[: len(further)])
    positional = [build_argument(value, f"{key}._args_", kind, trust) for value, kind in placed]
    bound = node.get("_partial_", not (call or isinstance(target, type)))
    if bound:
        return functools.partial(target, *supplied, *positional, **arguments) if arguments or positional else target
    try:
        made = target(*supplied, *positional, **arguments)
    except Exception as error:
        raise InstantiationError(key, node, error, _describe_manual_download(target, arguments, error)) from error
    get_loan().note(made, key)
    return made


class InstantiationError(RunError):
    """Error of a callable that refuses its arguments, with the config's `key` and `node` and the `cause`."""

    def __init__(self, key: str, node: Mapping[str, Any], cause: Exception, remedy: str = "") -> None:
        self.key, self.node, self.cause = key, node, cause
        said = re.sub(r"`(?=\w+=\w+`)", f"`{key}.", str(cause)) if isinstance(cause, ValueError) else str(cause)
        self.said = f"{type(cause).__name__}: {said}"
        super().__init__(f"{key}: {node['_target_']} refused: {self.said}{remedy}")


def _describe_manual_download(target: Any, arguments: Mapping[str, Any], error: Exception) -> str:
    """Describe the manual download of a torchvision dataset after a failed one; empty for other errors."""
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


def build_argument(value: Any, key: str, annotation: Any, trust: Trust = ()) -> Any:
    """Build an argument: instantiate nested nodes, resolve dtype names, convert to the annotation."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            if wants_class(annotation):
                value = {"_partial_": True, **value}
            return _instantiate_node(value, key, trust=trust, call="Callable" not in str(annotation))
        members = {n: build_argument(member, f"{key}.{n}", None, trust) for n, member in value.items()}
        return _convert_value(_resolve_class_keys(members, annotation, trust), annotation)
    if isinstance(value, list | tuple):
        return _convert_value(
            [build_argument(v, f"{key}[{i}]", _get_member_annotation(annotation), trust) for i, v in enumerate(value)],
            annotation,
        )
    if isinstance(value, str) and value.startswith("torch.") and not _is_text(annotation):
        dtype = getattr(torch, value.removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    return _convert_value(value, annotation)


def _resolve_class_keys(members: dict[Any, Any], annotation: Any, trust: Trust) -> dict[Any, Any]:
    """Replace keys that name classes by these classes, if the annotation says so or all are of torch.nn."""
    named = takes_class_keys(annotation) or (members and all(str(name).startswith("torch.nn.") for name in members))
    return {import_object(name, trust): member for name, member in members.items()} if named else members


def _convert_value(value: Any, annotation: Any) -> Any:
    made = value if annotation is None else convert(value, annotation)
    return value if made is UNFIT else made


def _get_member_annotation(annotation: Any) -> Any:
    """Return a list's annotation for its members if it wants callables or classes, else None."""
    return annotation if "Callable" in str(annotation) or wants_class(annotation) else None


def _is_text(annotation: Any) -> bool:
    return annotation is str or (str in typing.get_args(annotation) and "dtype" not in str(annotation))


def wants_progress_of(takes: CallableParameters) -> bool:
    """Return whether one of the parameters gets the progress of training."""
    parameter = takes.named.get("progress")
    return parameter is not None and wants_progress(parameter)


def _count_durations(value: Any, key: str, takes: CallableParameters | None, name: str) -> Any:
    """Replace durations (alone, in lists, in mappings) by optimizer steps where the parameter counts."""
    if key.startswith(("sweep.", "optimizer.match")):
        return value
    parameter = None if takes is None else takes.named.get(name)
    if parameter is not None and not takes_steps(parameter):
        return value

    def count(part: Any, place: str) -> Any:
        if isinstance(part, list | tuple):
            return [count(member, f"{place}[{number}]") for number, member in enumerate(part)]
        if isinstance(part, Mapping) and "_target_" not in part:
            return {label: count(member, f"{place}.{label}") for label, member in part.items()}
        return get_loan().count_steps(part, place) if is_duration(part) else part

    return count(value, key)


def _get_annotations(
    takes: CallableParameters | None, named: set[str], supplied: int, further: int
) -> tuple[dict[str, Any], list[Any]]:
    """Return parameter annotations by name, and by position for the unnamed ones after `supplied`."""
    if takes is None:
        return {}, []
    kinds = {name: infer_annotation(parameter) for name, parameter in {**takes.further, **takes.own}.items()}
    kinds = {name: None if kind is inspect.Parameter.empty else kind for name, kind in kinds.items()}
    by_position = [kinds[name] for name in takes.positional[supplied:] if name not in named]
    for parameter in takes.own.values():  # `*args` and `**kwargs`, each of which is annotated as one of its members
        said = parameter.annotation is not inspect.Parameter.empty
        if said and parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kinds = dict.fromkeys(named - {*takes.positional, *takes.named}, parameter.annotation) | kinds
        elif said and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            by_position += [parameter.annotation] * further
    return kinds, by_position
