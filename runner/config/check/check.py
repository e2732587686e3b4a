"""Everything that can be known to be wrong with a configuration, all at once."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from runner.config import schema
from runner.config.arguments import for_shell
from runner.config.check.imports import TargetError, look
from runner.config.check.rules import collect, sweep
from runner.config.hydra_loader import Composed
from runner.config.interpolation import from_environment
from runner.config.origins import shown
from runner.config.parsing import UNKNOWN_KEY, Reading, dotted, plain, read
from runner.core.errors import ABSENT, ConfigError, Mistake

Path_ = tuple[str | int, ...]


UNKNOWN_ARGUMENT, MISSING = "is not an argument of", "must be given"


def parse(data: dict[str, Any]) -> schema.Config:
    """Plain data, such as a run's recorded `config.yaml`, as a typed config.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of range.
    """
    config, reading = read(data)
    if reading.mistakes:
        raise ConfigError([mistake for _, mistake in reading.mistakes])
    return config


def resolved(config: schema.Config) -> dict[str, Any]:
    """Plain data with every default filled in, for `config.yaml`; `parse(resolved(c)) == c`."""
    data: dict[str, Any] = plain(config)
    return data


def check(composed: Composed, trust: Sequence[str] = ()) -> schema.Config:
    """The typed config of a composition.

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
    """One composition under check: first what needs no import (`at_once`), then what does (`by_import`)."""

    composed: Composed
    trust: tuple[str, ...] = ()

    @cached_property
    def _read(self) -> tuple[schema.Config, Reading]:
        return read(self.composed.config)

    @property
    def config(self) -> schema.Config:
        """The typed config, meaningful where nothing is wrong."""
        return self._read[0]

    @cached_property
    def at_once(self) -> list[Mistake]:
        """What can be known without importing torch."""
        composed, (config, reading) = self.composed, self._read
        found = [*composed.unresolvable, *self.placed(mistake for _, mistake in reading.mistakes)]
        wrong = {key for mistake in found for key in (mistake.key, mistake.suggestion)} | composed.unknown
        found += self.placed(self._refused.values())
        for finding in collect.findings(config, composed.choices):
            keys = (finding.mistake.key, *finding.follows_from)
            if not any(bad == key or bad.startswith(f"{key}.") for key in keys for bad in wrong):
                found += self.placed([finding.mistake])
        if not self._is_job_of_a_preset:
            found += sweep.without_multirun(composed.overrides)
        return [*composed.mistakes, *self._independent(found)]

    @property
    def _is_job_of_a_preset(self) -> bool:
        """Whether the option of `sweep` says more than how to sweep, and the arguments are those of one of its jobs."""
        swept = set(OmegaConf.select(self.composed.hydra, "sweeper.params") or {})
        swept |= {"seed"} if self.config.sweep.seeds else set()
        given = {text.partition("=")[0] for text in self.composed.overrides}
        return swept <= given and not self.composed.layers.sets_only("sweep", sweep.OF_THE_SWEEP)

    def _independent(self, mistakes: list[Mistake], before: Sequence[Mistake] = ()) -> list[Mistake]:
        """Without those that only follow from another one, or that an alias repeats."""
        known = [*before, *mistakes]
        meant = {
            mistake.suggestion for mistake in known if mistake.rule == UNKNOWN_KEY or UNKNOWN_ARGUMENT in mistake.rule
        }
        seen = {mistake.key for mistake in before}
        nodes = set()
        kept = []
        for mistake in mistakes:
            path = _as_path(mistake.key)
            pointed_to = {dotted(key) for key in self.composed.layers.references(path)}
            follows = (
                mistake.key in seen
                or (mistake.key in meant and MISSING in mistake.rule)
                or pointed_to & meant
                or any(other.key in pointed_to and not self._points_at(other, path) for other in known)
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
        """Components whose names are refused without an import, by path."""
        refused = {}
        for path, name in self._names():
            try:
                look(name, self.trust)
            except TargetError as error:
                key = dotted((*path, "_target_")) if path[0] != "init" or path[-1] != "module" else dotted(path)
                refused[path] = Mistake(key, error.rule, name, remedy=error.remedy, suggestion=error.suggestion)
        return refused

    def _names(self) -> Iterator[tuple[Path_, str]]:
        for path, _, node in self._read[1].components:
            yield from _targets(path, node)
        yield from self._module_types()

    def _module_types(self) -> Iterator[tuple[Path_, str]]:
        """The module types that init rules name."""
        for label, rule in self.config.init.rules.items():
            modules = [] if rule is None or rule.module is None else rule.module
            if isinstance(modules, str):
                yield ("init", "rules", label, "module"), modules
            else:
                for index, module in enumerate(modules):
                    yield ("init", "rules", label, "module", index), module

    def of_the_sweep(self) -> list[Mistake]:
        """`by_import` of the sweep's own components, which no job has."""
        from runner.config.check.components import Found, check_component

        found = Found(untrusted=frozenset(self._refused))
        for path, slot, node in self._read[1].components:
            if path[0] == "sweep":
                check_component(path, slot, node, self.trust, found)
        return self.placed(mistake for _, mistake in found.mistakes)

    def of_a_record(self) -> list[Mistake]:
        """Check keys, names, slots and arguments alone: what else was right when it was recorded may stay as it is."""
        mistakes = [
            *self.placed(mistake for _, mistake in self._read[1].mistakes),
            *self.placed(self._refused.values()),
        ]
        found = [*self.composed.mistakes, *self.composed.unresolvable, *mistakes]
        return found or self._independent(self._imported())

    def by_import(self) -> list[Mistake]:
        """What shows only when the targets are imported: names, slots and arguments."""
        return self._independent(self._imported(), self.at_once)

    def _imported(self) -> list[Mistake]:
        from runner.config.check.components import Found, check_component, check_group_settings, check_module_type

        found = Found(untrusted=frozenset(self._refused))
        for path, slot, node in self._read[1].components:
            check_component(path, slot, node, self.trust, found)
        for path, name in self._module_types():
            if path not in self._refused:
                check_module_type(path, name, self.trust, found)
        if ("optimizer",) not in self._refused:
            groups = {label: group.settings for label, group in self.config.param_groups.items() if group is not None}
            check_group_settings(self.config.optimizer, groups, self.trust, found)
        return self.placed(mistake for _, mistake in found.mistakes)

    def placed(self, mistakes: Iterable[Mistake]) -> list[Mistake]:
        """The mistakes with what made them: a missing argument is blamed on the line of its `_target_`."""
        placed = []
        for mistake in mistakes:
            if mistake.where:
                where = f"{mistake.where}; named by {self.composed.layers.blame(_as_path(mistake.key))}"
            else:
                where = self.composed.layers.blame(self._blamed(mistake))
            said = mistake if mistake.where else self._as_written(mistake, where)
            placed.append(shown(replace(said, where=where), self.composed.layers.cwd))
        return placed

    def _as_written(self, mistake: Mistake, where: str) -> Mistake:
        """The mistake with a remedy that can be written where the value was: in a file, or on the command line."""
        path = self._blamed(mistake)
        settings = self.composed.layers.settings(path)
        is_argument = where.startswith("argument `")
        decoded = from_environment(mistake.value, settings[-1].value) if settings else ""
        if decoded:
            line = for_shell(f'{mistake.key}="{decoded}"') if is_argument else f"{path[-1]}: {decoded}"
            return replace(mistake, remedy=f"the environment gives texts: write `{line}`", suggestion=decoded)
        if is_argument and re.fullmatch(r"'[^']*'", mistake.suggestion):
            line = f'{mistake.key}="{mistake.suggestion[1:-1]}"'
            return replace(mistake, remedy=f"quote it: {for_shell(line)}")
        return mistake

    @cached_property
    def _with_dots(self) -> dict[str, Path_]:
        """The paths of keys that hold dots themselves, by how they are spelled in full."""
        paths = (path for path, _ in self._read[1].mistakes)
        return {dotted(path): path for path in paths if any("." in str(part) for part in path)}

    def _blamed(self, mistake: Mistake) -> Path_:
        path = self._with_dots.get(mistake.key) or _as_path(mistake.key)
        settings = self.composed.layers.settings(path)
        if not settings or settings[-1].value is ABSENT:
            target = (*path[:-1], "_target_")
            if self.composed.layers.settings(target):
                return target
        return path


def _as_path(key: str) -> Path_:
    plain_key = re.sub(r"\[(\d+)\]", r".\1", key)  # `freeze.params[0]`
    return tuple(int(part) if part.isdigit() else part for part in plain_key.split("."))


def _targets(path: Path_, value: Any) -> Iterator[tuple[Path_, str]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value["_target_"]
        for name, inner in value.items():
            yield from _targets((*path, name), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _targets((*path, index), inner)
