"""Check a component's target against its slot and its arguments against the signature, by import."""

import enum
import inspect
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.check.annotations import (
    UNFIT,
    convert,
    describe_misfit,
    infer_annotation,
    list_choices,
    takes_class_keys,
    takes_steps,
    wants_class,
)
from runner.config.check.class_keys import explain_class_key
from runner.config.check.component_settings import strip_settings
from runner.config.check.imports import LIBRARIES, TargetError, describe_trust, import_object
from runner.config.check.signature import CallableParameters, inspect_parameters
from runner.config.check.slots import (
    can_fit,
    explain_misplaced,
    find_nested_slot,
    get_base_classes,
    get_defining_module,
    suggest_elsewhere,
)
from runner.config.component_settings import ACTION_ARGUMENTS, SETTINGS
from runner.config.reading import format_yaml
from runner.config.scalars import as_number
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ABSENT, Kind, Mistake
from runner.core.progress import wants_progress

Path = tuple[str | int, ...]


_KEYS = ("_target_", "_args_", "_partial_", "_from_", "_until_")


# How many arguments the runner gives by position: to the constructor, and to the call of a bound function.
_CONSTRUCTOR = {"optimizer": 1, "scheduler": 1}


_CALL = {
    "transform": 1,
    "loss": 2,
    "init": 1,
    "function": 1,
    "module_function": 1,
    "views": 1,
    "step": 3,
    "hook": 3,
    "gradient_hook": 2,
}


_SUPPLIED = {
    "params": "the model's parameters",
    "optimizer": "the optimizer",
    "update": "the update of an optimizer",
    "batch": "a batch of training samples",
    "data_source": "the dataset",
}


OLD_ARGUMENTS = {
    "size_average": "reduction",
    "reduce": "reduction",
    "resample": "interpolation",
    "fillcolor": "fill",
    "learning_rate": "lr",
    "pretrained": "weights",
    "n_classes": "num_classes",
    "nclass": "num_classes",
    "num_class": "num_classes",
    "classes": "num_classes",
    "wd": "weight_decay",
    "dropout_rate": "dropout",
    "filters": "out_channels",
    "units": "out_features",
}


@dataclass
class PlacedMistakes:
    """Mistakes of components, each with its path."""

    mistakes: list[tuple[Path, Mistake]] = field(default_factory=list)
    own_step: bool = False  # the step is the user's own, and may call the loss with whatever it likes
    untrusted: frozenset[Path] = frozenset()  # components whose names were refused before anything was imported

    def wrong(
        self,
        path: Path,
        rule: str,
        value: object = ABSENT,
        *,
        suggestion: str = "",
        remedy: str = "",
        where: str = "",
        kind: Kind = "value",
    ) -> None:
        """Record a mistake at a path."""
        key = ".".join(map(str, path))
        remedy = remedy or format_suggestion(suggestion)
        self.mistakes.append((path, Mistake(key, rule, value, where, remedy, suggestion, kind)))


def check_component(path: Path, slot: str, node: dict[str, Any], trust: Sequence[str], found: PlacedMistakes) -> Any:
    """Check a component and all nested ones; return the object of its `_target_`, or None."""
    target = _import_target(path, slot, node, trust, found)
    takes = None if target is None else inspect_parameters(target)
    if slot in SETTINGS:
        node = strip_settings(path, slot, node, takes, found.wrong)
    if target is not None and takes is not None:
        _check_arguments(path, slot, node, target, takes, found)
    named = takes.named if takes is not None else {}
    several = slot == "optimizer" and any(isinstance(value, dict) and "_target_" in value for value in node.values())
    for name, value in node.items():
        if several and name not in (*_KEYS, *named) and not isinstance(value, dict):
            found.wrong(
                (*path, name), "must be an optimizer (a mapping with `_target_` and `match`)", value, kind="slot"
            )
        elif name == "_partial_":
            if value is True and slot in _BUILT:
                rule = f"must not be true: {_BUILT[slot]} is wanted here"
                found.wrong(
                    (*path, name),
                    rule,
                    remedy="leave `_partial_` out: the runner passes what is missing itself",
                    kind="conflict",
                )
        elif name not in ("_target_", "_from_", "_until_"):
            parameter = named.get(name)
            _check_nested((*path, name), value, infer_annotation(parameter) if parameter else None, slot, trust, found)
    return target


