"""JSON Schemas of the config files: what each key takes, and the arguments of each `_target_`.

Nothing is refused that the check before a run may take: a file is one of several that make a config, so a component may
lack arguments here, any value may be `${…}`, and a name of one's own code may be new.
"""

import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin

from runner.config import schema
from runner.config.check.annotations import infer_annotation, takes_steps, wants_class
from runner.config.check.imports import LIBRARIES
from runner.config.check.slots import find_nested_slot
from runner.config.component_settings import SETTINGS
from runner.config.editor.docstrings import read_arguments, read_summary
from runner.config.editor.targets import Target, is_likely, is_users, list_filled
from runner.config.editor.values import (
    DURATION,
    ELSEWHERE,
    Alternatives,
    Plain,
    add_plain,
    close_texts,
    describe_argument,
    make_typo_pattern,
)
from runner.config.field_notes import read_field_notes
from runner.config.key_help import _get_default, describe_rule, describe_type
from runner.config.parsing import get_field_types
from runner.config.reading import format_yaml
from runner.core.errors import ABSENT
from runner.core.shipped import NAMES

DRAFT = "http://json-schema.org/draft-07/schema#"
ROOT = "config"  # the schema of a whole config: `conf/config.yaml` and experiments
SHARED = "components.json"  # the file of all that the others refer to
PRESET = "preset"  # that of files with `# @package _global_` in other groups, whatever options are chosen beside them
COMPONENTS = {"model": "model", "optimizer": "optimizer", "loss": "loss", "step": "step", "scheduler": "scheduler"}
_OWN = ("_target_", "_args_", "_partial_")
_TIMES = ("_from_", "_until_")
_OF_TRANSFORMS = (*_TIMES, "_before_")


@dataclass(frozen=True)
class GroupOption:
    """Option of a group: its name, first sentence of its comment, and its `_target_`, if any."""

    name: str
    comment: str = ""
    target: str = ""
    at_once: bool = False  # `_partial_: false`, or what no file alone can tell


