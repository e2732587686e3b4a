"""`python -m runner report SWEEP [--json]`: report the results of a sweep, finished or running."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, Verb
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.sweep.report import table
from runner.sweep.report.write import report

VERBS = (
    Verb(
        "report",
        words=("SWEEP",),
        options=(JSON,),
        takes_overrides=False,
        about="Show the results of a sweep, finished or running: a table, what failed, and files beside the ledger.",
        examples=(("report outputs/digits_cnn/sweep_1f0c", "the table; report.csv, report.json, curves.png"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the table, or JSON with `--json`, and write the report into the sweep's folder.

    Raises:
        ConfigError: no sweep is named, or what is none.
    """
    given = VERBS[0].parse(argv)
    found = report(Path(given.words[0]), say=(lambda _: None) if given.as_json else print)
    if given.as_json:
        print_json(table.as_json(found))
    return EXIT_DONE
