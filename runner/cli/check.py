"""`python -m runner check [-m] [--fix] [--json] [overrides]`: list every mistake; write nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.cli import check_resume
from runner.cli.options import JSON, MULTIRUN, TRUST, Option, ParsedArguments, Verb
from runner.core.errors import ConfigError, Mistake, format_count, format_mistakes
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_WRONG

if TYPE_CHECKING:
    from runner.cli.check_fix import Fixes

_FIX = Option("--fix", "correct what is sure in your YAML files, print the corrected command, check again")
VERBS = (
    Verb(
        "check",
        options=(MULTIRUN, _FIX, JSON, TRUST),
        about="List every mistake of a config, all at once, before data is touched. Nothing is written without --fix.",
        examples=(
            ("check experiment=digits_mlp optimizer.lr=0.05", "exit status 0 where nothing is wrong, else 2"),
            ("check -m optimizer.lr=0.1,0.01 model=mlp,small_cnn", "every job of a sweep"),
            ("check --fix train.acumulate=2", "exit status 2: prints the corrected command"),
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

    fixes = _fix(given) if _FIX.name in given else None
    overrides = given.overrides if fixes is None else fixes.words
    trust, as_json = given.trust, given.as_json
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
        answer = {"mistakes": plain, "count": len(found), "notes": notes, "plan": plan}
        more = {} if fixes is None else {**fixes.as_json(), "command": _format_corrected(given, fixes)}
        print_json({**answer, **more})
    else:
        _print(plan, notes, len(found))
    retype = fixes is not None and fixes.words != given.overrides
    return EXIT_WRONG if found or retype else EXIT_DONE


def _fix(given: ParsedArguments) -> "Fixes":
    """Correct what is sure, and say so."""
    from runner.cli import check_fix

    multirun = MULTIRUN.name in given
    fixes = check_fix.fix(given.overrides, given.trust, lambda words: _list_mistakes(words, given.trust, multirun))
    if not given.as_json:
        for line in (*fixes.diff.splitlines(), *(f"not changed: {said}" for said in fixes.refused)):
            print(make_printable(line))
        if command := _format_corrected(given, fixes):
            print(make_printable(f"the corrected command: {command}"))
        count = len(fixes.corrections)
        print(f"{count or 'No'} correction{'s' * (count != 1)}.", flush=True)
    return fixes


def _list_mistakes(words: Sequence[str], trust: tuple[str, ...], multirun: bool) -> list[Mistake]:
    from runner.config.compose import compose
    from runner.experiment.examine import examine
    from runner.sweep.examine import examine_sweep

    found: list[Mistake] = []
    try:
        if multirun:
            examine_sweep(words, trust, found.extend)
        else:
            examine(compose(words), trust, found.extend)
    except ConfigError as error:
        found += error.mistakes
    return found


def _format_corrected(given: ParsedArguments, fixes: "Fixes") -> str:
    """Format the corrected command; empty where the given one is right."""
    if fixes.words == given.overrides:
        return ""
    from runner.config.editor.corrections import format_command

    return format_command(fixes.words, multirun=MULTIRUN.name in given)


def _print(plan: Sequence[str], notes: Sequence[str], count: int) -> None:
    for line in (*plan, *(f"note: {note}" for note in notes)):
        print(make_printable(line))
    print(format_count(count) if count else "No mistakes.")