def check_module_type(path: Path, name: str, trust: Sequence[str], found: PlacedMistakes) -> None:
    """Check that the `module` of an init rule is a type of module."""
    try:
        kind = import_object(name, trust)
    except TargetError as error:
        found.wrong(
            path,
            error.rule,
            name,
            suggestion=error.suggestion,
            remedy=error.remedy,
            where=error.where,
            kind=error.kind,
        )
        return
    if not (isinstance(kind, type) and issubclass(kind, get_base_classes()["model"])):
        found.wrong(path, "must be a type of module, such as torch.nn.Conv2d", name, kind="slot")


def check_group_settings(
    optimizer: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Any]],
    trust: Sequence[str],
    found: PlacedMistakes,
    place: Path = (),
) -> None:
    """Check the types of param-group settings that the optimizer's signature names."""
    try:
        takes = inspect_parameters(import_object(optimizer["_target_"], trust))
    except (TargetError, KeyError):  # said already
        return
    for label, settings in groups.items():
        for name, value in settings.items():
            if takes is not None and name in takes.named:
                _check_value((*place, "param_groups", label, name), value, takes.named[name], "optimizer", found)


def _check_nested(
    path: Path, value: Any, annotation: Any, slot: str, trust: Sequence[str], found: PlacedMistakes
) -> None:
    if isinstance(value, dict):
        if "_target_" in value:
            own = find_nested_slot(annotation, slot)
            if wants_class(annotation):
                value = {"_partial_": True, **value}  # the class itself is handed over
            check_component(path, own, _strip_match(path, value, found) if own == MEMBER else value, trust, found)
            return
        for name, inner in value.items():
            if takes_class_keys(annotation) and (wrong := explain_class_key(name, trust)) is not None:
                found.wrong(
                    (*path, name), wrong.rule, name, suggestion=wrong.suggestion, remedy=wrong.remedy, kind="slot"
                )
            _check_nested((*path, name), inner, annotation, slot, trust, found)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_nested((*path, index), inner, annotation, slot, trust, found)


# Parameters whose annotation asks for an object: a bound constructor is none. (A scheduler in a scheduler and one of
# several optimizers are completed by the runner.)
_BUILT = {
    "nested sampler": "a sampler",
    "nested dataset": "a dataset",
    "nested metric": "a metric",
    "nested tensor": "a tensor",
}


MEMBER = "nested optimizer"  # one of several optimizers, with keys that are the runner's own:


MEMBER_KEYS = ("match", "min_dims", "max_dims", "param_groups", "scheduler")


def _strip_match(path: Path, node: dict[str, Any], found: PlacedMistakes) -> dict[str, Any]:
    """Return one of several optimizers without the runner's own keys; check that it has a `match`."""
    if "match" not in node:
        meant = find_nearest("match", node)
        if meant:
            rule, right = f"is not an argument of `{node['_target_']}`", ".".join(map(str, (*path, "match")))
            found.wrong((*path, meant), rule, node[meant], suggestion=right, kind="unknown-argument")
            return {name: value for name, value in node.items() if name != meant}
        found.wrong(
            (*path, "match"), "must be given: a pattern of the names of the parameters that it takes", kind="missing"
        )
    return {name: value for name, value in node.items() if name not in MEMBER_KEYS}


