"""Settings of metrics, actions and trackers beside a component's own arguments: `on`, `every`."""

from collections.abc import Mapping
from typing import Any

from runner.config.schema import Component, Derived
from runner.core.durations import is_duration

# What an action may name as an argument; each is given to it by that name.
ACTION_ARGUMENTS = (
    *("model", "loss", "device", "step", "epoch", "progress", "splits", "datasets", "metrics", "run_dir", "folder"),
    *("seed", "generator"),
)


# By slot.
SETTINGS = {
    "metric": ("on", "output", "target", "every"),
    "action": ("every", "on_error"),
    "tracker": ("timeout",),
}


def split_settings(slot: str, node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a component into the node of its own arguments, and its settings."""
    names = SETTINGS.get(slot, ())
    own = {name: value for name, value in node.items() if name not in names}
    return own, {name: node[name] for name in names if name in node}


def explain_wrong_setting(name: str, value: Any) -> str:
    """Explain what a setting must be; empty where it is."""
    if name == "on" and value not in ("train", "eval", "both"):
        return "must be train, eval or both"
    if name == "on_error" and value not in ("stop", "go_on"):
        return "must be stop or go_on"
    if name == "every" and value is not None and not (is_duration(value) and float(str(value)[:-2]) > 0):
        return "must be epochs (`1ep`) or optimizer steps (`500st`), more than 0"
    if name == "timeout" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600):
        return "must be seconds, more than 0 and at most 3600"
    if name == "output" and (isinstance(value, bool) or not isinstance(value, str | int)):
        return "must name a part of what the step returns, such as `depth` or `boxes.0`"
    if name == "target" and (isinstance(value, bool) or not isinstance(value, str | int | None)):
        return "must name a part of what the step returns, or be null: the metric gets the output alone"
    return ""


def list_components(metrics: Mapping[str, Derived | Component | None]) -> dict[str, Component]:
    """List the metrics that are components, by name."""
    return {name: node for name, node in metrics.items() if isinstance(node, dict)}


def read_sources(number: Derived) -> dict[str, str]:
    """Return the values that a number is derived from, by their names in its expression."""
    return {"x": number.of} if isinstance(number.of, str) else dict(number.of)


def list_derived(metrics: Mapping[str, Derived | Component | None]) -> dict[str, Derived]:
    """List the numbers that are derived from metrics, by name."""
    return {name: node for name, node in metrics.items() if isinstance(node, Derived)}
