"""Resolve interpolations one by one: name each that leads nowhere, refuse a bomb of them."""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.environment import judge_environment, watch_environment
from runner.config.expansion import MAX_CHARACTERS, MAX_EVALUATIONS, ExpansionLimit, limit_expansion
from runner.config.origins import REFERENCE, Layers, as_path, format_key, list_schema_keys, resolve_reference
from runner.config.parsing import find_default
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ABSENT, Mistake

MAX_SIZE = 1_000_000  # characters of one key with its interpolations written out


def fill_in_referenced_defaults(config: DictConfig) -> None:
    """Write the schema's default of each key that an interpolation references and nothing sets."""
    plain = OmegaConf.to_container(config, resolve=False)
    for path, value in _find_interpolated_texts(plain, ()):
        for reference in REFERENCE.findall(value):
            key = format_key(resolve_reference(reference, path))
            if key in list_schema_keys() and key not in _list_keys(plain):
                default = find_default(key)
                if default is not ABSENT:
                    OmegaConf.update(config, key, default, force_add=True)


def _find_interpolated_texts(value: Any, path: tuple[str | int, ...]) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """Yield every text with an interpolation, and its path."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_interpolated_texts(inner, (*path, name))
    elif isinstance(value, str) and "${" in value:
        yield path, value


def resolve(config: DictConfig, layers: Layers) -> tuple[dict[str, Any], list[Mistake], list[str]]:
    """Return plain data with interpolations resolved, the mistakes, and notes on the environment."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    bomb = _find_too_large(plain)
    if bomb is not None:
        rule = f"must not grow beyond {MAX_SIZE:,} characters with its interpolations written out"
        return (
            plain,
            [Mistake(format_key(bomb), rule, where=layers.blame(bomb, follow=False), kind="interpolation")],
            [],
        )
    resolver = _Resolver(config, plain, layers)
    try:
        with limit_expansion():
            resolved = resolver.walk(plain, ())
    except ExpansionLimit:
        rule = f"has interpolations that go on: a config may have {MAX_EVALUATIONS:,}, of {MAX_CHARACTERS:,} characters"
        where = layers.blame(resolver.at, follow=False)
        return (
            plain,
            [*resolver.mistakes, Mistake(format_key(resolver.at), rule, where=where, kind="interpolation")],
            resolver.notes,
        )
    return resolved, resolver.mistakes, resolver.notes