def _import_target(path: Path, slot: str, node: dict[str, Any], trust: Sequence[str], found: PlacedMistakes) -> Any:
    name = node["_target_"]
    here = (*path, "_target_")
    if path in found.untrusted:
        return None
    try:
        target = import_object(name, trust)
    except TargetError as error:
        right = error.suggestion or ("" if error.where else suggest_elsewhere(slot, name))
        found.wrong(here, error.rule, name, suggestion=right, remedy=error.remedy, where=error.where, kind=error.kind)
        return None
    problem = explain_misplaced(slot, target, name, trust)
    if problem:
        refused = can_fit(slot.removeprefix("nested "), target) and name.partition(".")[0] in LIBRARIES
        remedy = describe_trust(name) if refused else ""
        found.wrong(
            here, problem, name, suggestion="" if refused else suggest_elsewhere(slot, name), remedy=remedy, kind="slot"
        )
        return None
    return target


def _check_arguments(
    path: Path, slot: str, node: dict[str, Any], target: Any, takes: CallableParameters, found: PlacedMistakes
) -> None:
    makes = node.get("_partial_") is False and not isinstance(target, type)  # a function that makes what is wanted
    before = [] if makes or (slot == "loss" and found.own_step) else _find_positional(slot, target, takes)
    positional = node.get("_args_", [])
    free = [name for name in takes.positional if name not in before]
    filled = [*before, *free[: len(positional)]]
    room = len(free)
    if len(positional) > room and not takes.takes_any_number:
        found.wrong((*path, "_args_"), f"may have at most {room} values", len(positional))
    refused = _refuse_weights(path, node, target, takes, found)
    for index, (value, name) in enumerate(zip(positional, free, strict=False)):
        _check_value((*path, "_args_", index), value, takes.own[name], slot, found)
    for name, value in node.items():
        if name in _KEYS or name in refused:
            continue
        here = (*path, name)
        parameter = takes.named.get(name)
        if name in before:
            found.wrong(
                here,
                f"is supplied by the runner ({_SUPPLIED.get(name, 'each call gives it')}): leave it out",
                kind="conflict",
            )
        elif name in filled:
            found.wrong(here, "is already given in `_args_`", kind="conflict")
        elif parameter is not None:
            _check_value(here, value, parameter, slot, found)
        elif not takes.open:
            _note_unknown_argument(
                here, name, value, node["_target_"], [n for n in takes.named if n not in before], found
            )
    if not (slot.startswith("nested") and node.get("_partial_")):
        _check_missing(path, slot, node, target, takes, filled, found)


def _find_positional(slot: str, target: Any, takes: CallableParameters) -> list[str]:
    """Return the names of the parameters that the runner fills."""
    own = slot.removeprefix("nested ")
    by_name = {"scheduler": "optimizer", "sampler": "data_source"}.get(own)
    if slot == MEMBER:
        return takes.positional[:1]
    if own == "action":
        return [] if isinstance(target, type) else [name for name in takes.named if name in ACTION_ARGUMENTS]
    if own == "step" and not isinstance(target, type):
        return [*takes.positional[:3], *(name for name in ("optimizer", "update") if name in takes.named)]
    if own == "module_function" and not isinstance(target, type) and "batch" in takes.named:
        return [*takes.positional[:1], "batch"]
    if by_name in takes.own:
        return [str(by_name)]
    if isinstance(target, type):
        count = _CONSTRUCTOR.get(own, 0) if own == slot else 0
    else:
        count = _CONSTRUCTOR.get(own, _CALL.get(own, 0))
    return takes.positional[:count]


def _check_missing(
    path: Path,
    slot: str,
    node: dict[str, Any],
    target: Any,
    takes: CallableParameters,
    filled: list[str],
    found: PlacedMistakes,
) -> None:
    handed_over = slot.startswith("nested") or (slot == "loss" and found.own_step)
    if handed_over and not isinstance(target, type):
        return  # who calls the function gives the rest
    missing = [
        name
        for name, parameter in takes.own.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and name not in node
        and name not in filled
        and not wants_progress(parameter)
    ]
    for name in missing:
        if not (takes.takes_any_number and len(filled) >= len(takes.positional)):
            bound = slot.startswith("nested") and slot not in _BUILT
            remedy = "where the class itself is wanted, add `_partial_: true`" if bound else ""
            found.wrong(
                (*path, name),
                f"must be given: `{node['_target_']}` has no default for it",
                remedy=remedy,
                kind="missing",
            )


