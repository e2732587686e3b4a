"""Find every place that sets a key, in order; the last one wins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from runner.config import origins
from runner.config.compose import compose, compose_sweep
from runner.config.composed import Composed
from runner.config.defaults import find_signature_default
from runner.config.key_help import find_comment
from runner.config.parsing import find_default, read, to_plain
from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.core.errors import ABSENT, ConfigError, Mistake, as_text

REMOVED = "(removed)"


@dataclass(frozen=True)
class Answer:
    """Value that one layer gives a key, its place, and a note."""

    where: str
    value: Any
    chosen: str = ""
    note: str = ""

    def __str__(self) -> str:
        chosen = f"  (chosen by {self.chosen})" if self.chosen else ""
        return f"{self.where}  {as_text(self.value)}{chosen}{self.note}"


@dataclass(frozen=True)
class KeyHistory:
    """Every place that sets a key, the winner last, and the value that it has; `str()` is for people."""

    key: str
    value: Any
    answers: list[Answer]
    comment: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        layers = [vars(answer) for answer in self.answers]
        return {"key": self.key, "value": self.value, "comment": self.comment, "layers": layers}

    def __str__(self) -> str:
        said = [self.comment] if self.comment else []
        return "\n".join([f"{self.key} = {as_text(self.value)}", *said, *(f"  {answer}" for answer in self.answers)])


def trace_key(key: str, overrides: Sequence[str] = (), *, multirun: bool = False) -> KeyHistory:
    """Find every place that sets a key in the config that overrides make; `multirun` for a whole sweep.

    Raises:
        ConfigError: the composition has mistakes, or nothing sets the key and the schema does not know it.
    """
    composed = compose_sweep(overrides) if multirun else compose(overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
    answers = collect_answers(composed, origins.as_path(key))
    if not answers:
        raise ConfigError([_describe_unknown_key(composed, key)])
    last = answers[-1].value
    value = last if multirun else describe_final_value(composed, origins.as_path(key), last)
    return KeyHistory(key, value, answers, find_comment(key, composed.config))


def _describe_unknown_key(composed: Composed, key: str) -> Mistake:
    known = [*origins.list_schema_keys(), *map(origins.format_key, composed.layers.paths(composed.config))]
    right = translate_name(key) or find_nearest(key, known)
    return Mistake(
        key,
        "is set by nothing and is not a key that the runner knows",
        remedy=format_suggestion(right),
        suggestion=right,
        kind="unknown-key",
    )


def describe_final_value(composed: Composed, path: tuple[str | int, ...], last: Any) -> Any:
    """Return a key's composed value; where it is unset, the default or the last layer's value."""
    value: Any = composed.config
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            default = find_default(origins.format_key(path)) if last == REMOVED else last
            return last if default is ABSENT else default
    return value


def collect_answers(composed: Composed, path: tuple[str | int, ...]) -> list[Answer]:
    """Return every layer's value of a key, defaults first, the winner last; empty if unknown."""
    found = [
        Answer(s.where, REMOVED if s.value is ABSENT else s.value, s.chosen) for s in composed.layers.settings(path)
    ]
    passed_over = [
        Answer(s.where, s.value, note=f"  (left out: {reason})") for s, reason in composed.layers.left_out(path)
    ]
    swept = OmegaConf.select(composed.hydra, "sweeper.params") or {}
    if origins.format_key(path) in swept:
        where = composed.layers.origin(("hydra", "sweeper", "params", origins.format_key(path)))
        found.append(Answer(where, swept[origins.format_key(path)], note="  (swept)"))
    found += [
        Answer(
            setting.where,
            REMOVED if setting.value is ABSENT else setting.value,
            note=f"  (sets {origins.format_key(key)})",
        )
        for key, setting in composed.layers.parts(path)
    ]
    if len(path) == 1 and path[0] in composed.choices and not found:
        found.append(
            Answer(composed.layers.chooser(str(path[0])), composed.choices[str(path[0])], note="  (config group)")
        )
    default = _find_default(composed, path)
    answers = [*([default] if default else []), *found]
    answers = [*answers[:-1], *passed_over, *answers[-1:]]  # the winner last
    return [*answers, *_follow_references(composed, path, found)]


def _find_default(composed: Composed, path: tuple[str | int, ...]) -> Answer | None:
    """Return the default in the schema or in the target's signature; None where there is none."""
    node: Any = composed.config
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        default = find_signature_default(node["_target_"], str(path[-1]))
        if default is not None:
            return Answer(default.where, default.value, note=f"  (signature of {node['_target_']})")
    if not origins.is_schema_key(path) or origins.is_required(path):
        return None
    value: Any = to_plain(read({})[0])
    for part in path:
        value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
    return None if value is ABSENT else Answer(origins.find_schema_line(path), value, note="  (default)")


def _follow_references(composed: Composed, path: tuple[str | int, ...], found: list[Answer]) -> list[Answer]:
    """Return the answers for the keys that the winner's interpolations reference."""
    if not found or not isinstance(found[-1].value, str) or "${" not in found[-1].value:
        return []
    answers = []
    for reference in origins.REFERENCE.findall(found[-1].value):
        target = origins.resolve_reference(reference, path)
        if target != path:
            answers += [
                Answer(a.where, a.value, a.chosen, f"  (as {origins.format_key(target)}){a.note}")
                for a in collect_answers(composed, target)
            ]
    return answers
