"""`python -m runner resume RUN [overrides]`: continue an interrupted run from its newest checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config.recorded import recorded
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_trust


def main(argv: Sequence[str]) -> int:
    """Resume the run that the first argument names; the exit status."""
    rest, trust = split_trust(argv)
    if not rest:
        raise ConfigError([Mistake("RUN", "is missing", remedy="python -m runner resume outputs/<name>/<run>")])
    folder = Path(rest[0])
    config, unresolved = recorded(folder, rest[1:])
    return resume(folder, config, unresolved, ["resume", *argv], trust)


def resume(folder: Path, config: Config, unresolved: str, argv: Sequence[str], trust: tuple[str, ...]) -> int:
    """Continue a run with this config; one that is completed only says its result."""
    if not folder.is_dir():
        raise ConfigError([Mistake("run", "must be an existing run directory", str(folder))])
    result_file = folder / "result.json"
    if result_file.is_file():
        result = json.loads(result_file.read_text())
        if result["status"] == "completed":
            from runner.log import final_report

            final_report(result["metrics"], folder)
            print("This run is completed; nothing was done.", file=sys.stderr)
            return 0
    from runner import run

    command = ["python", "-m", "runner", *argv]
    return run.launch(config, folder, unresolved=unresolved, command=command, trust=trust, resume=True).status
