"""`python -m runner resume RUN [--inexact] [--schedule WORD] [overrides]`: go on from the newest checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runner import torchrun
from runner.config.recorded import continuation, is_run, recorded
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_schedule, split_trust

# What a run leaves that was killed, or that failed, before it had a config.
STARTED = {".lock", ".heartbeat", ".hydra", "log.txt", "result.json"}


def main(argv: Sequence[str]) -> int:
    """Resume the run that the first argument names; the exit status."""
    rest, trust = split_trust(argv)
    rest, _ = split_schedule(rest)
    overrides = [argument for argument in rest if argument != "--inexact"]
    if not overrides:
        raise ConfigError([Mistake("RUN", "is missing", remedy="python -m runner resume outputs/<name>/<run>")])
    folder = Path(overrides[0])
    config, unresolved = recorded(folder, overrides[1:], trust)
    if started := torchrun.mistakes(config.device.parallel, ["resume", *argv]):
        raise ConfigError(started)
    return resume(folder, config, unresolved, ["resume", *argv], trust)


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
    from runner import run  # a second of torch that a wrong RUN does not wait for

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
        result = json.loads(file.read_bytes())
        if result["status"] != "completed":
            return False
        metrics = {str(name): float(value) for name, value in result["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    from runner.log import final_report

    final_report(metrics, folder)
    print("This run is completed; nothing was done.", file=sys.stderr)
    return True
