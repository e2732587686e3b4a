"""`python -m runner compare A B [--metric NAME] [--p 0.01]`: decide whether runs A are better."""

import math
from collections.abc import Sequence

from runner.cli.options import JSON, Option, ValueKind, Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED


def _parse_share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1 or math.isnan(number):
        raise ValueError
    return number


SHARE = ValueKind("must be a number between 0 and 1", _parse_share)
METRIC = Option("--metric", "number to compare, otherwise the objective", "NAME")
MODE = Option("--mode", "whether more is better, otherwise that of the objective", "MODE", choices=("max", "min"))
ALPHA = Option("--p", "p value below which A is better, otherwise 0.01", "P", SHARE)
UNPAIRED = Option("--unpaired", "leave out of account which runs have the same seed")

VERBS = (
    Verb(
        "compare",
        words=("A", "B"),
        options=(METRIC, MODE, ALPHA, UNPAIRED, JSON),
        takes_overrides=False,
        about="Decide whether the runs A are better than the runs B: exit status 0 where that is shown, else 1.",
        examples=(
            ("compare 'optimizer.lr == 0.1' 'optimizer.lr == 0.01'", "two filters of runs, paired by seed"),
            ("compare SWEEP:0-4 SWEEP:5-9 --metric val/loss --mode min", "jobs of a sweep"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Compare two groups of runs; exit status 0 where A is better, 1 where that is not shown.

    Raises:
        ConfigError: a word names no run, or the two groups cannot be compared.
    """
    given = VERBS[0].parse(argv)
    from runner.sweep.runs.groups import compare_groups
    from runner.sweep.runs.groups_shown import as_json, format_comparison

    found = compare_groups(
        (given.words[0], given.words[1]),
        metric=given.get(METRIC.name, ""),
        mode=given.get(MODE.name, ""),
        alpha=given.get(ALPHA.name, 0.01),
        unpaired=UNPAIRED.name in given,
    )
    if given.as_json:
        print_json(as_json(found))
    else:
        print(make_printable(format_comparison(found)))
    return EXIT_DONE if found.is_better else EXIT_FAILED
