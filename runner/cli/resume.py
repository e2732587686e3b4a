"""`python -m runner resume RUN [--inexact] [--schedule WORD] [overrides]`: resume the last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import EVENTS, INEXACT, SCHEDULE, TRUST, Verb
from runner.core.errors import ConfigError

VERBS = (
    Verb(
        "resume",
        words=("RUN",),
        options=(INEXACT, SCHEDULE, EVENTS, TRUST),
        about="Continue an interrupted run from its last checkpoint, to the same bits as if it had not stopped.",
        examples=(
            ("resume outputs/digits_cnn/2026-01-31_12-00-00_a1b2", "go on"),
            (
                "resume outputs/digits_cnn/2026-01-31_12-00-00_a1b2 train.duration=40ep --schedule continue",
                "for longer, at the last learning rate",
            ),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Resume the run named by the first argument; return the exit status."""
    given = VERBS[0].parse(argv)
    from runner.experiment.preflight import processes as processes_preflight
    from runner.experiment.record.recorded import load_recorded_config
    from runner.experiment.resume import resume

    folder, command = Path(given.words[0]), ["resume", *argv]
    config, unresolved = load_recorded_config(folder, given.overrides, given.trust)
    if started := processes_preflight.check_processes(config.device.parallel, command):
        raise ConfigError(started)
    inexact, schedule = "--inexact" in given, given.get("--schedule", "")
    return resume(folder, config, unresolved, command, given.trust, inexact=inexact, schedule=schedule)
