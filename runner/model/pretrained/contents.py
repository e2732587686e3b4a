"""Find the state_dict in the content of a file of weights: under a key, or in the usual places."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from runner.core.errors import ConfigError
from runner.core.patterns import find_nearest
from runner.model.pretrained.mistakes import escape_text, make_error

# Where people keep a model's state_dict in a checkpoint, and where a moving average of it.
USUAL = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
    *("model_weights", "net_state_dict", "network_state_dict", "params_state_dict"),
)


AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "params_ema")


NOT_WEIGHTS = re.compile(
    r".*(optim|sched|scaler|rng|random|loss|metric|hyper|config|args|callback|loop|epoch).*", re.IGNORECASE
)


DEEPEST = 4  # nestings searched for a state_dict


# Mappings looked into for one (twenty names count as one): a few that hold each other many times would never end.
MOST_SEARCHED = 20_000


def find_state(raw: Any, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Find the state_dict in the content of a file: under `key`, or in the usual places.

    Args:
        raw: what `read` gave.
        key: a nested key, dotted where it is deeper (`checkpoint.model`); None searches.

    Returns:
        Names to tensors (`…_extra_state` may be anything), and what to tell: where it was, what was passed over.

    Raises:
        ConfigError: there is none, or more than one that may be meant; their keys are named.
    """
    path, place, state = _find_only_state(raw, key)
    said = [f"found under the key `{'.'.join(place)}`"] if place and place != path else []
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    passed = [name for name in state if name not in kept]
    if passed:
        said.append(f"passed over what is no tensor: {', '.join(passed[:8])}{', …' if passed[8:] else ''}")
    return kept, said


def find_place(raw: Any, key: str | None = None) -> list[str]:
    """Find the nested keys that lead to the state_dict of `find_state`."""
    return _find_only_state(raw, key)[1]


def _find_only_state(raw: Any, key: str | None) -> tuple[list[str], list[str], Mapping[str, Any]]:
    """Return the path of the given key, the path of the only state_dict below it, and that state_dict."""
    path: list[str] = []
    if key is not None:
        raw, path = follow_key(raw, key)
    found = _search(raw, path)
    if len(found) != 1:
        raise _diagnose_no_state(raw, path, [".".join(place) for place, _ in found])
    return path, *found[0]


def follow_key(raw: Any, key: str, setting: str = "key") -> tuple[Any, list[str]]:
    """Return the value under a dotted key and its path; `setting` is the key of `pretrained` to blame."""
    node, left = raw, key.split(".")
    path: list[str] = []
    while left:
        # A key may itself contain dots: the longest that exists.
        names = [".".join(left[:end]) for end in range(len(left), 0, -1)]
        name = next((name for name in names if isinstance(node, Mapping) and name in node), None)
        if isinstance(node, list | tuple) and left[0].isdecimal() and int(left[0]) < len(node):
            path.append(left.pop(0))
            node = node[int(path[-1])]
            continue
        if name is None:
            known = [name for name in node if isinstance(name, str)] if isinstance(node, Mapping) else []
            known = [str(i) for i in range(len(node))] if isinstance(node, list | tuple) else known
            near = find_nearest(left[0], known)
            where = f"`{'.'.join(path)}`" if path else "the file"
            holds = f"{where} has {', '.join(known[:12]) or f'no keys ({type(node).__name__})'}"
            raise make_error(
                "must be a key of the checkpoint",
                key,
                holds,
                ".".join([*path, near]) if near else "",
                setting,
                kind="no-match",
            )
        node, left = node[name], left[name.count(".") + 1 :]
        path.append(name)
    return node, path


def _search(node: Any, path: list[str]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Find mappings of tensors with their paths; usual places come first, averages of weights next.

    Raises:
        ConfigError: there are too many mappings to look into.
    """
    looked = 0

    def search(node: Any, path: list[str], depth: int) -> list[tuple[list[str], Mapping[str, Any]]]:
        nonlocal looked
        if not isinstance(node, Mapping) or not depth:
            return []
        looked += 1 + len(node) // 20
        if looked > MOST_SEARCHED:
            rule = "must be given: the file has too many mappings in which a state_dict may be"
            raise make_error(rule, None, key="key", kind="missing")
        for usual in (USUAL, AVERAGES):
            found = [hit for name in usual if name in node for hit in search(node[name], [*path, name], depth - 1)]
            if found:
                return found
        if any(isinstance(value, Tensor) for value in node.values()) and all(isinstance(name, str) for name in node):
            return [(path, node)]
        inner = [n for n, m in node.items() if depth > 1 and isinstance(m, Mapping) and isinstance(n, str)]
        others = [name for name in inner if name not in AVERAGES and not NOT_WEIGHTS.fullmatch(name)]
        return [hit for name in others for hit in search(node[name], [*path, name], depth - 1)]

    return search(node, path, DEEPEST)


def _diagnose_no_state(raw: Any, path: Sequence[str], found: Sequence[str]) -> ConfigError:
    where = f"key `{'.'.join(path)}`" if path else "the file"
    if found:
        remedy = f"say which: `pretrained.key={found[0]}`"
        return make_error(
            f"must be given: {where} holds more than one state_dict, {', '.join(found)}",
            None,
            remedy,
            key="key",
            kind="missing",
        )
    listed = _find_listed(raw)
    if listed:
        place = ".".join([*path, *listed])
        say = (
            f"`pretrained.key={place}` takes it"
            if len([*path, *listed]) > 1
            else f"`'pretrained.key=\"{place}\"'` takes it"
        )
    if isinstance(raw, Mapping):
        names = ", ".join(escape_text(str(name)) for name in list(raw)[:12])
        holds = f"keys {names}, and none has tensors by name" if raw else "nothing: an empty dict"
        if listed:
            items = raw[listed[0]]
            kind = f"a {type(items).__name__} of {len(items)}"
            holds += f", but {kind} is under `{listed[0]}`, a mapping of tensors at [{listed[1]}]"
    elif isinstance(raw, list | tuple):
        holds = f"a {type(raw).__name__} of {len(raw)}" + (f", a mapping of tensors at [{listed[0]}]" if listed else "")
    else:
        holds = f"a {type(raw).__name__}"
    remedy = f"{say}; or save the mapping itself" if listed else ""
    return make_error(
        f"must hold a state_dict (names and tensors), but {where} holds {holds}", None, remedy, kind="file"
    )


def _find_listed(raw: Any) -> list[str]:
    """Find the path of the first state_dict inside a list, for an error message; empty if there is none."""
    lists = {str(name): value for name, value in raw.items()} if isinstance(raw, Mapping) else {"": raw}
    for name, items in lists.items():
        if isinstance(items, list | tuple) and not NOT_WEIGHTS.fullmatch(name):
            inside = next(iter(_iterate_states(items[:1000])), None)
            if inside is not None:
                return [*([name] if name else []), str(inside)]
    return []


def _iterate_states(items: Sequence[Any]) -> Iterator[int]:
    return (i for i, item in enumerate(items) if isinstance(item, Mapping) and len(_search(item, [])) == 1)
