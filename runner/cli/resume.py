"""`python -m runner resume RUN [--inexact] [--schedule WORD] [overrides]`: resume the last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import EVENTS, INEXACT, SCHEDULE, TRUST, Verb
from runner.core.errors import ConfigError
from runner.experiment.preflight import processes as processes_preflight
from runner.experiment.record.recorded import load_recorded_config
from runner.experiment.resume import resume

VERBS = (Verb("resume", words=("RUN",), options=(INEXACT, SCHEDULE, EVENTS, TRUST)),)


def main(argv: Sequence[str]) -> int:
    """Resume the run named by the first argument; return the exit status."""
    given = VERBS[0].parse(argv)
    folder, command = Path(given.words[0]), ["resume", *argv]
    config, unresolved = load_recorded_config(folder, given.overrides, given.trust)
    if started := processes_preflight.check_processes(config.device.parallel, command):
        raise ConfigError(started)
    inexact, schedule = "--inexact" in given, given.get("--schedule", "")
    return resume(folder, config, unresolved, command, given.trust, inexact=inexact, schedule=schedule)
