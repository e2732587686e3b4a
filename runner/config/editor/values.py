"""Values as JSON Schema: what a field of the schema or an argument of a component may be.

Every value may also be an interpolation (`${train.duration}`) or, in a file that others complete, `???`. Draft-07 of
JSON Schema: what VS Code, JetBrains and the YAML language server of other editors have in common.
"""

import collections.abc
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from runner.config import schema
from runner.config.check.annotations import infer_annotation, list_choices

Plain = dict[str, Any]

ELSEWHERE = r"\$\{|^\?\?\?$"  # a text that stands for a value of another place
DURATION = r"^\d+(\.\d+)?ep$|^\d+st$"
LONGER_THAN_0 = r"^(?=.*[1-9].*(ep|st)$)(\d+(\.\d+)?ep|\d+st)$"
YAML_1_1 = r"^(yes|no|on|off|Yes|No|On|Off|YES|NO|ON|OFF|True|False|TRUE|FALSE)$"  # truth values for OmegaConf
NUMBER_1_1 = r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"  # 1_000
WHOLE_1_1 = r"^[-+]?\d[\d_]*$"


@dataclass
class Alternatives:
    """Kinds of values that one place takes, to be written as one JSON Schema.

    Attributes:
        types: JSON's types, each with what it must hold to.
        choices: single values.
        patterns: of texts, where not every text is taken.
        words: in words, for the message of a text that does not match.
        anything: whether any value is taken.
    """

    types: dict[str, Plain] = field(default_factory=dict)
    choices: list[Any] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    words: str = ""
    anything: bool = False

    def build(self) -> Plain:
        """Build the JSON Schema."""
        if self.anything:
            return {}
        kinds = dict(self.types)
        flat: Plain = {}
        for rules in kinds.values():
            flat |= rules
        if "string" not in kinds or self.patterns:
            kinds.setdefault("string", {})
            flat["pattern"] = "|".join([*self.patterns, ELSEWHERE])
            if self.words:
                flat["patternErrorMessage"] = f"must be {self.words}"
        shown = sorted(kinds, key=lambda kind: kind == "string")
        flat = {"type": shown[0] if len(shown) == 1 else shown, **flat}
        choices = [value for _, value in dict.fromkeys((type(value), value) for value in self.choices)]
        return {"anyOf": [{"enum": choices}, flat]} if choices else flat


_BOUNDS = {"at_least": "minimum", "at_most": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}


def add_plain(found: Alternatives, kind: Any, rules: Any) -> bool:
    """Add a plain kind of value (a number, a text, a duration) with its rules; return whether it is one."""
    bounds = {name: rules[rule] for rule, name in _BOUNDS.items() if rule in rules}
    if kind is type(None):
        found.types["null"] = {}
    elif kind is bool:
        found.types["boolean"] = {}
        found.patterns.append(YAML_1_1)
    elif kind is int:
        found.types["integer"] = bounds
        found.patterns.append(WHOLE_1_1)
    elif kind is float:
        found.types["number"] = bounds
        found.patterns.append(NUMBER_1_1)
    elif kind is schema.Duration:
        found.patterns.append(DURATION if rules.get("may_be_zero") else LONGER_THAN_0)
    elif kind is schema.Pattern or (kind is str and "regex" not in rules):
        found.types["string"] = {}
    elif kind is str:
        found.patterns.append(f"^({rules['regex']})$")
    elif get_origin(kind) is Literal:
        found.choices += get_args(kind)
    else:
        return False
    return True


def close_texts(found: Alternatives) -> None:
    """Drop the patterns of texts where every text is taken."""
    if "string" in found.types:
        found.patterns.clear()


