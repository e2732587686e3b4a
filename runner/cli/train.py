"""`python -m runner [-m] [overrides]`: check, then train a run or a sweep; or pass flags to Hydra."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli import hydra_questions
from runner.cli.options import split_trust
from runner.config import compose
from runner.core.errors import ConfigError, Mistake, format_count
from runner.experiment.examine import examine, make_reporter
from runner.experiment.preflight import processes as processes_preflight
from runner.experiment.record.directory import make_run_dir
from runner.experiment.resume import split_schedule
from runner.train.distributed import environment


def main(argv: Sequence[str], began: float | None = None) -> int:
    """Train what the command line asks for; return the exit status."""
    if any(argument.split("=")[0] in hydra_questions.FLAGS for argument in argv):
        return hydra_questions.answer(argv)
    overrides, trust = split_trust(argv)
    overrides, schedule = split_schedule(overrides)
    if {"-m", "--multirun"} & set(overrides):
        if environment.read_place() is not None:
            remedy = "without torchrun: `python -m runner -m …`; or one torchrun for each job"
            raise ConfigError([processes_preflight.make_torchrun_mistake("-m", remedy)])
        from runner.sweep import multirun

        return multirun.main([argument for argument in overrides if argument not in ("-m", "--multirun")], argv, trust)
    composed = compose.compose([argument for argument in overrides if argument != "--inexact"])
    say = make_reporter()
    examined = examine(composed, trust, say)
    config = examined.config
    started = processes_preflight.check_processes(config.device.parallel, argv)
    say(started)
    if examined.mistakes or started:
        print(format_count(len(examined.mistakes) + len(started)), file=sys.stderr)
        return 2
    if config.run is None and "--inexact" in overrides:
        raise ConfigError([Mistake("--inexact", "has no effect without `run=RUN`", where="argument `--inexact`")])
    if config.run is None and schedule:
        where = f"argument `--schedule {schedule}`"
        raise ConfigError([Mistake("--schedule", "has no effect without `run=RUN`", where=where)])
    if config.run is not None:
        from runner.experiment import resume

        return resume.resume(Path(config.run), config, composed.unresolved_yaml, argv, trust)
    from runner.experiment.run import train

    return train(examined, composed, argv, trust, make_run_dir(Path("outputs"), config.name), began).status
