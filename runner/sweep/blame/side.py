"""Sides of a comparison: the config of a run, of a job of a sweep or of an experiment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.check.check import to_resolved_data
from runner.config.compose import compose
from runner.config.schema import PROCESSES, Config
from runner.core.errors import ConfigError, Mistake
from runner.experiment.examine import require_valid
from runner.experiment.record.recorded import load_recorded_config
from runner.sweep.runs.address import find_address


@dataclass(frozen=True)
class ComparedSide:
    """One of two configs: the word that named it, and its resolved config."""

    word: str
    config: Config

    @property
    def data(self) -> dict[str, Any]:
        """The config as plain data, every default filled in."""
        return to_resolved_data(self.config)


def load_side(name: str, word: str, overrides: Sequence[str], trust: tuple[str, ...]) -> ComparedSide:
    """Load the config that a word names, with overrides.

    Args:
        name: `A` or `B`, for errors.
        word: a run, a job `SWEEP:12`, or an experiment.
        overrides: of both sides.
        trust: patterns of trusted names: a record may come from a stranger.

    Raises:
        ConfigError: it names nothing, or its config is wrong.
    """
    address = find_address(word, ("run", "job", "experiment"), name=name)
    if len(address.runs) > 1:
        rule = f"must be one job, but {len(address.runs)} are named"
        raise ConfigError(
            [Mistake(name, rule, word, f"argument `{word}`", f"name one: `{word.split(',', maxsplit=1)[0]}`")]
        )
    if address.runs:
        config, _ = load_recorded_config(address.runs[0], overrides, trust, verb="blame")
    else:
        config = require_valid(compose([*address.overrides, *overrides]), trust).config
    if config.device.parallel in PROCESSES:
        rule, remedy = "must be none: short runs of a comparison have one process", "add `device.parallel=none`"
        raise ConfigError([Mistake("device.parallel", rule, config.device.parallel, f"`{word}`", remedy)])
    return ComparedSide(word, config)