def _note_unknown_argument(
    path: Path, name: str, value: Any, target: str, known: list[str], found: PlacedMistakes
) -> None:
    near = find_nearest(name, known)
    habit = OLD_ARGUMENTS.get(name, "")
    if not near and habit in known:
        near = habit
    if not near and name in ("target", "class", "class_path", "type") and "." in str(value):
        near = "_target_"
    suggestion = ".".join(map(str, (*path[:-1], near))) if near else ""
    remedy = format_suggestion(suggestion)
    if not near:
        remedy = f"it takes {', '.join(f'`{k}`' for k in known)}" if known else "it takes no arguments"
    found.wrong(
        path, f"is not an argument of `{target}`", value, suggestion=suggestion, remedy=remedy, kind="unknown-argument"
    )


_REDUCTIONS = ("none", "mean", "sum", "batchmean")  # annotated as any text; refused only when a loss is computed


_ONE_EACH = ("swa_lr",)


_DTYPE = "torch.dtype"


def _check_value(path: Path, value: Any, parameter: inspect.Parameter, slot: str, found: PlacedMistakes) -> None:
    if slot == "loss" and parameter.name == "reduction" and parameter.default == "mean" and value not in _REDUCTIONS:
        right = find_nearest(str(value), _REDUCTIONS)
        found.wrong(path, f"must be one of {', '.join(_REDUCTIONS)}", value, suggestion=right)
        return
    dtype = _suggest_dtype(value, parameter)
    if dtype is not None:
        found.wrong(path, "must be a dtype of torch", value, suggestion=dtype, kind="type")
        return
    if parameter.name in _ONE_EACH and slot.endswith("scheduler") and isinstance(value, list):
        return  # PyTorch's annotation says one number, its documentation also one for each parameter group
    words = describe_misfit(value, parameter, durations=_takes_durations(slot, parameter))
    if not words and slot.endswith("optimizer") and isinstance(value, float) and not math.isfinite(value):
        words = "must be a finite number"  # torch.optim's own checks let NaN pass
    if not words:
        return
    right, remedy = _suggest_value(value, parameter), ""
    if isinstance(value, list | int | float) and "Tensor" in words:
        remedy = f"write `{{_target_: torch.tensor, data: {value}}}`"
    elif not right and (line := _format_component(value, infer_annotation(parameter))):
        remedy = f"write `{line}`"
    if not right and not remedy and isinstance(parameter.default, bool | int | float | str | None):
        right = format_yaml(parameter.default)
        remedy = f"the default is `{right}`"
    found.wrong(path, words, value, suggestion=right, remedy=remedy, kind="type")


def _takes_durations(slot: str, parameter: inspect.Parameter) -> bool:
    """Return whether a duration may stand for a number: everywhere but in a search, which is of no run."""
    return slot.endswith("scheduler") or (not slot.endswith(("search_sampler", "pruner")) and takes_steps(parameter))


def _format_component(value: Any, annotation: Any) -> str:
    """Format the node to write for a plain value where a class, callable or object is wanted."""
    kinds = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if kind is not type(None)]
    if wants_class(annotation):
        kinds = []
        if isinstance(value, str) and (home := _find_in_torch(value)):
            return f"{{_target_: {home}}}"
    called = any(getattr(kind, "__origin__", kind) is Callable for kind in kinds)
    named = isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value)
    if named and (wants_class(annotation) or called):
        return f"{{_target_: {value}}}"
    for kind in kinds:
        plain = getattr(kind, "__module__", "builtins") in ("builtins", "typing", "types", "collections.abc")
        plain |= isinstance(value, str) and _is_from(kind, ("torch", "Tensor"))
        if isinstance(kind, type) and not plain and convert(value, kind) is UNFIT:
            if issubclass(kind, enum.Enum | pathlib.PurePath | os.PathLike) or _is_from(
                kind, ("torch", "device"), ("torch", "dtype")
            ):
                continue
            given = {} if named else value if isinstance(value, dict) else {"…": None}
            arguments = "".join(", …" if name == "…" else f", {name}: {format_yaml(v)}" for name, v in given.items())
            return f"{{_target_: {value if named else f'{kind.__module__}.{kind.__qualname__}'}{arguments}}}"
    return ""


