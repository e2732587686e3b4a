"""`python -m runner rm FILTER | RUN | SWEEP… [--yes] [--force] [--json]`: remove runs."""

import sys
from collections.abc import Sequence

from runner.cli.options import JSON, Option, Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.sweep.runs import formats
from runner.sweep.runs.removal import plan_removal, remove_planned

YES = Option("--yes", "do it; without it the command only tells what it would do")
FORCE = Option("--force", "also what a sweep, another run or an experiment file needs")

VERBS = (
    Verb(
        "rm",
        options=(YES, FORCE, JSON),
        takes_overrides=False,
        more="FILTER | RUN | SWEEP…",
        about="Remove runs; what is in progress or needed by others stays. Without --yes nothing is done but said.",
        examples=(("rm 'status == failed' --yes", "all failed runs"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Remove the runs that filters, runs and folders select; without `--yes` only tell which.

    Raises:
        ConfigError: a word is wrong, or a run that is named itself must stay.
    """
    given = VERBS[0].parse(argv)
    plan = plan_removal(given.overrides, force=FORCE.name in given)
    size, does_it = plan.measure(), YES.name in given
    gone = remove_planned(plan) if does_it else plan.rows
    if given.as_json:
        removed = {"runs": [row.path for row in gone], "sweeps": [str(sweep) for sweep in plan.sweeps], "bytes": size}
        kept = [one.as_json() for one in plan.kept]
        print_json({"done": does_it, **removed, "kept": kept, "failed": plan.failed, "notes": plan.listed.notes})
    else:
        lines = [(row.path, row.status, formats.format_age(row.get("age"))) for row in gone]
        lines += [(str(sweep), "the sweep with all that is in it", "") for sweep in plan.sweeps]
        told = formats.format_plan(lines, plan.kept, plan.failed)
        verb = "removed" if does_it else "would be removed"
        last = f"{formats.count_runs(len(gone))}, {formats.format_size(size)}, {verb}"
        print(make_printable("\n".join([*told, last + formats.ask_for_yes(gone, does_it=does_it)])))
        for note in plan.listed.notes:
            print(make_printable(note), file=sys.stderr)
    return EXIT_FAILED if plan.failed else EXIT_DONE
