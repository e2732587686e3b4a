"""Find an optimizer's state in a checkpoint and match it with the model's parameters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.escape import escape_line
from runner.model.pretrained.contents import DEEPEST, MOST_SEARCHED, follow_key
from runner.model.pretrained.matching import explain_unusable
from runner.model.pretrained.plan import LoadPlan, SavedOptimizer

MOST_ORDERS = 1000  # assignments of the file's groups to ours that are tried
MOST_GROUPS = 8  # of so many groups the order is looked for; more are taken as they stand


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no optimizer has them


WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before names


# Settings of a group that say how an optimizer computes, not what.
HOW = {"params", "param_names", "name", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize"}


EPOCHS = ("epoch", "epochs", "current_epoch", "last_epoch", "epoch_num", "start_epoch")


@dataclass
class MatchedOptimizer:
    """Optimizer state entries by the model's names, and notes about them."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def _refuse(rule: str, value: object = ABSENT, remedy: str = "", suggestion: str = "") -> ConfigError:
    return ConfigError([Mistake("pretrained.optimizer", rule, value, remedy=remedy, suggestion=suggestion)])


def read_optimizer(
    raw: Any, key: bool | str, place: Sequence[str], plan: LoadPlan, tensors: Mapping[str, Any]
) -> SavedOptimizer:
    """Read the optimizer's state from the content of a file.

    Args:
        raw: what `files.read` gave.
        key: its key in the file, dotted; True searches.
        place: where the state_dict of the model is.
        plan: which of its tensors load.
        tensors: that state_dict.

    Raises:
        ConfigError: there is none, more than one, or it has not the form that torch gives it.
    """
    if isinstance(key, str):
        node, path = follow_key(raw, key, "optimizer")
        if not is_optimizer_state(node):
            raise _refuse("must be the key of an optimizer's state_dict (`state` and `param_groups`)", key)
    else:
        found = list(find_optimizers(raw))
        beside = [(path, node) for path, node in found if path[: len(place) - 1] == list(place)[:-1]]
        found = beside if len(beside) == 1 else found
        if len(found) != 1:
            raise _refuse_count([".".join(path) for path, _ in found], raw)
        path, node = found[0]
    state = _verify_state(node)
    taken = {
        row.name for row in plan.rows if row.action in ("loaded", "tied") and row.name and row.shape == row.source_shape
    }
    sources = plan.sources | {row.name: row.source for row in plan.rows if row.name in taken}
    return SavedOptimizer(
        ".".join(path), state, node["param_groups"], _order_parameters(tensors, plan), sources, frozenset(taken)
    )


def find_epoch(raw: Any, place: Sequence[str]) -> int | None:
    """Return the epoch that a file names beside the state_dict of the model, or around it."""
    level, found = raw, None
    for name in place:
        named = [_as_count(level.get(key)) for key in EPOCHS if isinstance(level, Mapping)]
        known = [count for count in named if count is not None]
        found = known[0] if known else found
        level = _get_member(level, name)
    return found


def _as_count(value: Any) -> int | None:
    """Return a whole number that is written as one, as a float, or as a tensor of one element."""
    if isinstance(value, Tensor) and value.numel() == 1 and not explain_unusable(value) and not value.is_complex():
        value = value.item()
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if whole else None


def _get_member(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, Mapping) else node[int(name)]


def is_optimizer_state(node: Any) -> bool:
    """Return whether a node has the form of an optimizer's `state_dict()`."""
    if not isinstance(node, Mapping) or not isinstance(node.get("state"), Mapping):
        return False
    groups = node.get("param_groups")
    return isinstance(groups, list) and all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    )


