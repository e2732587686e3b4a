"""Settings in which two configs differ, and mixtures that take some of them from the second."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.identity import WITHOUT_EFFECT
from runner.core.errors import ABSENT, as_text

# Besides what changes no result: replicates have seeds of their own, and the objective only says which step is best.
NOT_MIXED = {*WITHOUT_EFFECT, "seed", "train.objective", "train.mode"}


@dataclass(frozen=True)
class DifferingSetting:
    """Key in which A and B differ, with the value of each; `ABSENT` where one has none.

    A component with another `_target_` is one setting with all its arguments, which mean nothing for the other.
    """

    path: tuple[str, ...]
    a: Any
    b: Any

    @property
    def key(self) -> str:
        """The key as it is written."""
        return ".".join(self.path)

    def format_value(self, value: Any) -> str:
        """Format a value of it in a few words."""
        if value is ABSENT:
            return "not there"
        if isinstance(value, Mapping) and value.get("_target_", "") is None:
            return "none"
        if isinstance(value, Mapping) and "_target_" in value:
            rest = ", ".join(f"{name}={as_text(inner, 30)}" for name, inner in value.items() if name != "_target_")
            return f"{str(value['_target_']).rpartition('.')[2]}({rest})"
        return as_text(value, 80)

    def __str__(self) -> str:
        return f"{self.key}: {self.format_value(self.a)} → {self.format_value(self.b)}"


def find_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[DifferingSetting]:
    """Find the settings in which two resolved configs differ, in the order of the config."""
    return list(_walk(a, b, ()))


def _walk(a: Any, b: Any, path: tuple[str, ...]) -> list[DifferingSetting]:
    if ".".join(path) in NOT_MIXED:
        return []
    if not isinstance(a, Mapping) and type(a) is type(b) and a == b:
        return []
    if not isinstance(a, Mapping) or not isinstance(b, Mapping) or a.get("_target_") != b.get("_target_"):
        return [DifferingSetting(path, a, b)] if path else _walk_members(a, b, path)
    shared = [[name for name in one if name in other] for one, other in ((a, b), (b, a))]
    if path and "_target_" not in a and shared[0] != shared[1]:  # transforms, rules and groups hold in their order
        return [DifferingSetting(path, a, b)]
    return _walk_members(a, b, path)


def _walk_members(a: Mapping[str, Any], b: Mapping[str, Any], path: tuple[str, ...]) -> list[DifferingSetting]:
    names = _merge_order(list(a), list(b))
    return [found for name in names for found in _walk(a.get(name, ABSENT), b.get(name, ABSENT), (*path, str(name)))]


def _merge_order(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """Merge two orders of keys: those of the second alone stand after what they follow there."""
    merged, before = list(a), -1
    for name in b:
        if name in merged:
            before = merged.index(name)
        else:
            before += 1
            merged.insert(before, name)
    return merged


def mix_configs(a: Mapping[str, Any], settings: Collection[DifferingSetting], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return A's config with these settings of B."""
    taken = {setting.path for setting in settings}
    mixed: dict[str, Any] = _mix(a, b, (), taken)
    return mixed


def _mix(a: Any, b: Any, path: tuple[str, ...], taken: Collection[tuple[str, ...]]) -> Any:
    if path in taken:
        return b
    if not any(key[: len(path)] == path for key in taken):
        return a
    members = {}
    for name in _merge_order(list(a), list(b)):
        value = _mix(a.get(name, ABSENT), b.get(name, ABSENT), (*path, str(name)), taken)
        if value is not ABSENT:
            members[name] = value
    return members
