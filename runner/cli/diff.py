"""`python -m runner diff A B [--json]`: differences of two runs, jobs, experiments or records."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Verb
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.core.terminal import print_loading_line

VERBS = (
    Verb(
        "diff",
        words=("A", "B"),
        options=(JSON, TRUST),
        takes_overrides=False,
        about="Show the differences of two runs, jobs, experiments or records: config, code, packages, data, results.",
        examples=(
            ("diff RUN OTHER_RUN", "two runs"),
            ("diff digits_mlp 'experiment=digits_mlp optimizer.lr=0.2'", "two configs"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print in what A and B differ, and write curves and the difference of code below `outputs/diff`.

    Raises:
        ConfigError: a word names nothing that can be compared.
    """
    given = VERBS[0].parse(argv)
    from runner.sweep.difference.diff import find_difference
    from runner.sweep.difference.shown import format_difference, write_files

    announced = {} if given.as_json else {"announce": print_loading_line}
    found = find_difference((given.words[0], given.words[1]), given.trust, **announced)
    write_files(found, Path("outputs") / "diff")
    if given.as_json:
        print_json(found.as_json())
    else:
        print(format_difference(found))
    return EXIT_DONE
