"""Resume a recorded run: find its directory, compose its config again, and train on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config.schema import Config
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake
from runner.core.safe_io import read_json
from runner.experiment.record.recorded import continuation, is_run

# What a run leaves that was killed, or that failed, before it had a config.
STARTED = {".lock", ".heartbeat", ".hydra", "log.txt", "result.json"}


SCHEDULES = ("follow", "constant", "continue")  # of a run that trains for longer


def resume(folder: Path, config: Config, unresolved: str, argv: Sequence[str], trust: tuple[str, ...]) -> int:
    """Continue a run with this config; one that is completed only says its result.

    `--inexact` in `argv` accepts that numbers may differ from those of an uninterrupted run; `--schedule` says what the
    learning rate does in a run that trains for longer. A folder with nothing
    in it yet is where the run begins.

    Raises:
        ConfigError: it is no run directory, in progress, or cannot be continued exactly; nothing was touched.
    """
    if not folder.is_dir():
        raise ConfigError([Mistake("run", "must be an existing run directory", str(folder))])
    inexact = "--inexact" in argv
    _, schedule = split_schedule(argv)
    command = ["python", "-m", "runner", *argv]
    from runner.experiment import run  # a second of torch that a wrong RUN does not wait for

    if not is_run(folder):
        there = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")} - STARTED
        if there:
            listed = ", ".join(sorted(there)[:5])
            rule = f"must be an empty folder or a run directory: it has no config.yaml, but {listed}"
            raise ConfigError([Mistake("run", rule, str(folder), remedy="name a new folder, and make it: `mkdir -p`")])
        return run.launch(config, folder, unresolved=unresolved, command=command, trust=trust).status
    again = continuation(folder, config, unresolved, trust, schedule)
    if again.changes and not inexact:
        raise ConfigError(again.changes)
    if not again.longer and not again.changes and is_completed(folder):
        return 0
    return run.launch(
        again.config, folder, unresolved=again.unresolved, command=command, trust=trust, again=again, inexact=inexact
    ).status


def is_completed(folder: Path) -> bool:
    """Whether a run is completed; then its result is said."""
    file = folder / "result.json"
    try:  # where there is none, or it is damaged, its checkpoints say how far it is
        result = read_json(file)
        if result["status"] != "completed":
            return False
        metrics = {str(name): float(value) for name, value in result["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    from runner.log.console import final_report

    final_report(metrics, folder)
    print("This run is completed; nothing was done.", file=sys.stderr)
    return True


def split_schedule(argv: Sequence[str]) -> tuple[list[str], str]:
    """The command line without `--schedule WORD` (or `--schedule=WORD`), and the word; empty where there is none.

    Raises:
        ConfigError: it is none of SCHEDULES.
    """
    rest, word, arguments = [], "", iter(argv)
    for argument in arguments:
        option, separator, value = argument.partition("=")
        if option != "--schedule":
            rest.append(argument)
            continue
        word = value if separator else next(arguments, "")
        if word not in SCHEDULES:
            near = find_nearest(word, SCHEDULES)
            rule = f"must be {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}"
            raise ConfigError(
                [Mistake("--schedule", rule, word, f"argument `{argument}`", format_suggestion(near), near)]
            )
    return rest, word