def find_optimizers(raw: Any) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Find the state_dicts of optimizers, in mappings and lists, each with its path."""
    left = [(list[str](), raw)]
    looked = 0
    while left and looked < MOST_SEARCHED:
        path, node = left.pop(0)
        looked += 1
        if is_optimizer_state(node):
            yield path, node
        elif len(path) < DEEPEST and isinstance(node, Mapping | list | tuple):
            members = node.items() if isinstance(node, Mapping) else enumerate(node)
            inner = [(name, m) for name, m in members if isinstance(m, Mapping | list | tuple)]
            left += [([*path, str(name)], member) for name, member in inner[: MOST_SEARCHED - len(left)]]


def _refuse_count(places: Sequence[str], raw: Any) -> ConfigError:
    if places:
        remedy = f"say which: `pretrained.optimizer={places[0]}`"
        rule = f"must say which state to take: the file has {len(places)}, {', '.join(places[:6])}"
        return _refuse(rule, value=True, remedy=remedy, suggestion=places[0])
    known = [escape_line(str(name)) for name in list(raw)[:12]] if isinstance(raw, Mapping) else []
    holds = f"it has {', '.join(known)}" if known else f"it holds a {type(raw).__name__}"
    rule = f"must find an optimizer's state_dict (`state` and `param_groups`) in the file, but {holds}"
    return _refuse(rule, value=True, remedy="leave it out: the optimizer then begins anew", suggestion="false")


def _verify_state(saved: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    """Return each parameter's state; raise unless it has only numbers and dense, finite tensors."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if not all(type(number) in (int, str) for number in numbers) or len(set(numbers)) < len(numbers):
        raise _refuse("must be a state_dict of torch: its param_groups number or name each parameter once")
    state: dict[Any, Mapping[str, Any]] = {}
    for number, entry in saved["state"].items():
        if type(number) not in (int, str) or number not in set(numbers):
            raise _refuse(f"must be a state_dict of torch, but `{number!r:.40}` of its state is in none of its groups")
        if not isinstance(entry, Mapping) or not all(isinstance(name, str) for name in entry):
            raise _refuse(f"must have names and tensors for each parameter, but {number!r:.40} has none")
        for name, value in entry.items():
            problem = f"is a {type(value).__name__}"
            if isinstance(value, Tensor):
                problem = explain_unusable(value) or _explain_non_finite(value)
            elif value is None or isinstance(value, bool | int | float):
                problem = ""
            if problem:
                raise _refuse(f"must hold numbers and tensors, but {escape_line(name)} of {number!r:.40} {problem}")
        if kept := {name: value for name, value in entry.items() if value is not None}:
            state[number] = kept
    return state


def _explain_non_finite(value: Tensor) -> str:
    wide = value.float() if value.dtype.itemsize == 1 else value
    return "" if bool(wide.isfinite().all()) else "is not finite"


def _order_parameters(tensors: Mapping[str, Any], plan: LoadPlan) -> dict[str, list[int]]:
    """Return the file's parameters and shapes in the order of `parameters()`; tied ones count once."""
    ours = {source: name for name, source in plan.sources.items()}
    order: dict[str, list[int]] = {}
    seen: set[Any] = set()
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        here = ours.get(name)
        if here in plan.buffers if here is not None else name.rpartition(".")[2] in BUFFERS:
            continue
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        order[name] = list(value.shape)
    return order


def match_optimizer(
    saved: SavedOptimizer, groups: Sequence[Mapping[str, Any]], keeps: set[str] | None = None
) -> MatchedOptimizer:
    """Match a saved state with an optimizer's parameters by name, else by order and shape.

    Args:
        saved: what `read_optimizer` gave.
        groups: the `param_groups` of the optimizer, built from names.
        keeps: the names of what this optimizer has of a parameter after a step; None where that is not known.

    Raises:
        ConfigError: it is another optimizer's, holds nothing, or which entry belongs to which parameter is not known.
    """
    if not saved.state:
        rule = f"has no effect: `{saved.place}` holds no state (SGD without momentum, or before the first step)"
        raise _refuse(rule, value=True, remedy="leave it out", suggestion="false")
    if keeps is not None and keeps != set(saved.names_kept):
        here = ", ".join(sorted(keeps)) or "nothing"
        rule = f"must find the state of the optimizer here, which keeps {here} of a parameter, but `{saved.place}` has"
        remedy = "take the `optimizer` that the script had, with its settings, or leave `pretrained.optimizer` out"
        raise _refuse(f"{rule} {', '.join(map(escape_line, saved.names_kept))}", value=True, remedy=remedy)
    named = _read_names(saved)
    if named is not None:
        known = {number: source for number, name in named.items() if (source := _name_in_file(name, saved)) is not None}
        how = "by name"
        if not known:
            rule = f"must name parameters of the file, but `{saved.place}` has {', '.join(list(named.values())[:3])}"
            raise _refuse(rule, value=True)
        _verify_shapes(saved, known)
    else:
        known, how = _match_by_order(saved, groups), "by their order and shapes"
    ours = {saved.sources[name]: name for group in groups for name in group["param_names"] if name in saved.sources}
    matched = MatchedOptimizer()
    for number, source in known.items():
        name = ours.get(source)
        if name in saved.taken and number in saved.state:
            matched.entries[name] = dict(saved.state[number])
    total = sum(len(group["param_names"]) for group in groups)
    count = len(matched.entries)
    matched.said.append(f"the optimizer's state of {count} of {total} parameters is taken from `{saved.place}`, {how}")
    if not count:
        rule = f"has no effect: `{saved.place}` has no state of a parameter that trains here"
        raise _refuse(rule, value=True, remedy="leave it out", suggestion="false")
    without = [name for group in groups for name in group["param_names"] if name not in matched.entries]
    if without:
        matched.said.append(f"without a state at the start: {_format_list(without)}")
    if unused := len(saved.state) - count:
        matched.said.append(f"the state of {unused} more is not taken, whose weights do not load or do not train")
    matched.said += _compare_settings(saved, known, ours, groups)
    return matched


