"""Resume of a recorded run: find its directory, compose its config again, and train on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config.schema import Config
from runner.core import event_stream
from runner.core.errors import ConfigError, Mistake
from runner.core.exit_status import EXIT_DONE
from runner.experiment.record.continuation import plan_continuation
from runner.experiment.record.recorded import is_run
from runner.experiment.record.recorded_run import RecordedRun

# What a run leaves that was killed, or that failed, before it had a config.
STARTED = {".lock", ".heartbeat", ".hydra", "log.txt", "result.json"}


def resume(
    folder: Path,
    config: Config,
    unresolved: str,
    argv: Sequence[str],
    trust: tuple[str, ...],
    *,
    inexact: bool = False,
    schedule: str = "",
) -> int:
    """Continue a run with this config; only print the result of a completed run.

    A folder with nothing in it yet is where the run begins.

    Args:
        folder: the run directory.
        config: what it trains with from here on.
        unresolved: the same as YAML, with its interpolations.
        argv: the command line, for the record.
        trust: patterns of trusted names.
        inexact: whether numbers may differ from those of an uninterrupted run.
        schedule: `follow`, `constant` or `continue`, what the learning rate does in a run that trains for longer.

    Raises:
        ConfigError: it is no run directory, in progress, or cannot be continued exactly; nothing was touched.
    """
    if not folder.is_dir():
        raise ConfigError([Mistake("run", "must be an existing run directory", str(folder), kind="file")])
    command = ["python", "-m", "runner", *argv]
    from runner.experiment import run  # a second of torch that a wrong RUN does not wait for
    from runner.experiment.on_event import tell_end

    if not is_run(folder):
        there = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")} - STARTED
        if there:
            listed = ", ".join(sorted(there)[:5])
            rule = f"must be an empty folder or a run directory: it has no config.yaml, but {listed}"
            raise ConfigError(
                [Mistake("run", rule, str(folder), remedy="name a new folder, and make it: `mkdir -p`", kind="file")]
            )
        outcome = run.launch(config, folder, unresolved=unresolved, command=command, trust=trust)
        tell_end(config.on_event, folder, outcome.result, outcome.status)
        return outcome.status
    again = plan_continuation(folder, config, unresolved, trust, schedule)
    if again.changes and not inexact:
        raise ConfigError(again.changes)
    if not again.longer and not again.changes and is_completed(folder):
        print_result(folder)
        return EXIT_DONE
    outcome = run.launch(
        again.config, folder, unresolved=again.unresolved, command=command, trust=trust, again=again, inexact=inexact
    )
    tell_end(config.on_event, folder, outcome.result, outcome.status)
    return outcome.status


def is_completed(folder: Path) -> bool:
    """Return whether a run is completed."""
    return RecordedRun(folder).read_final_metrics() is not None


def print_result(folder: Path) -> None:
    """Print the result of a completed run, which is not trained on."""
    from runner.log.console import print_final_report

    print_final_report(RecordedRun(folder).read_final_metrics() or {}, folder)
    print("This run is completed; nothing was done.", file=sys.stderr)
    event_stream.record_outcome({"run": str(folder), **RecordedRun(folder).read_result()})
