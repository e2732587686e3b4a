"""`python -m runner resume RUN [--inexact] [--schedule WORD] [overrides]`: resume the last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import split_trust
from runner.core.errors import ConfigError, Mistake
from runner.experiment.preflight import processes as processes_preflight
from runner.experiment.record.recorded import load_recorded_config
from runner.experiment.resume import resume, split_schedule


def main(argv: Sequence[str]) -> int:
    """Resume the run named by the first argument; return the exit status."""
    rest, trust = split_trust(argv)
    rest, _ = split_schedule(rest)
    overrides = [argument for argument in rest if argument != "--inexact"]
    if not overrides:
        raise ConfigError([Mistake("RUN", "is missing", remedy="python -m runner resume outputs/<name>/<run>")])
    folder = Path(overrides[0])
    config, unresolved = load_recorded_config(folder, overrides[1:], trust)
    if started := processes_preflight.check_processes(config.device.parallel, ["resume", *argv]):
        raise ConfigError(started)
    return resume(folder, config, unresolved, ["resume", *argv], trust)
