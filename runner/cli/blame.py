"""`python -m runner blame A B [--metric NAME] [--jobs N] [--duration D]`: find what explains a gap."""

import sys
from collections.abc import Sequence

from runner.cli.options import COUNT, JSON, TRUST, Option, ValueKind, Verb
from runner.core.durations import is_duration
from runner.core.escape import make_printable
from runner.core.event_stream import print_json


def _parse_duration(text: str) -> str:
    if not is_duration(text):
        raise ValueError
    return text


DURATION = ValueKind("must be epochs or steps, like 2ep or 500st", _parse_duration)


VERBS = (
    Verb(
        "blame",
        about="Find by short runs which of the differing settings explain the gap between A and B.",
        examples=(
            (
                "blame digits_mlp 'experiment=digits_mlp optimizer.lr=0.2' --jobs 12",
                "A and B: runs, jobs, experiments, records",
            ),
        ),
        words=("A", "B"),
        options=(
            Option("--metric", "metric to explain, otherwise A's objective", "NAME"),
            Option("--jobs", "most runs, those of A and B among them, otherwise 20", "N", COUNT),
            Option("--duration", "length of each run, otherwise that of A and B", "2ep", DURATION),
            Option("--slots", "runs at a time, otherwise as many as cores and GPUs allow", "N", COUNT),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the culprits; return 0 where some are found, 1 where none is.

    Raises:
        ConfigError: A, B, the metric or an override is wrong, or the two do not differ.
        RunError: nothing can be run or written here.
    """
    given = VERBS[0].parse(argv)
    from runner.sweep.blame.blame import BlameRequest, as_json, blame
    from runner.sweep.blame.text import format_report
    from runner.sweep.console import Console, make_console

    request = BlameRequest(
        a=given.words[0],
        b=given.words[1],
        metric=given.get("--metric", ""),
        jobs=given.get("--jobs", 20),
        duration=given.get("--duration", ""),
        slots=given.get("--slots", "auto"),
        overrides=given.overrides,
        argv=argv,
        trust=given.trust,
    )
    report = blame(request, lambda tally: make_console(tally, Console(sys.stderr if given.as_json else sys.stdout)))
    if given.as_json:
        print_json(as_json(report))
    else:
        print()
        print(make_printable(format_report(report)))
    return report.status
