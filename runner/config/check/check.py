"""Check a composed config and report every mistake at once."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from omegaconf import OmegaConf

from runner.config import schema
from runner.config.arguments import quote_for_shell
from runner.config.check.commands import check_command
from runner.config.check.imports import TargetError, check_name
from runner.config.check.places import find_misplaced, find_run_elsewhere
from runner.config.check.rules import collect, sweep
from runner.config.check.rules.rule import Finding
from runner.config.composed import Composed
from runner.config.interpolation import suggest_decoding
from runner.config.origins import Setting, make_relative
from runner.config.parsing import read, read_members, to_plain
from runner.config.reading import Reading, format_key
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.shared_answers import ask_once

Path_ = tuple[str | int, ...]


def parse(data: dict[str, Any]) -> schema.Config:
    """Parse plain data, such as a run's recorded `config.yaml`, into a typed config.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of range.
    """
    config, reading = read(data)
    if reading.mistakes:
        raise ConfigError([mistake for _, mistake in reading.mistakes])
    return config


def to_resolved_data(config: schema.Config) -> dict[str, Any]:
    """Convert a typed config to plain data with every default, for `config.yaml`; `parse` inverts it."""
    data: dict[str, Any] = to_plain(config)
    return data


def check(composed: Composed, trust: Sequence[str] = ()) -> schema.Config:
    """Check a composition and return its typed config.

    Raises:
        ConfigError: every mistake, each with the place that made it.
    """
    checked = Check(composed, tuple(trust))
    mistakes = [*checked.at_once, *checked.by_import()]
    if mistakes:
        raise ConfigError(mistakes)
    return checked.config


@dataclass
class Check:
    """Checks of one composition: `at_once` needs no import, `by_import` imports the targets.

    Attributes:
        composed: the composition.
        trust: patterns of names trusted on the command line.
        multirun: whether it is that of a whole sweep and not that of a job or a single run.
    """

    composed: Composed
    trust: tuple[str, ...] = ()
    multirun: bool = False
    notes: list[str] = field(default_factory=list)  # of `by_import`
    data_folders: tuple[str, ...] = ()  # elsewhere, which the user has named for what a dataset downloads by itself
    _misfits: set[str] = field(default_factory=set)

    @cached_property
    def _read(self) -> tuple[schema.Config, Reading]:
        return read(self.composed.config)

    @property
    def config(self) -> schema.Config:
        """The typed config, meaningful only where nothing is wrong."""
        return self._read[0]

    @cached_property
    def at_once(self) -> list[Mistake]:
        """Mistakes that are known without importing torch."""
        composed, (config, reading) = self.composed, self._read
        found = [*composed.unresolvable, *self.placed(mistake for _, mistake in reading.mistakes)]
        wrong = {key for mistake in found for key in (mistake.key, mistake.suggestion)} | composed.unknown
        found += self.placed(self._refused.values())
        findings = [*collect.collect_findings(config, composed.choices), *map(Finding, self._misplaced())]
        for finding in findings:
            keys = (finding.mistake.key, *finding.follows_from)
            if not any(bad == key or bad.startswith(f"{key}.") for key in keys for bad in wrong):
                found += self.placed([finding.mistake])
        found += check_command(config.on_event, composed.layers, self.trust)
        if not self.multirun and not self._is_job_of_a_preset:
            found += sweep.find_multirun_only(composed.overrides)
        return [*composed.mistakes, *self._independent(found)]

    def _misplaced(self) -> Iterator[Mistake]:
        """Yield the mistakes of places that would be written to."""
        config = self.config
        yield from find_misplaced(config, self.trust)
        if isinstance(config.run, str) and not self.composed.layers.is_argument(("run",)):
            elsewhere = find_run_elsewhere(config.run)
            if elsewhere is not None:
                yield elsewhere

    @property
    def _is_job_of_a_preset(self) -> bool:
        """Whether a `sweep` preset also sets keys of jobs and the arguments give every swept key."""
        swept = set(OmegaConf.select(self.composed.hydra, "sweeper.params") or {})
        swept |= {"seed"} if self.config.sweep.seeds else set()
        given = {text.partition("=")[0] for text in self.composed.overrides}
        return swept <= given and not self.composed.layers.sets_only("sweep", sweep.OF_THE_SWEEP)

    def _independent(self, mistakes: list[Mistake], before: Sequence[Mistake] = ()) -> list[Mistake]:
        """Drop mistakes that follow from another mistake or that a YAML alias repeats."""
        known = [*before, *mistakes]
        meant = {mistake.suggestion for mistake in known if mistake.kind in ("unknown-key", "unknown-argument")}
        seen = {mistake.key for mistake in before}
        nodes = set()
        kept = []
        for mistake in mistakes:
            path = _as_path(mistake.key)
            pointed_to = {format_key(key) for key in self.composed.layers.references(path)}
            follows = (
                mistake.key in seen
                or (mistake.key in meant and mistake.kind == "missing")
                or pointed_to & meant
                or (
                    bool(pointed_to)
                    and any(other.key in pointed_to and not self._points_at(other, path) for other in known)
                )
                or self._follows_from_unknown_option(mistake)
            )
            node = (self.composed.layers.node(self._blamed(mistake)), mistake.rule, repr(mistake.value))
            if not follows and (node[0] is None or node not in nodes):
                kept.append(mistake)
                seen.add(mistake.key)
                nodes.add(node)
        return kept

    def _points_at(self, mistake: Mistake, path: Path_) -> bool:
        return path in self.composed.layers.references(_as_path(mistake.key))

    def _follows_from_unknown_option(self, mistake: Mistake) -> bool:
        return any(f"{mistake.key}.".startswith(f"{group}.") for group in self.composed.unknown)

    @cached_property
    def _refused(self) -> dict[Path_, Mistake]:
        """Mistakes of components whose names are refused without an import, by path."""
        refused = {}
        for path, name in self._names():
            try:
                ask_once(("name", name, self.trust), partial(check_name, name, self.trust))
            except TargetError as error:
                key = format_key((*path, "_target_")) if path[0] != "init" or path[-1] != "module" else format_key(path)
                refused[path] = Mistake(
                    key, error.rule, name, remedy=error.remedy, suggestion=error.suggestion, kind=error.kind
                )
        return refused

    def _names(self) -> Iterator[tuple[Path_, str]]:
        for path, _, node in self._read[1].components:
            yield from _find_targets(path, node)
        yield from self._module_types()

    def _module_types(self) -> Iterator[tuple[Path_, str]]:
        """Yield the path and name of each module type in the init rules."""
        for label, rule in self.config.init.rules.items():
            modules = [] if rule is None or rule.module is None else rule.module
            if isinstance(modules, str):
                yield ("init", "rules", label, "module"), modules
            else:
                for index, module in enumerate(modules):
                    yield ("init", "rules", label, "module", index), module

    def of_the_sweep(self) -> list[Mistake]:
        """Check by import the sweep's own components, which no job has."""
        from runner.config.check.components import PlacedMistakes, check_component

        found = PlacedMistakes(untrusted=frozenset(self._refused))
        for path, slot, node in self._read[1].components:
            if path[0] == "sweep":
                check_component(path, slot, node, self.trust, found)
        return self.placed(mistake for _, mistake in found.mistakes)

    def of_a_record(self) -> list[Mistake]:
        """Check keys, names, slots and arguments of a recorded config, but no rules between keys."""
        mistakes = [
            *self.placed(mistake for _, mistake in self._read[1].mistakes),
            *self.placed(self._refused.values()),
        ]
        if not mistakes:
            mistakes = self.placed(find_misplaced(self.config, self.trust))
        found = [*self.composed.mistakes, *self.composed.unresolvable, *mistakes]
        return found or self._independent(self._imported())

    def by_import(self) -> list[Mistake]:
        """Return the mistakes that need imports: names, slots and arguments of the targets."""
        return self._independent(self._imported(), self.at_once)

    def _imported(self) -> list[Mistake]:
        from runner.config.check.component_settings import is_own_step
        from runner.config.check.components import (
            PlacedMistakes,
            check_component,
            check_group_settings,
            check_module_type,
        )

        own_step = ("step",) in self._refused or is_own_step(self.config.step, self.trust)
        found = PlacedMistakes(own_step=own_step, untrusted=frozenset(self._refused))
        for path, slot, node in self._read[1].components:
            check_component(path, slot, node, self.trust, found)
        for path, name in self._module_types():
            if path not in self._refused:
                check_module_type(path, name, self.trust, found)
        if ("optimizer",) not in self._refused:
            config = self.config
            members = {} if self._read[1].mistakes else read_members(config.optimizer)
            nodes: dict[tuple[str, ...], Any] = {(): (config.optimizer, config.param_groups)} if not members else {}
            nodes |= {("optimizer", name): (one.arguments, one.param_groups) for name, one in members.items()}
            for place, (node, own) in nodes.items():
                groups = {label: group.settings for label, group in own.items() if group is not None}
                check_group_settings(node, groups, self.trust, found, place)
        self._misfits |= {str(path[0]) for path, _ in found.mistakes}
        mistakes = self.placed(mistake for _, mistake in found.mistakes)
        if not mistakes and not self._refused:
            mistakes = self.placed(self._of_own_downloads())
        return mistakes

    def _of_own_downloads(self) -> Iterator[Mistake]:
        """Yield the mistakes of datasets that download by themselves, and note how they verify."""
        from runner.config.check.own_downloads import check_own_download, describe_own_download, find_own_downloads

        self.notes.clear()
        for path, slot, node in self._read[1].components:
            for own in find_own_downloads(path, node, self.trust) if slot == "dataset" else ():
                is_named = own.root in self.data_folders
                mistakes = [] if is_named else list(check_own_download(own, self._is_argument, self.trust))
                yield from mistakes
                self.notes += [] if mistakes else [describe_own_download(own)]

    def _is_argument(self, path: Path_) -> bool:
        return self.composed.layers.is_argument(path)

    @property
    def wrong_components(self) -> set[str]:
        """Top-level keys with a component that is refused, also where its mistake follows from another one."""
        return {str(path[0]) for path in self._refused} | self._misfits

    def placed(self, mistakes: Iterable[Mistake]) -> list[Mistake]:
        """Return the mistakes with their places; a missing argument has the line of its `_target_`."""
        placed = []
        for mistake in mistakes:
            if mistake.where:
                where = f"{mistake.where}; named by {self.composed.layers.blame(_as_path(mistake.key))}"
            else:
                where = self.composed.layers.blame(self._blamed(mistake))
            said = mistake if mistake.where else self._as_written(mistake, where)
            placed.append(make_relative(replace(said, where=where), self.composed.layers.cwd))
        return placed

    def _as_written(self, mistake: Mistake, where: str) -> Mistake:
        """Return the mistake with a remedy in the syntax of its place: YAML file or command line."""
        path = self._blamed(mistake)
        settings = self.composed.layers.settings(path)
        is_argument = where.startswith("argument `")
        decoded = suggest_decoding(mistake.value, settings[-1].value) if settings else ""
        if decoded:
            line = quote_for_shell(f'{mistake.key}="{decoded}"') if is_argument else f"{path[-1]}: {decoded}"
            return replace(mistake, remedy=f"the environment gives texts: write `{line}`", suggestion=decoded)
        if is_argument and re.fullmatch(r"'[^']*'", mistake.suggestion):
            line = f'{mistake.key}="{mistake.suggestion[1:-1]}"'
            return replace(mistake, remedy=f"quote it: {quote_for_shell(line)}")
        earlier = mistake.kind == "unknown-argument" and self.composed.layers.find_earlier_target(path)
        if earlier:
            return replace(mistake, remedy=_leave_out(path, where, *earlier), suggestion="")
        return mistake

    @cached_property
    def _with_dots(self) -> dict[str, Path_]:
        """Paths of keys that contain dots themselves, by their full spelling."""
        paths = (path for path, _ in self._read[1].mistakes)
        return {format_key(path): path for path in paths if any("." in str(part) for part in path)}

    def _blamed(self, mistake: Mistake) -> Path_:
        path = self._with_dots.get(mistake.key) or _as_path(mistake.key)
        settings = self.composed.layers.settings(path)
        if not settings or settings[-1].value is ABSENT:
            target = (*path[:-1], "_target_")
            if self.composed.layers.settings(target):
                return target
        return path


def _leave_out(path: Path_, where: str, written_for: object, now: Setting) -> str:
    """Return the remedy for an argument that belongs to a component in whose place another one was named."""
    if f"/{path[0]}/" in where and len(path) == 2 and not now.where.startswith("argument `"):
        place = f"`override /{path[0]}: null` in the defaults of {now.where.rpartition(':')[0]}"
    elif len(path) == 2 and now.where.startswith(f"argument `{path[0]}={{"):
        place = f"`{path[0]}=null` before that argument"
    else:
        place = f"`~{format_key(path)}` on the command line"
    return f"it was written for `{written_for}`: {place} leaves it out"


def _as_path(key: str) -> Path_:
    plain_key = re.sub(r"\[(\d+)\]", r".\1", key)  # `freeze.params[0]`
    return tuple(int(part) if part.isdigit() else part for part in plain_key.split("."))


def _find_targets(path: Path_, value: Any) -> Iterator[tuple[Path_, str]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value["_target_"]
        for name, inner in value.items():
            yield from _find_targets((*path, name), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find_targets((*path, index), inner)