def _find_in_torch(name: str) -> str:
    """Return the full name of a torch.nn class written without its module, else an empty text."""
    nn = sys.modules.get("torch.nn")
    return f"torch.nn.{name}" if isinstance(getattr(nn, name, None), type) else ""


def _is_from(kind: type, *names: tuple[str, str]) -> bool:
    return (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) in names


def _suggest_value(value: Any, parameter: inspect.Parameter) -> str:
    if isinstance(value, str):
        right = find_nearest(value, list_choices(infer_annotation(parameter))) or (
            "cuda" if value.lower() == "gpu" else ""
        )
        if right and (right != "cuda" or "torch.device" in str(infer_annotation(parameter))):
            return right
    annotation = parameter.annotation
    inferred = infer_annotation(parameter)
    if type(value) is int and "torch.device" in str(inferred):
        return f"cuda:{value}"
    if isinstance(inferred, type) and issubclass(inferred, pathlib.PurePath) and not isinstance(value, list | dict):
        return f"'{value}'"
    if isinstance(parameter.default, enum.Enum):
        return ""
    if annotation in (int, float) or isinstance(parameter.default, int | float):
        whole = annotation is int or (annotation is inspect.Parameter.empty and isinstance(parameter.default, int))
        return as_number(value, whole=whole)
    return ""


def _suggest_dtype(value: Any, parameter: inspect.Parameter) -> str | None:
    """Return the nearest dtype for a text that should name one and does not; None if it is right."""
    if not isinstance(value, str) or "dtype" not in str(parameter.annotation) + parameter.name:
        return None
    kind = infer_annotation(parameter)
    if kind is str or (isinstance(parameter.default, str) and kind is inspect.Parameter.empty):
        return None  # its own text
    if str in getattr(kind, "__args__", ()) or (
        _DTYPE in str(kind) and not isinstance(convert(value, kind), str | type(UNFIT))
    ):
        return None
    import torch

    names = [f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
    if value in names:
        return None
    if f"torch.{value}" in names:
        return f"torch.{value}"
    return find_nearest(value if value.startswith("torch.") else f"torch.{value}", names)


def _refuse_weights(
    path: Path, node: dict[str, Any], target: Any, takes: CallableParameters, found: PlacedMistakes
) -> set[str]:
    """Refuse `weights` and `pretrained` of torchvision's models; return the refused names."""
    if get_defining_module(target).partition(".")[0] != "torchvision" or isinstance(target, type):
        return set()
    refused = {name for name in ("weights", "weights_backbone", "pretrained", "pretrained_backbone") if node.get(name)}
    for name in refused:
        rule = "is refused here: weights come through `pretrained:`, where they are recorded and verified"
        found.wrong(
            (*path, name), rule, node[name], remedy=_format_pretrained_block(node[name], takes), kind="conflict"
        )
    backbone = takes.own.get("weights_backbone")
    if backbone is not None and backbone.default is not None and "weights_backbone" not in node:
        rule, remedy = "must be given: without it torchvision downloads a backbone by itself", "write `null`"
        found.wrong((*path, "weights_backbone"), rule, remedy=remedy, kind="missing")
    return refused


def _format_pretrained_block(wanted: Any, takes: CallableParameters) -> str:
    """Format the `pretrained:` block that loads the same weights."""
    file, source = "FILE.pth", ""
    annotation = takes.named["weights"].annotation if "weights" in takes.named else None
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        members = getattr(kind, "__members__", {})
        if members:
            member = (
                members.get(str(wanted).rpartition(".")[2]) or members.get("DEFAULT") or next(iter(members.values()))
            )
            file, source = member.url.rpartition("/")[2], f"  # from {member.url}"
            break
    return f"write instead:\npretrained:\n  strategy: full\n  path: {file}{source}"