@dataclass
class SchemaBuilder:
    """Builder of the JSON Schemas of one project.

    Attributes:
        targets: what may stand behind `_target_`.
        options: of each group.
        chosen: the option of each group that the primary config chooses.
    """

    targets: Sequence[Target]
    options: Mapping[str, Sequence[GroupOption]] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    definitions: dict[str, Plain] = field(default_factory=dict)
    _shared: dict[str, str] = field(default_factory=dict)

    def build(self, group: str) -> Plain:
        """Build the schema of one group's files (`config` for the root), with all that it needs."""
        top = self.build_group(group)
        needed = dict(self._collect(top))
        return {"$schema": DRAFT, **top, **({"definitions": needed} if needed else {})}

    def build_files(self) -> dict[str, Plain]:
        """Build the schemas as files, by name: one with everything, and a reference into it for each group.

        One reference, because the YAML language server resolves all of a file anew for each that leads to it.
        """
        names = {group.replace("/", "."): group for group in [*self.list_groups(), ROOT, PRESET]}
        groups = {f"group:{name}": self.build_group(group) for name, group in names.items()}
        needed = {**dict(self._collect(list(groups.values()))), **groups}
        files = {f"{name}.json": {"$schema": DRAFT, "$ref": f"{SHARED}#/definitions/group:{name}"} for name in names}
        return {**files, SHARED: {"$schema": DRAFT, "definitions": needed}}

    def _collect(self, node: Any, known: set[str] | None = None) -> Iterator[tuple[str, Plain]]:
        known = set() if known is None else known
        for name in _list_references(node):
            if name not in known:
                known.add(name)
                yield name, self.definitions[name]
                yield from self._collect(self.definitions[name], known)

    def list_groups(self) -> list[str]:
        """List the groups that have a schema of their own, groups inside of a group (`log/to`) included."""
        return [*list_groups(), *(group for group in self.options if "/" in group)]

    def build_group(self, group: str) -> Plain:
        """Build the schema of one group's files, which refers to `definitions`."""
        if group in (ROOT, "experiment"):
            return self._build_root(aware=True)
        if group in (PRESET, "debug"):
            return self._build_root(aware=False)
        found = find_group_field(group)
        assert found is not None
        made = self.build_field(*found)
        properties = made.get("properties", {})
        made = {**made, "properties": {"defaults": self._build_defaults(), **properties}}
        return {"title": f"An option of {group}: conf/{group}/*.yaml", **made, "type": "object"}

    # ---- the runner's own keys

    def _build_root(self, *, aware: bool) -> Plain:
        properties: Plain = {"defaults": self._build_defaults(), "hydra": {"type": "object"}}
        for item in dataclasses.fields(schema.Config):
            properties[item.name] = self.build_field(schema.Config, item)
        made: Plain = {
            "title": "A config: conf/config.yaml, conf/experiment/*.yaml" if aware else "A preset for the whole config",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
        rules = list(self._list_option_rules()) if aware else []
        return {**made, "allOf": rules} if rules else made

    def build_field(self, owner: type, item: dataclasses.Field[Any]) -> Plain:
        """Build the schema of one field of the config's schema."""
        kind = get_field_types(owner)[item.name]
        shown = get_args(kind)[1] if item.metadata.get("rest") else kind
        comment = read_field_notes()[owner.__name__, item.name].comment
        default = ABSENT if item.metadata.get("rest") else _get_default(item)
        said = "; ".join(filter(None, [describe_type(shown), describe_rule(item.metadata)]))
        plain = "" if default is ABSENT or isinstance(default, dict) else f" Default: `{format_yaml(default)}`."
        made = self._build_kind(shown, item.metadata)
        made |= {"description": f"{comment}\n{said}.{plain}", "markdownDescription": f"{comment}\n\n{said}.{plain}"}
        if plain and default not in (None, []):
            made["default"] = default
        if "unbuilt" in item.metadata:
            made["deprecationMessage"] = item.metadata["unbuilt"]
            made["anyOf"] = [{"const": default}, {"type": "string", "pattern": ELSEWHERE}]
        return made

    def _build_kind(self, kind: Any, rules: Any) -> Plain:
        found = Alternatives(words=describe_type(kind).replace("`", ""))
        if "regex" in rules:
            found.words = f"a text like {rules['like']}" if "like" in rules else f"a text that matches {rules['regex']}"
        for part in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
            self._add_kind(found, part, rules)
        close_texts(found)
        made = found.build()
        return made if len(made) != 1 or "$ref" not in made else {"allOf": [made]}

    def _add_kind(self, found: Alternatives, kind: Any, rules: Any) -> None:
        if kind is Any:
            found.anything = True
        elif add_plain(found, kind, rules):
            pass
        elif kind is schema.Component:
            self._add_object(found, {"$ref": self._refer_slot(rules.get("slot", "nested"))}, "_target_")
        elif get_origin(kind) is list:
            found.types["array"] = {"items": self._build_kind(get_args(kind)[0], rules)}
        elif get_origin(kind) is dict:
            self._add_object(found, {"additionalProperties": self._build_kind(get_args(kind)[1], rules)}, "")
        else:
            self._add_object(found, self._build_class(kind, rules), "")

    def _add_object(self, found: Alternatives, rules: Plain, mark: str) -> None:
        """Add a kind of mapping; of two kinds, the key `mark` tells which one a mapping is."""
        if "object" not in found.types:
            found.types["object"] = {"allOf": [rules]} if "$ref" in rules else rules
            return
        first = found.types["object"]
        marks, one, other = ([mark], rules, first) if mark else (list(first["properties"]), first, rules)
        if "of" in other.get("properties", {}):  # neither `of` nor `_target_`: a part of one, the rest is elsewhere
            other = {"if": {"anyOf": [{"required": [name]} for name in other["properties"]]}, "then": other}
        marked = {"anyOf": [{"required": [name]} for name in marks]}
        found.types["object"] = {"if": marked, "then": one, "else": other}

    def _build_class(self, owner: type, rules: Any) -> Plain:
        """Build the schema of a dataclass: its keys, and the arguments of its `_target_` where it has one."""
        properties: Plain = {}
        rest: dataclasses.Field[Any] | None = None
        for item in dataclasses.fields(owner):
            if item.metadata.get("rest"):
                rest = item
            else:
                properties[item.metadata.get("alias", item.name)] = self.build_field(owner, item)
        made: Plain = {"properties": properties}
        if rest is None:
            return {**made, "additionalProperties": False}
        slot = rules.get("slot", "")
        if "_target_" in properties:
            own = tuple(name for name in properties if name != "_target_")
            properties["_target_"] = {**properties["_target_"], **self._refer_target(slot, null=True)}
            return {**made, "allOf": [{"$ref": self._refer_slot(slot, own)}]}
        made["additionalProperties"] = self._build_kind(get_args(get_field_types(owner)[rest.name])[1], rest.metadata)
        if owner is schema.ParamGroup:
            properties |= self._build_settings()
        typo = make_typo_pattern([name for name in properties if len(name) > 4])
        return {**made, "patternProperties": {f"^{typo}$": False}}

    def _build_settings(self) -> Plain:
        """Build the schemas of a param group's settings: the arguments of all optimizers of PyTorch's."""
        found: dict[str, list[Plain]] = {}
        for target in self.targets:
            if target.name.startswith("torch.optim.") and "optimizer" in target.slots and target.takes is not None:
                for name, parameter in target.takes.named.items():
                    if name not in ("params", "defaults"):
                        made = self._share(describe_argument(parameter, {}, durations=True))
                        known = found.setdefault(name, [])
                        known += [made] if made not in known else []
        return {name: {"anyOf": ways, "description": f"{name} of this group."} for name, ways in found.items()}

    # ---- components

    def _refer_slot(self, slot: str, own: Sequence[str] = ()) -> str:
        """Return a reference to the schema of a slot's components; `own` names the runner's own keys."""
        name = f"slot:{slot}".replace(" ", "-")
        if name not in self.definitions:
            self.definitions[name] = {}  # while it is built, it refers to itself
            self.definitions[name] = self._build_slot(slot, own)
        return f"#/definitions/{name}"

    def _build_slot(self, slot: str, own: Sequence[str]) -> Plain:
        more = _OF_TRANSFORMS if slot == "transform" else ()
        kept = "|".join(name.strip("_") for name in (*_OWN, *more))
        made: Plain = {
            "properties": {
                "_target_": self._refer_target(slot),
                "_args_": {"type": ["array", "string"], "description": "Arguments by position."},
                "_partial_": {
                    "type": ["boolean", "string"],
                    "description": "Hand over the class or function with these arguments, instead of calling it.",
                },
            },
            "patternProperties": {
                f"^_(?!({kept})_$)\\w*_$": False,
                f"^{make_typo_pattern(['_target_'], edges=True)}$": False,
            },
        }
        for name in more:
            made["properties"][name] = {
                "type": "string",
                "pattern": f"{DURATION}|{ELSEWHERE}" if name in _TIMES else ".",
            }
        fitting = [target for target in self.targets if self._fits(slot, target) and target.takes is not None]
        rules = [
            {
                "if": {"required": ["_target_"], "properties": {"_target_": {"const": target.name}}},
                "then": self._refer_call(slot, target, own),
            }
            for target in fitting
        ]
        return {**made, "allOf": rules} if rules else made

    def _fits(self, slot: str, target: Target) -> bool:
        return slot == "nested" or slot.removeprefix("nested ") in target.slots

    def _refer_target(self, slot: str, *, null: bool = False) -> Plain:
        name = f"target:{slot}".replace(" ", "-")
        if name not in self.definitions:
            self.definitions[name] = self._build_target(slot)
        found: Plain = {"$ref": f"#/definitions/{name}"}
        return {"anyOf": [found, {"type": "null"}], "type": ["string", "null"]} if null else found

    def _build_target(self, slot: str) -> Plain:
        """Build the schema of `_target_`: known names to choose from, other spellings, and own code."""
        fitting = [target for target in self.targets if self._fits(slot, target)]
        shown = sorted(t.name for t in fitting if slot == "nested" or is_likely(slot.removeprefix("nested "), t))
        others = sorted({t.name for t in fitting} - {*shown} | {name for t in fitting for name in t.aliases})
        by_module: dict[str, list[str]] = {}
        for name in others:
            module, _, last = name.rpartition(".")
            by_module.setdefault(module, []).append(last)
        spelled = "|".join(f"{re.escape(module)}\\.({'|'.join(last)})" for module, last in by_module.items())
        own = _OWN_CODE.format(
            libraries="|".join((*LIBRARIES, "runner")),
            python="|".join(sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))),
            typo=make_typo_pattern([*LIBRARIES, *NAMES, "runner"], ("model", "dataset")),
            modules=make_typo_pattern(sorted(self._list_users_modules())),
            users="|".join(sorted({re.escape(module) for module in self._list_users_modules()})),
        )
        patterns = [own, *([f"^({spelled})$"] if spelled else []), r"\$\{"]
        return {
            "description": "Class or function: its dotted path.",
            "anyOf": [*([{"enum": shown}] if shown else []), {"type": "string", "pattern": "|".join(patterns)}],
        }

    def _list_users_modules(self) -> set[str]:
        return {target.name.rpartition(".")[0] for target in self.targets if is_users(target)}

    def _refer_call(self, slot: str, target: Target, own: Sequence[str]) -> Plain:
        """Return a schema of a target's arguments, with `_partial_: false` those that a call gives, too."""
        usual = {"$ref": self._refer_arguments(slot, target, own)}
        if list_filled(slot, target) == list_filled(slot, target, at_once=True):
            return usual
        at_once = {"required": ["_partial_"], "properties": {"_partial_": {"not": {"const": True}}}}
        return {"if": at_once, "then": {"$ref": self._refer_arguments(slot, target, own, at_once=True)}, "else": usual}

    def _refer_arguments(self, slot: str, target: Target, own: Sequence[str] = (), *, at_once: bool = False) -> str:
        filled = list_filled(slot, target, at_once=at_once)
        parts = [slot.replace(" ", "-")] if filled or own or slot in SETTINGS else []
        name = ":".join(["arguments", *(["at-once"] if at_once and parts else []), *parts, target.name])
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._build_arguments(slot, target, (*filled, *own), own)
        return f"#/definitions/{name}"

    def _build_arguments(self, slot: str, target: Target, skipped: Sequence[str], own: Sequence[str]) -> Plain:
        kind, takes = slot.removeprefix("nested").strip(), target.takes
        assert takes is not None
        texts = read_arguments(target.docstring)
        properties: Plain = {}
        for name, parameter in takes.named.items():
            if name in skipped:
                continue
            steps = kind == "scheduler" or (kind not in ("search_sampler", "pruner") and takes_steps(parameter))
            made = describe_argument(parameter, self._refer_nested(parameter, slot), durations=steps)
            properties[name] = {**self._share(made), **_describe_parameter(parameter, texts.get(name, ""))}
        for name in SETTINGS.get(slot, ()):
            properties.setdefault(name, {"description": _SETTING_TEXTS.get(name, "")})
        if slot == "nested optimizer":  # one of several: with keys that the runner reads itself
            members = [item for item in dataclasses.fields(schema.MemberOptimizer) if not item.metadata.get("rest")]
            shared = {item.name: self._share(self.build_field(schema.MemberOptimizer, item)) for item in members}
            properties |= shared
        given = skipped if slot == "loss" else ()  # a step of one's own may call it with other arguments
        for name in (*_OWN, *_OF_TRANSFORMS, *own, *given):
            properties.setdefault(name, {})
        several = target.name.endswith(".Optimizers")
        if several:
            properties.pop("members", None)
        made = {"description": read_summary(target.docstring), "properties": properties}
        if several:
            return {**made, "additionalProperties": {"$ref": self._refer_slot("nested optimizer")}}
        return made if takes.open else {**made, "additionalProperties": False}

    def _share(self, made: Plain) -> Plain:
        """Return a schema of values as a reference to its one definition, where it is long."""
        text = json.dumps(made, sort_keys=True)
        if len(text) < 60:
            return made
        name = self._shared.setdefault(text, f"value:{len(self._shared)}")
        self.definitions[name] = made
        return {"allOf": [{"$ref": f"#/definitions/{name}"}]}

    def _refer_nested(self, parameter: inspect.Parameter, slot: str) -> Plain:
        """Return a schema of the components inside of an argument, at any depth."""
        annotation = infer_annotation(parameter)
        inner = "nested" if wants_class(annotation) else find_nested_slot(annotation, slot)
        name = f"inside:{inner}".replace(" ", "-")
        if name not in self.definitions:
            here = {"$ref": f"#/definitions/{name}"}
            self.definitions[name] = {}
            component = {"$ref": self._refer_slot(inner)}
            self.definitions[name] = {
                "if": {"type": "object", "required": ["_target_"]},
                "then": component,
                "else": {"additionalProperties": here, "items": here},
            }
        return {"$ref": f"#/definitions/{name}"}

    # ---- defaults lists, and what follows from the options that they choose

    def _build_defaults(self) -> Plain:
        if "defaults" not in self.definitions:
            for group, options in self.options.items():
                names = [option.name for option in options]
                typo = make_typo_pattern([name for name in names if len(name) > 3], names)
                comments = "\n".join(f"- `{one.name}`: {one.comment}" for one in options if one.comment)
                self.definitions[f"option:{group.replace('/', '.')}"] = {
                    "description": f"Option of {group}.",
                    "markdownDescription": f"Option of {group}:\n\n{comments}",
                    "anyOf": [
                        {"enum": [*names, None]},
                        {"type": ["string", "array", "null"], "pattern": f"^(?!{typo}$)"},
                    ],
                }
            groups = {group: {"$ref": f"#/definitions/option:{group.replace('/', '.')}"} for group in self.options}
            shown = {f"override /{group}": made for group, made in groups.items()}
            typo = make_typo_pattern([group for group in groups if len(group) > 3], groups)
            self.definitions["defaults"] = {
                "description": "Other files that this one builds on, in order; `_self_` is this one.",
                "type": "array",
                "items": {
                    "type": ["object", "string"],
                    "properties": {**shown, **groups, **{f"/{group}": made for group, made in groups.items()}},
                    "patternProperties": {f"^(override )?/?{typo}$": False},
                },
            }
        return {"$ref": "#/definitions/defaults"}

    def _list_option_rules(self) -> Iterator[Plain]:
        """Yield what follows from the options that a file chooses: the arguments of their targets."""
        by_name = {name: target for target in self.targets for name in (target.name, *target.aliases)}
        for group, slot in COMPONENTS.items():
            own: tuple[str, ...] = ()
            if group == "scheduler":
                own = tuple(item.name for item in dataclasses.fields(schema.Scheduler) if item.name != "_target_")
            keys = [f"override /{group}", f"/{group}", group]
            chooses = {"type": "object", "anyOf": [{"required": [key]} for key in keys]}
            for option in self.options.get(group, ()):
                target = by_name.get(option.target)
                if target is None or target.takes is None or target.takes.open:
                    continue
                usual = self._refer_call(slot, target, own)
                arguments = (
                    {"$ref": self._refer_arguments(slot, target, own, at_once=True)} if option.at_once else usual
                )
                part = {"if": {"type": "object", "not": {"required": ["_target_"]}}, "then": arguments}
                then = {"properties": {group: part}}
                each = [{"required": [k], "properties": {k: {"const": option.name}}} for k in keys]
                names = {"type": "object", "anyOf": each}
                yield {"if": {"required": ["defaults"], "properties": {"defaults": {"contains": names}}}, "then": then}
                if self.chosen.get(group) == option.name:
                    other = {"anyOf": [chooses, *_OTHER_FILES]}
                    yield {"if": {"properties": {"defaults": {"not": {"contains": other}}}}, "then": then}


