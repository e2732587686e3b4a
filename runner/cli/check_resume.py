"""`python -m runner check resume [--steps K]`: compare 2K steps with K + K resumed, bit by bit.

The run trains in a temporary folder, a checkpoint after each step. A process of its own then resumes from step K, so
that nothing survives but what was saved. Where the two differ, the run trains once more from the beginning: if that
differs too, something is not deterministic; if not, something has a state that no checkpoint holds.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb
from runner.config import compose
from runner.experiment.check_resume import STEPS, compare_resumed
from runner.experiment.examine import examine, make_reporter

STEPS_OPTION = Option("--steps", f"train K steps before and after the stop; {STEPS} unless given", "K", COUNT)


VERBS = (Verb("check resume", options=(STEPS_OPTION, JSON, TRUST)),)


def main(argv: Sequence[str]) -> int:
    """Train, resume and compare; return 0 if every bit is equal, 1 if not, 2 on mistakes."""
    given = VERBS[0].parse(argv)
    steps, trust = given.get("--steps", STEPS), given.trust
    settings = [
        f"train.duration={2 * steps}st",
        "train.checkpoint_every=1st",
        f"train.keep={2 * steps + 1}",
        "log.tensorboard=false",
        "log.progress=false",
    ]
    composed = compose.compose([*given.overrides, *settings])
    examined = examine(composed, trust, make_reporter())
    if examined.mistakes:
        return 2
    with tempfile.TemporaryDirectory(prefix="check_resume_") as scratch:
        answer = compare_resumed(Path(scratch), examined.config, composed.unresolved_yaml, steps, trust)
    if given.as_json:
        print(json.dumps(answer))
    else:
        print(answer["answer"])
    return 0 if answer["same"] else 1
