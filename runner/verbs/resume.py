"""`python -m runner resume RUN [--inexact] [overrides]`: continue an interrupted run from its newest checkpoint."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runner import torchrun
from runner.config.recorded import continuation, recorded
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_trust

STARTED = {".lock", ".heartbeat", ".hydra"}  # what a run leaves that was killed before it had a config


def main(argv: Sequence[str]) -> int:
    """Resume the run that the first argument names; the exit status."""
    rest, trust = split_trust(argv)
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

    `--inexact` in `argv` accepts that numbers may differ from those of an uninterrupted run. A folder with nothing
    in it yet is where the run begins.

    Raises:
        ConfigError: it is no run directory, in progress, or cannot be continued exactly; nothing was touched.
    """
    if not folder.is_dir():
        raise ConfigError([Mistake("run", "must be an existing run directory", str(folder))])
    inexact = "--inexact" in argv
    command = ["python", "-m", "runner", *argv]
    from runner import run  # a second of torch that a wrong RUN does not wait for

    if {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")} <= STARTED:
        return run.launch(config, folder, unresolved=unresolved, command=command, trust=trust).status
    again = continuation(folder, config, unresolved, trust)
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
    result = {}
    with suppress(OSError, ValueError):  # there is none, or it is damaged: its checkpoints say how far it is
        result = json.loads(file.read_text())
    if result.get("status") != "completed":
        return False
    from runner.log import final_report

    final_report(result["metrics"], folder)
    print("This run is completed; nothing was done.", file=sys.stderr)
    return True
