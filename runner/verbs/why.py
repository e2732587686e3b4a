"""`python -m runner why KEY [-m] [--json] [overrides]`: every file:line and argument that set KEY; the winner last."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from runner.config import blame
from runner.config.compose import Composed, compose, compose_sweep
from runner.config.definition import signature_default
from runner.config.interpret import default_of, plain, read
from runner.config.names import did_you_mean, nearest, other_name
from runner.errors import ABSENT, ConfigError, Mistake, as_text
from runner.verbs.train import split_trust

REMOVED = "(removed)"
USAGE = "python -m runner why KEY [-m] [--json] [overrides]"


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


def main(argv: Sequence[str]) -> int:
    """Print who set a key.

    Raises:
        ConfigError: no key is given, or nothing sets it and the schema does not know it.
    """
    rest, _ = split_trust(argv)
    as_json, sweep = "--json" in rest, bool({"-m", "--multirun"} & set(rest))
    words = [argument for argument in rest if argument not in ("--json", "-m", "--multirun")]
    keys = [word for word in words if "=" not in word and not word.startswith("~")]
    if not keys:
        raise ConfigError([Mistake("KEY", "is missing", remedy=USAGE)])
    overrides = [word for word in words if word != keys[0]]
    composed = compose_sweep(overrides) if sweep else compose(overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
    key = keys[0]
    answers = layers(composed, blame.as_path(key))
    if not answers:
        raise ConfigError([_unknown(composed, key)])
    value = answers[-1].value if sweep else _in_the_end(composed, blame.as_path(key), answers[-1].value)
    if as_json:
        print(json.dumps({"key": key, "value": value, "layers": [vars(answer) for answer in answers]}, default=str))
    else:
        print(f"{key} = {as_text(value)}")
        for answer in answers:
            print(f"  {answer}")
    return 0


def _in_the_end(composed: Composed, path: tuple[str | int, ...], last: Any) -> Any:
    """The composed value; where nothing sets the key any more, the schema's default or what the last layer says."""
    value: Any = composed.config
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            default = default_of(blame.dotted(path)) if last == REMOVED else last
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
    if blame.dotted(path) in swept:
        where = composed.layers.origin(("hydra", "sweeper", "params", blame.dotted(path)))
        found.append(Answer(where, swept[blame.dotted(path)], note="  (swept)"))
    found += [
        Answer(
            setting.where, REMOVED if setting.value is ABSENT else setting.value, note=f"  (sets {blame.dotted(key)})"
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
    if not blame.is_schema_key(path) or blame.is_required(path):
        return None
    value: Any = plain(read({})[0])
    for part in path:
        value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
    return None if value is ABSENT else Answer(blame.schema_line(path), value, note="  (default)")


def _references(composed: Composed, path: tuple[str | int, ...], found: list[Answer]) -> list[Answer]:
    """Where the winner is an interpolation: the lines that set what it points to, and the value in the end."""
    if not found or not isinstance(found[-1].value, str) or "${" not in found[-1].value:
        return []
    answers = []
    for reference in blame.REFERENCE.findall(found[-1].value):
        target = blame.target(reference, path)
        if target != path:
            answers += [
                Answer(a.where, a.value, a.chosen, f"  (as {blame.dotted(target)}){a.note}")
                for a in layers(composed, target)
            ]
    return answers


def _unknown(composed: Composed, key: str) -> Mistake:
    known = [*blame.schema_keys(), *map(blame.dotted, composed.layers.paths(composed.config))]
    right = other_name(key) or nearest(key, known)
    return Mistake(
        key, "is set by nothing and is not a key that the runner knows", remedy=did_you_mean(right), suggestion=right
    )