def describe_argument(parameter: inspect.Parameter, nested: Plain, *, durations: bool) -> Plain:
    """Describe the values that an argument of a component takes, no narrower than the check does.

    Args:
        parameter: of the signature.
        nested: schema of components inside of the value.
        durations: whether a duration may stand for a number.
    """
    annotation = infer_annotation(parameter)
    default = parameter.default
    found = Alternatives()
    if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        return dict(nested)
    if annotation is inspect.Parameter.empty:
        if not isinstance(default, int | float):
            return dict(nested)
        found.types = {kind: {} for kind in ("number", "boolean", "null", "array", "object")}
        found.words = "a number" if not isinstance(default, bool) else "true or false"
        found.patterns += [NUMBER_1_1, YAML_1_1]
    elif not _add_annotation(found, annotation):
        return dict(nested)
    if default is None:
        found.types["null"] = {}
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (list, "array"), (dict, "object")):
        if type(default) is kind:
            found.types.setdefault(name, {})
    if durations:
        found.patterns.append(DURATION)
    found.types.setdefault("object", {"required": ["_target_"]})
    close_texts(found)
    found.words = found.words or " or ".join(_WORDS[kind] for kind in found.types if kind in _WORDS)
    made = found.build()
    return {**made, "allOf": [nested]} if {"object", "array"} & {*found.types} else made


_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a component (`_target_` and its arguments)",
}
_ARRAYS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _add_annotation(found: Alternatives, annotation: Any) -> bool:  # noqa: C901  one kind after another
    """Add what an annotation takes; False where it is not known well enough to refuse anything."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _add_annotation(found, args[0])
    if origin in (Union, types.UnionType):
        return all(_add_annotation(found, kind) for kind in args)
    if annotation is bool:
        found.types["integer"] = {}  # as the check has it: 0 and 1 are truth values
    if annotation is int:
        found.types.setdefault("integer", {})
        found.patterns.append(WHOLE_1_1)
        return True
    if annotation is str:
        found.types["string"] = {}
        return True
    if add_plain(found, annotation, {}):
        return True
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        names = list(annotation.__members__)
        found.choices += list_choices(annotation)
        found.patterns.append(f"^(\\w+\\.)*({'|'.join(map(re.escape, [*names, *map(str.lower, names)]))})$")
        found.types |= {"integer": {}, "number": {}}
        return True
    if (getattr(annotation, "__module__", ""), getattr(annotation, "__name__", "")) == ("torch", "Tensor"):
        found.types |= {"number": {}, "boolean": {}}  # annotated where a number is taken too
        return True
    if (origin or annotation) is collections.abc.Callable:
        return True  # a component, which every argument may be
    if (origin or annotation) in _ARRAYS:
        return _add_array(found, origin or annotation, args)
    if (origin or annotation) in _MAPPINGS:
        found.types["object"] = {}
        return True
    return False


def _add_array(found: Alternatives, container: Any, args: tuple[Any, ...]) -> bool:
    inner = [kind for kind in args if kind is not Ellipsis]
    if "array" in found.types or (container in _ARRAYS[4:] and inner in ([str], [])):
        return False  # one text is such a sequence, too
    rules: Plain = {}
    if container is tuple and inner and Ellipsis not in args:
        rules |= {"minItems": len(inner), "maxItems": len(inner)}
    elif inner:
        each = Alternatives()
        if _add_annotation(each, inner[0]):
            each.patterns.append(DURATION)
            each.types.setdefault("object", {})
            close_texts(each)
            rules["items"] = each.build()
    found.types["array"] = rules
    if container is collections.abc.Iterable:
        found.types["object"] = {}
    return True


def make_typo_pattern(names: Iterable[str], known: Iterable[str] = (), *, edges: bool = False) -> str:
    """Return a regular expression for the names that differ from one of `names` in one letter inside.

    The first and the last letter are taken as meant, and so is every digit: `adamw`, `nadam` and `resnet34` are names
    of their own. Names in `known` are no typing errors. With `edges` the ends are looked at, too.
    """
    ways: list[str] = []
    for name in names:
        letters = [re.escape(letter) for letter in name]
        for place in range(0 if edges else 1, len(name) - (0 if edges else 1)):
            if not name[place].isdigit():
                before, after = "".join(letters[:place]), "".join(letters[place + 1 :])
                ways += [before + after, f"{before}[a-z]{after}", f"{before}[a-z]{letters[place]}{after}"]
                swapped = name[place + 1 : place + 2]
                if swapped not in ("", name[place]) and not swapped.isdigit():
                    ways.append(before + letters[place + 1] + letters[place] + "".join(letters[place + 2 :]))
    meant = "|".join(map(re.escape, dict.fromkeys([*names, *known])))
    return f"(?!(?:{meant})(?!\\w))(?:{'|'.join(dict.fromkeys(ways))})" if ways else r"(?!)"
