"""`python -m runner promote SWEEP [--name NAME] [--job JOB]`: write a job as an experiment file."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "promote",
        about="Write a job of a sweep, the best one unless told, as conf/experiment/NAME.yaml.",
        examples=(("promote outputs/digits_cnn/sweep_1f0c --name tuned", "then: python -m runner experiment=tuned"),),
        words=("SWEEP",),
        options=(
            Option("--name", "name of the experiment, otherwise that of the sweep with `_best`", "NAME"),
            Option("--job", "number of the job, otherwise the best one", "NUMBER"),
            JSON,
            TRUST,
        ),
        takes_overrides=False,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Write the experiment file and print the command that trains with it.

    Raises:
        ConfigError: there is no such sweep, no such job, nothing to promote, or the file exists.
    """
    given = VERBS[0].parse(argv)
    from runner.sweep.promote import promote

    made = promote(Path(given.words[0]), given.get("--name", ""), given.get("--job", ""), given.trust)
    if given.as_json:
        print_json(made.as_json())
        return EXIT_DONE
    print(make_printable(f"{made.file}: {made.score}"))
    if made.noise:
        print(make_printable(f"within noise of it: {made.noise}"))
    print(made.command)
    return EXIT_DONE
