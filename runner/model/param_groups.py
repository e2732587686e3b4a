"""Parameter groups by ordered name patterns, each with its own optimizer settings."""

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.patterns import compile_pattern, diagnose_no_match, find_nearest

DEFAULT = "default"  # the group of the rest


LOSS = "loss"  # the group of the rest of a loss's own parameters, and the prefix of their names


Named = tuple[str, nn.Parameter]


@dataclass(frozen=True)
class Group:
    """Parameter group: name patterns, and optimizer settings that differ from the default."""

    label: str  # its key below `param_groups`
    match: Sequence[str]  # patterns, `re.fullmatch`
    settings: Mapping[str, Any] = field(default_factory=dict)  # any of the optimizer's arguments but `params`
    lr_mult: float | None = None  # times the optimizer's rate
    layer_decay: float | None = None  # one group a layer, the rate this much lower with each layer away from the output
    max_dims: int | None = None  # only tensors of at most so many dimensions: 1 is biases and the scales of norms
    optional: bool = False  # whether it may have no parameter
    min_dims: int | None = None  # only tensors of at least so many dimensions
    place: str = "param_groups"  # the key above its own
    owner: str = ""  # the optimizer whose parameters it is of, where there are several

    @property
    def key(self) -> str:
        """Key of the config."""
        return f"{self.place}.{self.label}"

    @property
    def name(self) -> str:
        """Name of the optimizer's group, and of its rate in the log."""
        return f"{self.owner}/{self.label}" if self.owner else self.label


