"""`python -m runner check [-m] [--json] [overrides]`: list every mistake; write nothing."""

from collections.abc import Sequence

from runner.cli import check_resume
from runner.cli.options import JSON, MULTIRUN, TRUST, Verb
from runner.core.errors import ConfigError, Mistake, format_count, format_mistakes
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_WRONG

VERBS = (
    Verb(
        "check",
        options=(MULTIRUN, JSON, TRUST),
        about="List every mistake of a config, all at once, before any data is touched. Nothing is written.",
        examples=(
            ("check experiment=digits_mlp optimizer.lr=0.05", "exit status 0 where nothing is wrong, else 2"),
            ("check -m optimizer.lr=0.1,0.01 model=mlp,small_cnn", "every job of a sweep"),
            ("check --json model.width=0", "for programs"),
        ),
    ),
    *check_resume.VERBS,
)


def main(argv: Sequence[str]) -> int:
    """Print the report; return 0 if nothing is wrong, else 2."""
    if argv and argv[0] == "resume":
        return check_resume.main(argv[1:])
    given = VERBS[0].parse(argv)
    from runner.config.compose import compose
    from runner.experiment.examine import examine
    from runner.sweep.examine import examine_sweep

    overrides, trust, as_json = given.overrides, given.trust, given.as_json
    found: list[Mistake] = []

    def say(mistakes: list[Mistake]) -> None:
        if mistakes and not as_json:
            print(format_mistakes(mistakes, start=len(found) + 1), flush=True)
        found.extend(mistakes)

    notes: list[str] = []
    plan: list[str] = []
    try:
        if MULTIRUN.name in given:
            examine_sweep(overrides, trust, say, notes.extend, plan.extend)
        else:
            seen = examine(compose(overrides), trust, say).found
            notes, plan = seen.notes, seen.plan
    except ConfigError as error:
        say(error.mistakes)
    if as_json:
        plain = [mistake.as_json() for mistake in found]
        print_json({"mistakes": plain, "count": len(found), "notes": notes, "plan": plan})
    else:
        _print(plan, notes, len(found))
    return EXIT_WRONG if found else EXIT_DONE


def _print(plan: Sequence[str], notes: Sequence[str], count: int) -> None:
    for line in (*plan, *(f"note: {note}" for note in notes)):
        print(make_printable(line))
    print(format_count(count) if count else "No mistakes.")
