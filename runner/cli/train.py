"""`python -m runner [-m] [overrides]`: check, then train a run or a sweep; or pass flags to Hydra."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import EVENTS, INEXACT, MULTIRUN, SCHEDULE, TRUST, Verb
from runner.cli.verbs import HYDRA_FLAGS
from runner.core.errors import ConfigError, Mistake
from runner.core.exit_status import EXIT_WRONG
from runner.train.distributed import environment

VERBS = (
    Verb(
        "",
        options=(MULTIRUN, INEXACT, SCHEDULE, EVENTS, TRUST),
        about="Check a config, then train a run of it; with `-m` a run for each point of a sweep.",
        examples=(
            ("", "the default experiment"),
            ("experiment=digits_mlp optimizer.lr=0.05 seed=1", "another one, with two settings of yours"),
            ("model=mlp train.duration=2ep log.tensorboard=false", "another option of a group"),
            ("-m optimizer.lr=0.1,0.01 seed=0,1,2", "a sweep of six runs; the same line again goes on where it was"),
            ("run=RUN train.duration=40ep", "a finished run for longer"),
        ),
    ),
)


def main(argv: Sequence[str], began: float | None = None) -> int:
    """Train what the command line asks for; return the exit status."""
    if any(argument.split("=")[0] in HYDRA_FLAGS for argument in argv):
        from runner.cli import hydra_questions

        return hydra_questions.answer(argv)
    given = VERBS[0].parse(argv)
    trust, inexact, schedule = given.trust, INEXACT.name in given, given.get(SCHEDULE.name, "")
    if MULTIRUN.name in given:
        _refuse_without_effect(inexact=inexact, schedule=schedule, reason="with `-m`")
        return _run_sweep(given.overrides, argv, trust)
    from runner.config import compose
    from runner.experiment.examine import examine, make_reporter, report_count
    from runner.experiment.preflight import processes as processes_preflight
    from runner.experiment.record.directory import make_run_dir

    composed = compose.compose(given.overrides)
    say = make_reporter()
    examined = examine(composed, trust, say)
    config = examined.config
    started = processes_preflight.check_processes(config.device.parallel, argv)
    say(started)
    if examined.mistakes or started:
        report_count([*examined.mistakes, *started])
        return EXIT_WRONG
    if config.run is not None:
        from runner.experiment.resume import resume

        unresolved = composed.unresolved_yaml
        return resume(Path(config.run), config, unresolved, argv, trust, inexact=inexact, schedule=schedule)
    _refuse_without_effect(inexact=inexact, schedule=schedule, reason="without `run=RUN`")
    from runner.experiment.on_event import tell_end
    from runner.experiment.run import train

    outcome = train(examined, composed, argv, trust, make_run_dir(Path("outputs"), config.name), began)
    tell_end(config.on_event, outcome.folder, outcome.result, outcome.status)
    return outcome.status


def _run_sweep(overrides: list[str], argv: Sequence[str], trust: tuple[str, ...]) -> int:
    """Run a sweep; a process for its jobs imports torch while the config is read."""
    if environment.read_place() is not None:
        from runner.experiment.preflight import processes as processes_preflight

        remedy = "without torchrun: `python -m runner -m …`; or one torchrun for each job"
        raise ConfigError([processes_preflight.make_torchrun_mistake("-m", remedy)])
    from runner.sweep.executors.server_process import start_early

    with start_early(overrides) as server:
        from runner.sweep import multirun

        return multirun.main(overrides, argv, trust, server)


def _refuse_without_effect(*, inexact: bool, schedule: str, reason: str) -> None:
    """Raise ConfigError where an option of a resumed run is given for another."""
    given = [("--inexact", "--inexact")] * inexact + [("--schedule", f"--schedule {schedule}")] * bool(schedule)
    rule = f"has no effect {reason}"
    if given:
        raise ConfigError([Mistake(name, rule, where=f"argument `{text}`", kind="no-effect") for name, text in given])
