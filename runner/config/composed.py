"""Composition of a config: plain data, its layers, and the mistakes that were made on the way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config.interpolation import resolve
from runner.config.moved import with_current_names
from runner.config.origins import Layers, as_path, format_argument
from runner.config.replaced import list_replaced
from runner.core.errors import Mistake


@dataclass
class Composed:
    """Composed configuration of one run, before the checks.

    Attributes:
        unresolved: as written, interpolations in place, without Hydra's own node.
        hydra: Hydra's own node.
        choices: the option of each group.
        overrides: the arguments that arrived.
        layers: who set what.
        mistakes: what kept Hydra from composing.
        unknown: keys of groups whose option is not known: what is missing there is no further mistake.
    """

    unresolved: DictConfig
    hydra: DictConfig
    choices: dict[str, str | None]
    overrides: list[str]
    layers: Layers
    mistakes: list[Mistake] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)

    @property
    def unresolved_yaml(self) -> str:
        """The config as written, interpolations in place."""
        return self.format_unresolved({})

    def format_unresolved(self, known: dict[str, str]) -> str:
        """Return the config as written, as `OmegaConf.to_yaml` formats it, section by section.

        `known` has the text of each section that was met before: jobs of a sweep have most of them in common.
        """
        plain: Any = OmegaConf.to_container(self.unresolved, resolve=False, enum_to_str=True)
        sections = [{name: value} for name, value in plain.items()] or [{}]
        for section in sections:
            if (written := repr(section)) not in known:
                known[written] = OmegaConf.to_yaml(section)
        return "".join(known[repr(section)] for section in sections)

    def blame(self, mistakes: Iterable[Mistake]) -> list[Mistake]:
        """Return the mistakes, each with the place of its key where it has no place yet."""
        return [m if m.where else replace(m, where=self.layers.blame(as_path(m.key))) for m in mistakes]

    def placed(self, places: Mapping[str, str]) -> "Composed":
        """Return a copy in which arguments that come from a point file are blamed on that file's lines."""
        arguments = {format_argument(text): where for text, where in places.items()}
        mistakes = [replace(m, where=arguments.get(m.where, m.where)) for m in self.mistakes]
        return replace(self, layers=self.layers.placed(arguments), mistakes=mistakes)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Plain data with resolved interpolations; an unresolvable one stays as written."""
        return self._resolution[0]

    @cached_property
    def notes(self) -> list[str]:
        """Return notes: on files that replace ours, the environment, settings written for another component."""
        of_layers = [*self.layers.notes_on_recipes(), *self.layers.notes_on_targets(self.config)]
        return [*list_replaced(), *self._resolution[2], *of_layers]

    @property
    def unresolvable(self) -> list[Mistake]:
        """One mistake for each interpolation that leads nowhere."""
        return self._resolution[1]

    @cached_property
    def _resolution(self) -> tuple[dict[str, Any], list[Mistake], list[str]]:
        data, mistakes, notes = resolve(self.unresolved, self.layers)
        return with_current_names(data), mistakes, notes
