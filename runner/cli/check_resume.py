"""`python -m runner check resume [--steps K]`: compare 2K steps with K + K resumed, bit by bit.

The run trains in a temporary folder, a checkpoint after each step. A process of its own then resumes from step K, so
that nothing survives but what was saved. Where the two differ, the run trains once more from the beginning: if that
differs too, something is not deterministic; if not, something has a state that no checkpoint holds.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import split_trust
from runner.config import compose
from runner.core.errors import ConfigError, Mistake
from runner.experiment.check_resume import STEPS, compare_resumed
from runner.experiment.examine import examine, make_reporter

USAGE = "python -m runner check resume [--steps K] [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Train, resume and compare; return 0 if every bit is equal, 1 if not, 2 on mistakes."""
    rest, trust = split_trust(argv)
    steps, as_json, overrides = _parse_arguments(rest)
    settings = [
        f"train.duration={2 * steps}st",
        "train.checkpoint_every=1st",
        f"train.keep={2 * steps + 1}",
        "log.tensorboard=false",
        "log.progress=false",
    ]
    composed = compose.compose([*overrides, *settings])
    examined = examine(composed, trust, make_reporter())
    if examined.mistakes:
        return 2
    with tempfile.TemporaryDirectory(prefix="check_resume_") as scratch:
        answer = compare_resumed(Path(scratch), examined.config, composed.unresolved_yaml, steps, trust)
    if as_json:
        print(json.dumps(answer))
    else:
        print(answer["answer"])
    return 0 if answer["same"] else 1


def _parse_arguments(rest: Sequence[str]) -> tuple[int, bool, list[str]]:
    steps, as_json, overrides, arguments = str(STEPS), False, [], iter(rest)
    for argument in arguments:
        if argument == "--json":
            as_json = True
        elif argument == "--steps":
            steps = next(arguments, "")
        elif argument.startswith("--steps="):
            steps = argument.removeprefix("--steps=")
        else:
            overrides.append(argument)
    if not steps.isdecimal() or int(steps) < 1:
        raise ConfigError([Mistake("--steps", "must be a number of at least 1", steps, remedy=USAGE)])
    return int(steps), as_json, overrides
