"""`python -m runner record RUN --to NAME.record.json`: write a small record of a run, to commit.

It holds the config, the trace and the result, but no weights; `replay` reads it like a run directory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

TO = Option("--to", "the file to write, NAME.record.json", "FILE")


VERBS = (
    Verb(
        "record",
        words=("RUN",),
        options=(TO, JSON, TRUST),
        takes_overrides=False,
        about="Write a small record of a run, to commit: config, trace and result, no weights.",
        examples=(
            (
                "record outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --to conf/experiment/mine.record.json",
                "for `replay` and `diff`",
            ),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Write the record.

    Raises:
        ConfigError: there is no such run, it has no trace, or the file cannot be the record's.
    """
    given = VERBS[0].parse(argv)
    to = given.get(TO.name)
    if to is None:
        remedy = "such as `--to conf/experiment/NAME.record.json`"
        raise ConfigError([Mistake(TO.name, "is missing", remedy=remedy, kind="missing")])
    from runner.experiment.record.record_file import write_record

    written = write_record(Path(given.words[0]), Path(to), given.trust)
    if given.as_json:
        print_json(written)
        return EXIT_DONE
    for note in written["notes"]:
        print(make_printable(note), file=sys.stderr)
    print(make_printable(f"{to}: {written['steps']:,} steps, {written['bytes']:,} bytes"))
    return EXIT_DONE
