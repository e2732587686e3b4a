"""Check the settings of metrics and actions that stand beside a component's own arguments."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from runner.config.check.imports import TargetError, import_object
from runner.config.check.signature import CallableParameters
from runner.config.component_settings import SETTINGS, explain_wrong_setting, split_settings
from runner.config.suggestions import find_nearest


def strip_settings(
    path: tuple[str | int, ...],
    slot: str,
    node: dict[str, Any],
    takes: CallableParameters | None,
    wrong: Callable[..., None],
) -> dict[str, Any]:
    """Return a metric or an action without the settings of the runner; report wrong ones."""
    own, settings = split_settings(slot, node)
    for name, value in settings.items():
        if takes is not None and name in takes.named and name in takes.own:
            rule = f"means two things: the runner reads it of any {slot}, and `{node['_target_']}` has such an argument"
            wrong((*path, name), rule, value, remedy="give the argument by its position (`_args_`)", kind="conflict")
        elif rule := explain_wrong_setting(name, value):
            wrong((*path, name), rule, value, kind="value")
    known = () if takes is None else tuple(takes.named)
    unknown = [name for name in own if takes is not None and name not in known and not name.startswith("_")]
    for name in unknown:
        meant = find_nearest(name, SETTINGS[slot])
        if meant and meant not in settings and not find_nearest(name, known):
            right = ".".join(map(str, (*path, meant)))
            wrong((*path, name), "is unknown", own.pop(name), suggestion=right, kind="unknown-argument")
    return own


def is_own_step(node: Mapping[str, Any], trust: Sequence[str]) -> bool:
    """Return whether a step may call the loss with other things than an output and a target."""
    with suppress(TargetError):
        return not {"input", "target"} <= {*getattr(import_object(node["_target_"], trust), "needs", ())}
    return True
