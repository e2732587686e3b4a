"""`python -m runner archive FILTER | RUN | SWEEP… [--yes] [--force]`: keep the record of runs."""

import sys
from collections.abc import Sequence

from runner.cli.options import JSON, Option, Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.sweep.runs import formats
from runner.sweep.runs.archiving import keep_planned, plan_archive

YES = Option("--yes", "do it; without it the command only tells what it would do")
FORCE = Option("--force", "also checkpoints that another run or an experiment file names")

VERBS = (
    Verb(
        "archive",
        options=(YES, FORCE, JSON),
        takes_overrides=False,
        more="FILTER | RUN | SWEEP…",
        about="Keep the record of runs and remove their heavy files. Without --yes nothing is done but said.",
        examples=(("archive 'name == digits_cnn' --yes", "of all runs of a name"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Drop all but config, metrics, record and best checkpoint of runs; without `--yes` only tell.

    Raises:
        ConfigError: a word is wrong, or a run that is named itself cannot be archived.
    """
    given = VERBS[0].parse(argv)
    plan, does_it = plan_archive(given.overrides, force=FORCE.name in given), YES.name in given
    done = keep_planned(plan) if does_it else plan.runs
    size = sum(one.size for one in done)
    if given.as_json:
        said = {"done": does_it, "runs": [one.as_json() for one in done], "bytes": size}
        said |= {"kept": [one.as_json() for one in plan.kept], "failed": plan.failed, "notes": plan.listed.notes}
        print_json(said)
    else:
        lines = [
            (one.row.path, one.row.status, formats.format_size(one.size), f"- {', '.join(one.dropped)}") for one in done
        ]
        told = formats.format_plan(lines, plan.kept, plan.failed)
        verb = "archived" if does_it else "would be archived"
        last = f"{formats.count_runs(len(done))} {verb}, {formats.format_size(size)} less"
        print(make_printable("\n".join([*told, last + formats.ask_for_yes(done, does_it=does_it)])))
        for note in plan.listed.notes:
            print(make_printable(note), file=sys.stderr)
    return EXIT_FAILED if plan.failed else EXIT_DONE
