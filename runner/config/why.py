"""Find every place that sets a key, in order; the last one wins."""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from runner.config import origins
from runner.config.defaults import signature_default
from runner.config.hydra_loader import Composed
from runner.config.parsing import default_of, plain, read
from runner.core.errors import ABSENT, as_text

REMOVED = "(removed)"


@dataclass(frozen=True)
class Answer:
    """One layer's word on the key."""

    where: str
    value: Any
    chosen: str = ""
    note: str = ""

    def __str__(self) -> str:
        chosen = f"  (chosen by {self.chosen})" if self.chosen else ""
        return f"{self.where}  {as_text(self.value)}{chosen}{self.note}"


def _in_the_end(composed: Composed, path: tuple[str | int, ...], last: Any) -> Any:
    """The composed value; where nothing sets the key any more, the schema's default or what the last layer says."""
    value: Any = composed.config
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            default = default_of(origins.dotted(path)) if last == REMOVED else last
            return last if default is ABSENT else default
    return value


def layers(composed: Composed, path: tuple[str | int, ...]) -> list[Answer]:
    """Every layer that set the key, defaults first, the winner last; empty where the key does not exist."""
    found = [
        Answer(s.where, REMOVED if s.value is ABSENT else s.value, s.chosen) for s in composed.layers.settings(path)
    ]
    passed_over = [
        Answer(s.where, s.value, note=f"  (left out: {reason})") for s, reason in composed.layers.left_out(path)
    ]
    swept = OmegaConf.select(composed.hydra, "sweeper.params") or {}
    if origins.dotted(path) in swept:
        where = composed.layers.origin(("hydra", "sweeper", "params", origins.dotted(path)))
        found.append(Answer(where, swept[origins.dotted(path)], note="  (swept)"))
    found += [
        Answer(
            setting.where, REMOVED if setting.value is ABSENT else setting.value, note=f"  (sets {origins.dotted(key)})"
        )
        for key, setting in composed.layers.parts(path)
    ]
    if len(path) == 1 and path[0] in composed.choices and not found:
        found.append(
            Answer(composed.layers.chooser(str(path[0])), composed.choices[str(path[0])], note="  (config group)")
        )
    default = _default(composed, path)
    answers = [*([default] if default else []), *found]
    answers = [*answers[:-1], *passed_over, *answers[-1:]]  # the winner last
    return [*answers, *_references(composed, path, found)]


def _default(composed: Composed, path: tuple[str | int, ...]) -> Answer | None:
    """The default in the schema or in the target's signature."""
    node: Any = composed.config
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        default = signature_default(node["_target_"], str(path[-1]))
        if default is not None:
            return Answer(default.where, default.value, note=f"  (signature of {node['_target_']})")
    if not origins.is_schema_key(path) or origins.is_required(path):
        return None
    value: Any = plain(read({})[0])
    for part in path:
        value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
    return None if value is ABSENT else Answer(origins.schema_line(path), value, note="  (default)")


def _references(composed: Composed, path: tuple[str | int, ...], found: list[Answer]) -> list[Answer]:
    """Where the winner is an interpolation: the lines that set what it points to, and the value in the end."""
    if not found or not isinstance(found[-1].value, str) or "${" not in found[-1].value:
        return []
    answers = []
    for reference in origins.REFERENCE.findall(found[-1].value):
        target = origins.target(reference, path)
        if target != path:
            answers += [
                Answer(a.where, a.value, a.chosen, f"  (as {origins.dotted(target)}){a.note}")
                for a in layers(composed, target)
            ]
    return answers