class _Resolver:
    """Resolver of one config's interpolations, each by itself; it collects mistakes and notes."""

    def __init__(self, config: DictConfig, plain: dict[str, Any], layers: Layers) -> None:
        self.config, self.plain, self.layers = config, plain, layers
        self.mistakes: list[Mistake] = []
        self.notes: list[str] = []
        self.at: tuple[str | int, ...] = ()  # the key that is being resolved

    def walk(self, value: Any, path: tuple[str | int, ...]) -> Any:
        """Return a value with its interpolations resolved; one that is refused stays as written."""
        if isinstance(value, dict):
            return {name: self.walk(inner, (*path, name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.walk(inner, (*path, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if foreign := _FOREIGN.search(value):
            key, remedy = format_key(path), _suggest_instead(foreign[1], foreign[2], path)
            rule = f"has an interpolation of Hydra's that the runner does not have (`${{{foreign[1]}:…}}`)"
            self.mistakes.append(
                Mistake(key, rule, value, self.layers.blame(path, follow=False), remedy, kind="interpolation")
            )
            return value
        self.at = path
        with watch_environment() as names:
            try:
                resolved = self._follow(path)
            except (OmegaConfBaseException, RecursionError, ValueError, AttributeError) as error:
                self.mistakes.append(_make_unresolvable(self.plain, value, path, error, self.layers))
                return value
        refused = judge_environment(path, resolved, names, self.layers)
        if refused is not None:
            self.mistakes.append(refused)
            return value
        if names and not self.layers.is_argument(path):
            said = f"the variable{'s' * (len(names) > 1)} {', '.join(sorted(names))} of the environment"
            self.notes.append(f"{format_key(path)} takes {said}: {value}")
        return resolved

    def _follow(self, path: tuple[str | int, ...]) -> Any:
        node: Any = self.config
        for part in path[:-1]:
            node = node._get_node(part)  # noqa: SLF001  keys may hold dots, which `select` would split
        found = node[path[-1]]
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _make_unresolvable(
    plain: dict[str, Any], value: str, path: tuple[str | int, ...], error: Exception, layers: Layers
) -> Mistake:
    key = ".".join(map(str, path))
    problem = "it leads back to itself" if isinstance(error, RecursionError) else str(error).splitlines()[0]
    names = [*sorted(_list_keys(plain)), *sorted(list_schema_keys())]
    wanted = re.search(r"\$\{([\w.]+)\}", value)
    right = find_nearest(wanted[1], names) if wanted and wanted[1] not in names else ""
    suggestion = value.replace(wanted[1], right) if wanted and right else ""
    rule = f"has an interpolation that cannot be followed ({problem})"
    remedy = format_suggestion(suggestion)
    return Mistake(key, rule, value, layers.blame(path, follow=False), remedy, suggestion, kind="interpolation")


_FOREIGN = re.compile(r"\$\{(now|hydra|env|eval|add|sub|mul|div|python_version|resolve_default):([^{}]*)")


def _suggest_instead(kind: str, inner: str, path: tuple[str | int, ...]) -> str:
    """Describe the replacement for an interpolation of Hydra's that the runner does not have."""
    if kind == "now":
        return "leave it out: a run's folder has its date and time"
    if kind == "env":
        return f"write `${{oc.env:{inner}}}`"
    if inner.startswith("runtime.choices."):
        return "write the option's name out"
    if kind == "hydra" and inner.startswith(("runtime.cwd", "runtime.output_dir", "run.dir", "sweep.dir")):
        return "leave it out: paths are relative to the working directory, and a run's own files have their folder"
    said = "a run's number and name are in its folder" if path == ("name",) else "the runner has no such value"
    return f"write the value out: {said}"


def suggest_decoding(value: Any, raw: Any) -> str:
    """Return the `oc.decode` spelling of an `oc.env` value that is no text; empty for any other value."""
    if not (isinstance(value, str) and isinstance(raw, str) and re.fullmatch(r"\$\{oc\.env:[^{}]*\}", raw)):
        return ""
    return "" if isinstance(yaml.safe_load(value), str) else f"${{oc.decode:{raw}}}"


def _find_too_large(config: dict[str, Any]) -> tuple[str | int, ...] | None:
    """Return the first key whose text exceeds MAX_SIZE with its interpolations written out, or None."""
    nodes = {format_key(path): value for path, value in _list_nodes(config, ())}
    sizes: dict[str, int] = {}

    def size(key: str, above: frozenset[str]) -> int:
        if key in above:
            return 0  # a circle, which is found when it is followed
        if key not in sizes:
            value, inside = nodes[key], above | {key}
            if isinstance(value, dict | list):
                names = value if isinstance(value, dict) else range(len(value))
                sizes[key] = 1 + sum(size(f"{key}.{name}", inside) for name in names)
            else:
                path = as_path(key)
                text = str(value)
                pointed = (
                    [format_key(resolve_reference(found, path)) for found in re.findall(r"\.*\w[\w.]*", text)]
                    if "${" in text
                    else []
                )
                sizes[key] = len(text) + sum(size(other, inside) for other in pointed if other in nodes)
        return sizes[key]

    return next((as_path(key) for key in nodes if size(key, frozenset()) > MAX_SIZE), None)


def _list_keys(config: Any) -> set[str]:
    return {format_key(path) for path, _ in _list_nodes(config, ())}


def _list_nodes(value: Any, path: tuple[str | int, ...]) -> Iterable[tuple[tuple[str | int, ...], Any]]:
    """Yield every path of plain data with its value."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _list_nodes(inner, (*path, name))