def _read_names(saved: SavedOptimizer) -> dict[Any, str] | None:
    """Return the parameter name of each number in the state_dict; None without names."""
    named: dict[Any, str] = {}
    for group in saved.groups:
        names = group.get("param_names")
        if all(isinstance(number, str) for number in group["params"]) and names is None:
            names = group["params"]  # a state_dict of torch.distributed.checkpoint
        if not isinstance(names, list | tuple) or len(names) != len(group["params"]):
            return None
        named |= {number: escape_line(str(name)) for number, name in zip(group["params"], names, strict=True)}
    return named


def _name_in_file(name: str, saved: SavedOptimizer) -> str | None:
    """Return the file's tensor for an optimizer's name, ignoring wrapper prefixes on either side."""
    bare = [name.removeprefix(prefix) for prefix in WRAPPERS]
    wrapped = [prefix + name for prefix in WRAPPERS]
    return next((other for other in [name, *bare, *wrapped] if other in saved.shapes), None)


def _match_by_order(saved: SavedOptimizer, groups: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return the file's name of each number, by the order in which torch numbers parameters."""
    own = [{saved.sources[name] for name in group["param_names"] if name in saved.sources} for group in groups]
    if len(saved.groups) == 1:
        return _match_one_group(saved, set().union(*own))
    return _match_groups(saved, [[name for name in saved.shapes if name in names] for names in own], groups)


def _match_one_group(saved: SavedOptimizer, trains: set[str]) -> dict[Any, str]:
    """Match all parameters of the file's model with the one group, or all of those that train here."""
    every, numbers = list(saved.shapes), saved.groups[0]["params"]
    orders = [order for order in (every, [n for n in every if n in trains]) if len(order) == len(numbers)]
    matches = [dict(zip(numbers, order, strict=True)) for order in orders]
    for known in matches:
        if _find_misfit(saved, known) is None:
            return known
    for known in matches:
        _verify_shapes(saved, known)
    rule = (
        f"must be matched by the order of the parameters, but `{saved.place}` has {len(numbers)} of them, and the "
        f"file's model {len(every)}, of which {len(trains)} train here"
    )
    raise _refuse(rule, value=True, remedy=BY_NAME)


def _match_groups(
    saved: SavedOptimizer, own: Sequence[Sequence[str]], groups: Sequence[Mapping[str, Any]]
) -> dict[Any, str]:
    """Match the file's groups with ours, in which the parameters keep the order of the model."""
    sizes, own_sizes = [len(group["params"]) for group in saved.groups], [len(names) for names in own]
    if sorted(sizes) != sorted(own_sizes):
        there, here = ", ".join(map(str, sizes)), ", ".join(map(str, own_sizes))
        rule = (
            f"must find the parameter groups of `{saved.place}` here too: it has groups of {there} parameters without "
            f"names, and here are {len(own_sizes)} of {here}"
        )
        raise _refuse(rule, value=True, remedy=f"write `param_groups` as the script had them, or {BY_NAME}")
    ways = list(_assign_groups(saved, own))
    if not ways:
        rule = f"must have the shapes of the file's parameters, and the groups of `{saved.place}` have not"
        raise _refuse(rule, value=True, remedy=BY_NAME)
    agreeing = [sum(_count_equal_settings(saved.groups[i], groups[j]) for i, j in enumerate(way)) for way in ways]
    best = [way for way, count in zip(ways, agreeing, strict=True) if count == max(agreeing)]
    in_order = tuple(range(len(own)))
    if len(best) > 1 and in_order not in best:
        rule = f"must be told which parameter group of `{saved.place}` is which: they have the same sizes and shapes"
        raise _refuse(rule, value=True, remedy=BY_NAME)
    return {
        number: name
        for i, j in enumerate(in_order if in_order in best else best[0])
        for number, name in zip(saved.groups[i]["params"], own[j], strict=True)
    }


BY_NAME = "build its optimizer from `model.named_parameters()` where it is saved: then the state has names"


def _assign_groups(saved: SavedOptimizer, ours: Sequence[Sequence[str]]) -> Iterator[tuple[int, ...]]:
    """Yield the assignments of the file's groups to ours that fit by size and shapes."""
    fits = [
        [
            j
            for j, names in enumerate(ours)
            if len(names) == len(group["params"])
            and (len(ours) <= MOST_GROUPS or i == j)
            and _find_misfit(saved, dict(zip(group["params"], names, strict=True))) is None
        ]
        for i, group in enumerate(saved.groups)
    ]
    left: list[tuple[int, ...]] = [()]
    for choices in fits:
        left = [(*way, j) for way in left for j in choices if j not in way][:MOST_ORDERS]
    yield from left


def _count_equal_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Count the settings in which two groups are equal."""
    return sum(_is_same(saved[name], own[name]) for name in saved.keys() & own.keys() - HOW)


def _is_same(one: Any, other: Any) -> bool:
    a, b = _to_plain(one), _to_plain(other)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def _to_plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    return [_to_plain(member) for member in value] if isinstance(value, list | tuple) else value


def _find_misfit(saved: SavedOptimizer, known: Mapping[Any, str]) -> str | None:
    """Describe the first state entry whose shape does not fit its parameter; None if all fit."""
    for number, source in known.items():
        shape = saved.shapes[source]
        for name, value in saved.state.get(number, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1:
                own = list(value.shape)
                if len(own) != len(shape) or any(a not in (1, b) for a, b in zip(own, shape, strict=True)):
                    return f"{name} of {number} is {own}, and {source} is {shape}"
    return None


def _verify_shapes(saved: SavedOptimizer, known: Mapping[Any, str]) -> None:
    if misfit := _find_misfit(saved, known):
        rule = f"must have the shapes of the file's parameters, but in `{saved.place}` {misfit}"
        raise _refuse(rule, value=True, remedy=BY_NAME)


def _compare_settings(
    saved: SavedOptimizer, known: Mapping[Any, str], ours: Mapping[str, str], groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Describe settings that differ between the file's groups and the config's, which hold."""
    at = {name: group for group in groups for name in group["param_names"]}
    lines: dict[str, None] = {}
    for group in saved.groups:
        names = [ours[known[number]] for number in group["params"] if known.get(number) in ours]
        for own in {id(at[name]): at[name] for name in names}.values():
            for key in sorted(group.keys() & own.keys() - HOW):
                if not _is_same(group[key], own[key]):
                    theirs, here = (f"{_to_plain(value)!r:.40}" for value in (group[key], own[key]))
                    lines[f"{escape_line(key)} was {theirs} there and is {here} here"] = None
    said = list(lines)
    return [f"the config's settings hold: {'; '.join(said[:6])}{'; …' if said[6:] else ''}"] if said else []


def count_steps(saved: SavedOptimizer) -> int | None:
    """Return how many steps the saved optimizer has taken, where its state says so (Adam's does)."""
    steps = [entry["step"] for entry in saved.state.values() if isinstance(entry.get("step"), Tensor | int | float)]
    values = {round(float(step)) for step in steps if not isinstance(step, Tensor) or step.numel() == 1}
    return max(values) if values else None


def describe_rest(raw: Any, place: Sequence[str], optimizer: str | None = None) -> list[str]:
    """Describe the content of a file beside the state_dicts that are loaded.

    Args:
        raw: what `files.read` gave.
        place: where the state_dict of the model is.
        optimizer: where the optimizer's state is that is taken.
    """
    used = {".".join(place)} | ({optimizer} if optimizer is not None else set())
    rest: list[str] = []
    node = raw
    for depth, name in enumerate(place):
        members = node.items() if isinstance(node, Mapping) else enumerate(node)
        for other, value in members:
            path = ".".join([*place[:depth], str(other)])
            if not any(known == path or known.startswith(f"{path}.") for known in used):
                rest.append(_describe(path, value))
        node = _get_member(node, name)
    return [f"also in the file, and not taken: {_format_list(rest, 10)}"] if rest else []


def _describe(path: str, value: Any) -> str:
    short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 20)
    if isinstance(value, Tensor) and value.numel() == 1 and not explain_unusable(value):
        value, short = value.item(), True
    return escape_line(path) + (
        f"={escape_line(f'{value:.4g}' if isinstance(value, float) else str(value))}" if short else ""
    )


def _format_list(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
