"""`python -m runner explain [--json] [RUN] [overrides]`: one row per tensor, and what set it."""

import sys
from collections.abc import Sequence

from runner.cli.options import Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "explain",
        about="Show a row for each tensor: shape, initialisation, pretrained source, frozen, group, rate, decay.",
        examples=(
            ("explain", "of the default experiment"),
            ("explain experiment=digits_frozen_embedding", "what is frozen?"),
        ),
    ),
    Verb(
        "explain",
        words=("RUN",),
        about="The same of a finished run, from its record.",
        examples=(("explain outputs/digits_cnn/2026-01-31_12-00-00_a1b2", "what was trained?"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the rows without data or training.

    Raises:
        ConfigError: whatever `check` finds.
        RunError: weights cannot be downloaded.
    """
    given = VERBS[0].parse(argv)
    from runner.config.replaced import list_replaced
    from runner.experiment.preview.parameters import explain

    explained = explain(given.overrides, given.trust)
    if given.as_json:
        print_json(explained.as_json())
    else:
        for note in list_replaced():
            print(make_printable(f"note: {note}"), file=sys.stderr)
        print(make_printable(explained))
    return EXIT_DONE
