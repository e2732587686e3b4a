"""Earlier names of the runner's components, which YAML and recorded configs may still use."""

from typing import Any

MOVED = {  # module of an earlier release → the module now
    "runner.step": "runner.train.steps",
    "runner.metrics": "runner.train.metrics",
    "runner.several": "runner.train.optimizer_step.several_optimizers",
}
_FIRST = {now: before for before, now in MOVED.items()}


def with_current_names(data: Any) -> Any:
    """Return plain data with each `_target_` of an earlier release under its current name."""
    return _rename_targets(data, MOVED)


def with_first_names(data: Any) -> Any:
    """Return plain data with each `_target_` under its first name: hashes of configs outlive a move."""
    return _rename_targets(data, _FIRST)


def _rename_targets(data: Any, names: dict[str, str]) -> Any:
    if isinstance(data, list):
        return [_rename_targets(member, names) for member in data]
    if not isinstance(data, dict):
        return data
    changed = {key: _rename_targets(value, names) for key, value in data.items()}
    target = changed.get("_target_")
    if isinstance(target, str):
        module, _, name = target.rpartition(".")
        changed["_target_"] = f"{names.get(module, module)}.{name}" if module else target
    return changed
