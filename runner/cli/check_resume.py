"""`python -m runner check resume [--steps K]`: compare 2K steps with K + K resumed, bit by bit.

The run trains in a temporary folder, a checkpoint after each step. A process of its own then resumes from step K, so
that nothing survives but what was saved. Where the two differ, the run trains once more from the beginning: if that
differs too, something is not deterministic; if not, something has a state that no checkpoint holds.
"""

from collections.abc import Sequence

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED

STEPS_OPTION = Option("--steps", "train K steps before and after the stop; 5 unless given", "K", COUNT)


VERBS = (
    Verb(
        "check resume",
        options=(STEPS_OPTION, JSON, TRUST),
        about="Train 2K steps at once, and K steps resumed for K more; compare them bit by bit.",
        examples=(
            ("check resume", "does the default experiment resume exactly?"),
            ("check resume experiment=digits_mlp --steps 3", "exit status 0 where every bit is equal, else 1"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the answer; return 0 if every bit is equal, else 1.

    Raises:
        ConfigError: the config has mistakes.
    """
    given = VERBS[0].parse(argv)
    from runner.experiment.check_resume import STEPS, check_resume

    answer = check_resume(given.overrides, given.trust, given.get("--steps", STEPS))
    if given.as_json:
        print_json(answer)
    else:
        print(answer["answer"])
    return EXIT_DONE if answer["same"] else EXIT_FAILED
