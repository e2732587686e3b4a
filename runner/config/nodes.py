"""Parse components: a `_target_`, its arguments, and the runner's own `_keys_`."""

import re
from typing import Any

from runner.config import schema
from runner.config.reading import INVALID, UNKNOWN_KEY, Path, Reading, format_key
from runner.config.scalars import read_duration
from runner.config.suggestions import find_nearest

_RUNNER_KEYS = {"_target_", "_args_", "_partial_", "_from_", "_until_", "_before_"}


def order_transforms(reading: Reading, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Move each transform with a `_before_` in front of the one that it names; leave the key out.

    Each stands right before that one, wherever that one itself moves; several before the same keep their order.
    """
    wanted = _read_wanted(reading, given, path)
    movers: dict[str, list[str]] = {}
    for name, other in wanted.items():
        movers.setdefault(other, []).append(name)
    waiting = [name for name in given if name not in wanted]
    backwards: list[str] = []
    while waiting:
        backwards.append(waiting.pop())
        waiting += movers.get(backwards[-1], [])
    return {
        name: {key: inner for key, inner in node.items() if key != "_before_"} if isinstance(node, dict) else node
        for name, node in ((name, given[name]) for name in reversed(backwards))
    }


def _read_wanted(reading: Reading, given: dict[str, Any], path: Path) -> dict[str, str]:
    """Return which transform each goes before; one that names none, or comes round, is a mistake."""
    wanted: dict[str, str] = {}
    for name, node in given.items():
        if not isinstance(node, dict) or "_before_" not in node:
            continue
        others = [other for other in given if other != name]
        if node["_before_"] not in others:
            known = f"another transform of {format_key(path)} ({', '.join(map(str, others))})"
            near = find_nearest(str(node["_before_"]), others)
            reading.wrong((*path, name, "_before_"), f"must name {known}", node["_before_"], near, kind="no-match")
            continue
        round_trip = [name, node["_before_"]]
        while round_trip[-1] in wanted and round_trip[-1] != name:
            round_trip.append(wanted[round_trip[-1]])
        if round_trip[-1] == name:
            rule = f"must not come round to itself: {' before '.join(round_trip)}"
            remedy = "leave one of these `_before_` out"
            reading.wrong((*path, name, "_before_"), rule, node["_before_"], remedy=remedy, kind="conflict")
        else:
            wanted[name] = node["_before_"]
    return wanted


def read_component(reading: Reading, value: Any, path: Path, rules: Any) -> Any:
    """Parse a component and note its slot, unless its form is wrong."""
    if isinstance(value, str) and "." in value:
        run_together = re.fullmatch(r"(\w+):(\S.*)", value)
        remedy = (
            f"put a space after the colon: `{run_together[1]}: {run_together[2]}`"
            if run_together
            else f"write `{{_target_: {value}}}`"
        )
        return reading.wrong(
            path, "must be a mapping with a `_target_` and its arguments", value, remedy=remedy, kind="type"
        )
    if not isinstance(value, dict):
        return reading.wrong(path, "must be a mapping with a `_target_` and its arguments", value, kind="type")
    if "_target_" not in value:
        near = next(
            (
                name
                for name in value
                if isinstance(name, str) and find_nearest(name.strip("_"), ["target", "class_path"])
            ),
            "",
        )
        if str(near).strip("_") in {"class_path", "target"} or near:
            return reading.wrong(
                (*path, near), UNKNOWN_KEY, suggestion=format_key((*path, "_target_")), kind="unknown-key"
            )
        return reading.wrong((*path, "_target_"), "must be given: the dotted path of what is called", kind="missing")
    return note_component(reading, value, path, rules)


def note_component(reading: Reading, value: dict[str, Any], path: Path, rules: Any) -> Any:
    """Check the form of a component and note it with its slot."""
    before = len(reading.mistakes)
    check_node(reading, value, path)
    if len(reading.mistakes) > before:
        return INVALID
    reading.components.append((path, rules.get("slot", "nested"), value))
    return schema.Component(value)


def find_member_nodes(optimizer: Any) -> dict[str, dict[str, Any]]:
    """Return the nodes of several optimizers by name, which have a `match`; empty for a single optimizer."""
    nodes = optimizer.items() if isinstance(optimizer, dict) else ()
    return {name: node for name, node in nodes if isinstance(node, dict) and {"match", "_target_"} <= node.keys()}


def check_node(reading: Reading, value: Any, path: Path) -> None:
    """Check the form of a component and nested ones: no `???`, only the runner's own `_keys_`."""
    if value == "???":
        reading.wrong(path, "must be given: it is `???`", kind="missing")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_node(reading, inner, (*path, index))
    elif isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                reading.wrong((*path, name), "must be a name (quote it)", kind="type")
            elif re.fullmatch(r"_\w+_", name) and inner != "???":
                _check_own_key(reading, name, inner, path)
            else:
                check_node(reading, inner, (*path, name))


_OF_HYDRA = {
    "_convert_": "every list and mapping arrives as a plain one, as with `_convert_: all`",
    "_recursive_": "what is nested is built first; what is to be called later has `_partial_: true`",
}


_HOMES = {"optimizer": "torch.optim", "scheduler": "torch.optim.lr_scheduler", "loss": "torch.nn"}


def _check_own_key(reading: Reading, name: str, value: Any, path: Path) -> None:
    """Check `_target_`, `_args_` and `_partial_` of a component; refuse other `_keys_`."""
    here = (*path, name)
    if name in _OF_HYDRA:
        reading.wrong(
            here,
            "is Hydra's, and has no effect here",
            value,
            remedy=f"leave it out: {_OF_HYDRA[name]}",
            kind="no-effect",
        )
    elif name in ("_from_", "_until_", "_before_") and not (path[:1] == ("transform",) and len(path) == 3):
        reading.wrong(
            here,
            "is for a transform of its own name: elsewhere it has no effect",
            value,
            remedy="leave it out",
            kind="no-effect",
        )
    elif name in ("_from_", "_until_"):
        read_duration(reading, value, here, {})
    elif name not in _RUNNER_KEYS:
        near = find_nearest(name, _RUNNER_KEYS)
        reading.wrong(here, UNKNOWN_KEY, suggestion=format_key((*path, near)) if near else "", kind="unknown-key")
    elif name == "_target_" and not (isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value)):
        home = _HOMES.get(str(path[0]), "") if path else ""
        right = f"{home}.{value}" if home and isinstance(value, str) and value.isidentifier() else ""
        with_dots = re.sub(r"[:/]", ".", str(value).removesuffix(".py"))
        right = with_dots if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", with_dots) else right
        reading.wrong(here, "must be a dotted path, `package.module.Name`", value, right, kind="type")
    elif name == "_args_" and not isinstance(value, list):
        reading.wrong(here, "must be a list", value, kind="type")
    elif name == "_partial_" and not isinstance(value, bool):
        reading.wrong(here, "must be true or false", value, kind="type")
    else:
        check_node(reading, value, here)
