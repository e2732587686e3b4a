"""`python -m runner explain [--json] [RUN] [overrides]`: one row per tensor, and what set it."""

from collections.abc import Sequence

from runner.cli.options import Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.experiment.preview.parameters import explain

VERBS = (Verb("explain"), Verb("explain", words=("RUN",)))


def main(argv: Sequence[str]) -> int:
    """Print the rows without data or training.

    Raises:
        ConfigError: whatever `check` finds.
        RunError: weights cannot be downloaded.
    """
    given = VERBS[0].parse(argv)
    explained = explain(given.overrides, given.trust)
    if given.as_json:
        print_json(explained.as_json())
    else:
        print(make_printable(explained))
    return EXIT_DONE