_PLAIN_KINDS = (str, int, str | None)
# A defaults list with these builds on other recipes, which may choose other options.
_OTHER_FILES: tuple[Plain, ...] = (
    {"type": "string", "not": {"const": "_self_"}},
    {"type": "object", "propertyNames": {"pattern": "experiment|debug"}, "minProperties": 1},
)
# Names outside of the libraries, of Python and of the modules that are known: code of one's own, or trusted.
_OWN_CODE = (
    r"^(?!({libraries}|{python})\.)(?!{typo}\.)(?!{modules}\.\w+$)(?!({users})\.\w+$)[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
)
_SETTING_TEXTS = {
    "on": "When the metric is computed: `train`, `eval` or `both`.",
    "output": "Part of what the step returns that the metric gets as the output.",
    "target": "Part of what the step returns that the metric gets as the target; null for none.",
    "every": "Time between two calls: `1ep`, `500st`.",
    "timeout": "Seconds that the end of the run waits for it.",
    "on_error": "What an error does: `stop` ends the run, `go_on` is said in the log.",
}


def _describe_parameter(parameter: inspect.Parameter, text: str) -> Plain:
    """Describe a parameter in words: its type, its default, and what the docstring says of it."""
    annotation = parameter.annotation
    kind = "" if annotation is inspect.Parameter.empty else inspect.formatannotation(annotation).replace("typing.", "")
    default = parameter.default
    unclear = default is inspect.Parameter.empty or default is ... or " at 0x" in repr(default)
    given = "" if unclear else f"default {default!r}"
    if default is inspect.Parameter.empty:
        given = "must be given"
    said = ", ".join(filter(None, [kind if len(kind) < 80 else "", given if len(given) < 80 else ""]))
    made: Plain = {"description": f"{text}\n({said})" if text else f"({said})"}
    if isinstance(default, bool | int | float | str) and default == default:  # noqa: PLR0124  not NaN
        made["default"] = default
    return made


def find_group_field(group: str) -> tuple[type, dataclasses.Field[Any]] | None:
    """Return the class and field that a group's files fill, `log/to` too; None for no group."""
    owner: type = schema.Config
    *outer, last = group.split("/")
    for name in outer:
        kind = get_field_types(owner).get(name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            return None
        owner = kind
    kind = get_field_types(owner).get(last)
    fields = [item for item in dataclasses.fields(owner) if item.name == last and kind not in _PLAIN_KINDS]
    return (owner, fields[0]) if fields else None


def list_groups() -> list[str]:
    """List the groups that have a schema of their own: the keys of the root that hold keys."""
    kinds = get_field_types(schema.Config)
    return [item.name for item in dataclasses.fields(schema.Config) if kinds[item.name] not in _PLAIN_KINDS]


def format_schema(made: Plain) -> str:
    """Format a schema for people to read."""
    return json.dumps(made, ensure_ascii=False, indent=1)


def _list_references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, inner in node.items():
            if key == "$ref":
                yield str(inner).removeprefix("#/definitions/")
            else:
                yield from _list_references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _list_references(inner)