@dataclass(frozen=True)
class Member:
    """One of several optimizers: the parameters that it takes, and its groups."""

    name: str
    match: Sequence[str] | None  # patterns, `re.fullmatch`; None: all that no other takes
    optimizer: Callable[..., Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    min_dims: int | None = None
    max_dims: int | None = None


def build_groups(
    model: nn.Module,
    groups: Sequence[Group],
    optimizer: Callable[..., Optimizer],
    settings: Mapping[str, Any],
    thawing: Container[str] = (),
    loss: nn.Module | None = None,
    among: Container[str] | None = None,
    owner: str = "",
) -> list[dict[str, Any]]:
    """Assign each trainable parameter to the first group that matches; the rest form `default`.

    Args:
        model: on any device, meta included. A tied parameter answers to each of its names, and is taken once.
        groups: in order.
        optimizer: the class (or function) that the groups are for; its signature says which settings there are.
        settings: its arguments for all groups, without `params`.
        thawing: names of frozen parameters that will train later (`freeze.Frozen.params`); they belong to their groups
            from the start, and no optimizer touches a parameter without a gradient.
        loss: its own parameters train too, under the names `loss.…`, which patterns that begin with `loss` mean.
        among: names of the parameters that there are, where another optimizer has others.
        owner: the name of this optimizer then, and of the group of its rest.

    Returns:
        What the optimizer takes as `params`: `{"params": [(name, parameter), …], "name": label, **settings}`, in the
        order of `groups`, then `default`, then `loss`; none is empty. Of the names, the optimizer's state_dict keeps
        `param_names`.

    Raises:
        ConfigError: a pattern without match, a group without trainable parameter, a setting that the optimizer does not
            have, nothing to train.
    """
    parameters, of_loss = _list_parameters(model, loss)
    if among is not None:
        parameters = [entry for entry in parameters if entry[0] in among]
    trains = {name for name, parameter, _ in parameters if parameter.requires_grad or name in thawing}
    mistakes = _check_trains(trains) if among is None else []
    depth = number_layers(model) if any(group.layer_decay is not None for group in groups) else {}
    taken: dict[str, str] = {}
    built: list[dict[str, Any]] = []
    for group in groups:
        if group.label == DEFAULT:
            mistakes.append(Mistake(group.key, "is the name of the group of the rest: choose another", kind="conflict"))
        problems = _check_settings(group, optimizer, settings)
        members, unmatched = _select_members(group, parameters, taken, trains, of_loss)
        mistakes += problems + unmatched
        taken |= dict.fromkeys((name for name, _ in members), group.label)
        if members and not problems:
            parts = _split_layers(group, members, depth, _get_rate(optimizer, settings))
            mistakes += _check_values(group, optimizer, settings, parts[-1])
            built += parts
    for label in (owner,) if owner else (DEFAULT, LOSS):
        own = [(n, p) for n, p, _ in parameters if owner or (n in of_loss) == (label == LOSS)]
        rest = [(name, parameter) for name, parameter in own if name in trains and name not in taken]
        if rest:
            built.append({"params": rest, "name": label})
    if mistakes:
        raise ConfigError(mistakes)
    return built


def _list_parameters(
    model: nn.Module, loss: nn.Module | None
) -> tuple[list[tuple[str, nn.Parameter, list[str]]], dict[str, nn.Parameter]]:
    """List each parameter with its first name and all of its names; and those of the loss by name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    parameters = [(n, p, names[id(p)]) for n, p in model.named_parameters()]
    of_loss = {} if loss is None else dict(loss.named_parameters(LOSS))
    parameters += [(n, p, [n]) for n, p in of_loss.items() if id(p) not in names]
    if not parameters:
        raise ConfigError([Mistake("model", "must have parameters to train")])
    return parameters, of_loss


def _check_trains(trains: set[str]) -> list[Mistake]:
    rule = "must leave a parameter to train, but everything is frozen"
    return [] if trains else [Mistake("freeze.params", rule, kind="conflict")]


def build_members(
    model: nn.Module,
    members: Sequence[Member],
    shared: Sequence[Group] = (),
    thawing: Container[str] = (),
    loss: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Assign each trainable parameter to the first of several optimizers whose pattern matches.

    Args:
        model, thawing, loss: as for `build_groups`.
        members: the optimizers, each with groups of its own parameters.
        shared: groups of each optimizer that has a parameter which they match; its own come first.

    Returns:
        For each optimizer its groups, named `<optimizer>/<group>`, and its rest under its own name.

    Raises:
        ConfigError: a pattern without match, an optimizer without trainable parameter, a parameter without optimizer;
            and what `build_groups` raises.
    """
    parameters, of_loss = _list_parameters(model, loss)
    trains = {name for name, parameter, _ in parameters if parameter.requires_grad or name in thawing}
    mistakes = _check_trains(trains)
    takes: dict[str, list[str]] = {}
    claims: dict[str, str] = {}
    for member in members:
        if member.match is not None:
            dims = {"min_dims": member.min_dims, "max_dims": member.max_dims}
            wanted = Group(member.name, member.match, place="optimizer", **dims)  # type: ignore[arg-type]
            chosen, problems = _select_members(wanted, parameters, claims, trains, of_loss)
            mistakes += [replace(problem, remedy=problem.remedy.partition(", or `optional")[0]) for problem in problems]
            takes[member.name] = [name for name, _ in chosen]
            claims |= dict.fromkeys(takes[member.name], f"optimizer.{member.name}")
    mistakes += _check_claims(members, claims, [name for name, _, _ in parameters if name in trains])
    left = [name for name, _, _ in parameters if name in trains and name not in claims]
    takes |= {member.name: left for member in members if member.match is None}
    for group in shared:
        mistakes += _select_members(group, parameters, {}, trains, of_loss)[1]
    if mistakes:
        raise ConfigError(mistakes)
    built: list[dict[str, Any]] = []
    for member in members:
        own = [entry for entry in parameters if entry[0] in takes[member.name]]
        further = [group for group in shared if _select_members(group, own, {}, trains, of_loss)[0]]
        further = [replace(group, optional=True) for group in further]  # its own groups may take all of them
        groups = [replace(group, owner=member.name) for group in (*member.groups, *further)]
        try:
            built += build_groups(
                model, groups, member.optimizer, member.settings, thawing, loss, takes[member.name], member.name
            )
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return built


def _check_claims(members: Sequence[Member], claims: Container[str], trains: Sequence[str]) -> list[Mistake]:
    """Check that each parameter has an optimizer."""
    mistakes = []
    rest = [member.name for member in members if member.match is None]
    left = [name for name in trains if name not in claims]
    if len(rest) > 1:
        rule = f"must not be null too: `optimizer.{rest[0]}` takes all that no other optimizer does"
        mistakes.append(Mistake(f"optimizer.{rest[1]}.match", rule, None, kind="conflict"))
    elif rest and not left:
        rule = "must have a trainable parameter, but the other optimizers take all of them"
        mistakes.append(Mistake(f"optimizer.{rest[0]}", rule, remedy="leave it out", kind="no-effect"))
    elif left and not rest:
        rule = f"must leave no parameter without an optimizer, but none matches {_name_some(left)}"
        remedy = "match them, give one optimizer `match: null` (all the rest), or freeze them (`freeze.params`)"
        mistakes.append(Mistake("optimizer", rule, remedy=remedy, kind="conflict"))
    return mistakes


def _name_some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def number_layers(model: nn.Module) -> dict[str, int]:
    """Number the layer of each parameter from the input (0), in order of module registration.

    A layer is a member of a list-like container (Sequential, ModuleList, ModuleDict; containers within containers are
    entered), or a module that holds none: `conv1`, `layer1.0`, `layer1.1`, …, `fc` in torchvision's ResNets. A layer of
    one-dimensional parameters only (a norm), and a bare parameter, count with the layer before them. As in BEiT (Bao,
    Dong, Wei 2021), made for any model.
    """
    layer: dict[str, int] = {}
    count = -1

    def place(prefix: str, module: nn.Module, *, whole: bool) -> None:
        nonlocal count
        own = [(name, p) for name, p in module.named_parameters(prefix, recurse=whole) if name not in layer]
        if whole and any(p.dim() > 1 for _, p in own):
            count += 1
        layer.update((name, max(count, 0)) for name, _ in own)

    def walk(prefix: str, module: nn.Module, *, listed: bool) -> None:
        if not _is_list(module) and (listed or not any(_is_list(inner) for inner in module.modules())):
            place(prefix, module, whole=True)
            return
        place(prefix, module, whole=False)
        for name, child in module.named_children():
            walk(f"{prefix}.{name}".lstrip("."), child, listed=_is_list(module))

    if _is_list(model) or any(model.children()):
        place("", model, whole=False)
        for name, child in model.named_children():
            walk(name, child, listed=_is_list(model))
    else:
        place("", model, whole=True)
    return layer


def _is_list(module: nn.Module) -> bool:
    # A subclass of Sequential is a block of its own (torchvision's Conv2dNormActivation); one of the others is a list.
    return type(module) is nn.Sequential or isinstance(module, nn.ModuleList | nn.ModuleDict)


def compare_groups(saved: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a checkpoint's optimizer groups that differ from the live ones; torch matches by position.

    Args:
        saved: `state_dict()["param_groups"]` of the checkpoint.
        live: the same of the live optimizer.

    Raises:
        ConfigError: groups were added, removed or reordered, or parameters moved; each by name.
    """
    old, new = _map_to_groups(saved), _map_to_groups(live)
    mistakes = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if before != now:
            change = f"was in {_format_group(before)} when the checkpoint was taken, and is in {_format_group(now)} now"
            mistakes.append(
                Mistake("param_groups", f"must be those of the checkpoint: `{name}` {change}", kind="record")
            )
    old_order, new_order = ([group.get("name", i) for i, group in enumerate(groups)] for groups in (saved, live))
    if not mistakes and old_order != new_order:
        mistakes.append(
            Mistake("param_groups", f"must be in the checkpoint's order, {old_order}", new_order, kind="record")
        )
    elif not mistakes:
        mistakes = [
            Mistake(
                "param_groups",
                f"must have `{group.get('name', i)}`'s parameters in the checkpoint's order",
                kind="record",
            )
            for i, (group, other) in enumerate(zip(live, saved, strict=True))
            if group.get("param_names") != other.get("param_names")
        ]
    if mistakes:
        raise ConfigError(mistakes)


def _map_to_groups(groups: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    return {name: group.get("name", i) for i, group in enumerate(groups) for name in group.get("param_names", [])}


def _format_group(group: object) -> str:
    return "no group" if group is None else f"group `{group}`"


def _select_members(
    group: Group,
    parameters: Sequence[tuple[str, nn.Parameter, list[str]]],
    taken: Mapping[str, str],
    trains: Container[str],
    of_loss: Container[str],
) -> tuple[list[Named], list[Mistake]]:
    key = group.key
    mistakes: list[Mistake] = []
    matched: dict[str, nn.Parameter] = {}
    for pattern in group.match:
        expression = compile_pattern(f"{key}.match", pattern, mistakes)
        if expression is None:
            continue
        meant = [entry for entry in parameters if entry[0] not in of_loss or pattern.startswith(LOSS)]
        hits = {n: p for n, p, names in meant if any(map(expression.fullmatch, names))}
        if not hits and not group.optional:
            known = [name for _, _, names in parameters for name in names]
            mistakes.append(diagnose_no_match(f"{key}.match", pattern, known, "a parameter"))
        matched |= hits
    fitting = {name: p for name, p in matched.items() if group.max_dims is None or p.dim() <= group.max_dims}
    fitting = {name: p for name, p in fitting.items() if group.min_dims is None or p.dim() >= group.min_dims}
    members = [(n, p) for n, p, _ in parameters if n in fitting and n in trains and n not in taken]
    if not members and not mistakes and not group.optional:
        reason = f"all {len(fitting)} that it matches are frozen"
        if not fitting:
            most = "" if group.max_dims is None else f"at most {group.max_dims}"
            least = "" if group.min_dims is None else f"at least {group.min_dims}"
            reason = f"none that it matches has {' and '.join(filter(None, (least, most)))} dimensions"
        elif earlier := dict.fromkeys(f"`{taken[name]}`" for name in fitting if name in taken):
            reason = f"{', '.join(earlier)} comes first for all that it matches"
        mistakes.append(
            Mistake(
                key,
                f"must have a trainable parameter, but {reason}",
                remedy="change it, or `optional: true`",
                kind="no-effect",
            )
        )
    return members, mistakes


def _split_layers(group: Group, members: list[Named], depth: Mapping[str, int], rate: Any) -> list[dict[str, Any]]:
    """Split a group into the optimizer's groups: one, or one per layer."""
    mult = 1.0 if group.lr_mult is None else group.lr_mult
    base = group.settings.get("lr", rate)
    if group.layer_decay is None:
        rates = {} if group.lr_mult is None else {"lr": base * mult}
        return [{"params": members, "name": group.name, **group.settings, **rates}]
    top = max(depth.values())
    layers: dict[int, list[Named]] = {}
    for name, parameter in members:
        layers.setdefault(depth.get(name, top), []).append((name, parameter))
    return [
        {
            "params": layers[layer],
            "name": f"{group.name}_{layer}",
            **group.settings,
            "lr": base * mult * group.layer_decay ** (top - layer),
        }
        for layer in sorted(layers)
    ]


def _check_values(
    group: Group, optimizer: Callable[..., Optimizer], settings: Mapping[str, Any], part: Mapping[str, Any]
) -> list[Mistake]:
    """Try the group's values on the optimizer: torch itself validates only the defaults of all groups.

    Empty CPU tensors stand for the parameters, since a fused optimizer refuses meta ones.
    """
    own = {name: value for name, value in part.items() if name not in {"params", "name"}}
    stand_ins = [nn.Parameter(torch.empty([0] * p.dim(), dtype=p.dtype)) for _, p in part["params"]]
    try:
        optimizer(stand_ins, **{**settings, **own})
    except (ValueError, TypeError) as error:
        named = [name for name in group.settings if name in str(error) or str(group.settings[name]) in str(error)]
        key = group.key + (f".{named[0]}" if len(named) == 1 else "")
        value = group.settings[named[0]] if len(named) == 1 else ABSENT
        return [Mistake(key, f"must be what the optimizer takes: {error}", value, kind="refused")]
    return []


def _read_signature(optimizer: Callable[..., Optimizer]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(optimizer).parameters.items() if name not in {"self", "params"}}


def _get_rate(optimizer: Callable[..., Optimizer], settings: Mapping[str, Any]) -> Any:
    """Return the learning rate of all groups: as set, else the optimizer's default; None without either."""
    if "lr" in settings:
        return settings["lr"]
    parameter = _read_signature(optimizer).get("lr")
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _check_settings(group: Group, optimizer: Callable[..., Optimizer], settings: Mapping[str, Any]) -> list[Mistake]:
    key, title = group.key, getattr(optimizer, "__name__", str(optimizer))
    known = _read_signature(optimizer)
    mistakes = []
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        for name in group.settings.keys() - known.keys():
            near = find_nearest(name, [*known, "lr_mult", "layer_decay", "max_dims"])
            remedy = f"did you mean `{near}`?" if near else f"it has {', '.join(known)}"
            right = f"{key}.{near}" if near else ""
            mistakes.append(
                Mistake(
                    f"{key}.{name}",
                    f"must be a setting of {title}",
                    remedy=remedy,
                    suggestion=right,
                    kind="unknown-argument",
                )
            )
    scales = [name for name in ("lr_mult", "layer_decay") if getattr(group, name) is not None]
    base = group.settings.get("lr", _get_rate(optimizer, settings))
    if scales and base is None:
        mistakes.append(Mistake(f"{key}.{scales[0]}", f"needs a learning rate, but {title} has none", kind="missing"))
    if group.lr_mult is not None and "lr" in group.settings:
        mistakes.append(
            Mistake(
                f"{key}.lr_mult",
                "must not stand beside `lr`: one of them says the rate",
                group.lr_mult,
                kind="conflict",
            )
        )
    return mistakes
