"""`python -m runner check [-m] [--json] [--trust PATTERN] [overrides]`: all that is wrong, with nothing touched."""

import json
from collections.abc import Sequence
from pathlib import Path

from runner.config import sweep as sweeps
from runner.config.compose import compose
from runner.errors import ConfigError, Mistake, count_line, numbered
from runner.examine import examine, examine_sweep
from runner.verbs import check_resume
from runner.verbs.train import split_trust


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 where nothing is wrong, else 2."""
    if argv and argv[0] == "resume":
        return check_resume.main(argv[1:])
    rest, trust = split_trust(argv)
    as_json, sweep = "--json" in rest, bool({"-m", "--multirun"} & set(rest))
    overrides = [argument for argument in rest if argument not in ("--json", "-m", "--multirun")]
    found: list[Mistake] = []

    def say(mistakes: list[Mistake]) -> None:
        if mistakes and not as_json:
            print(numbered(mistakes, start=len(found) + 1), flush=True)
        found.extend(mistakes)

    notes: list[str] = []
    plan: list[str] = []
    try:
        if sweep:
            examine_sweep(overrides, trust, say, notes.extend)
            planned = sweeps.plan(overrides, Path.cwd(), trust)
            if planned.is_search and not found:
                from runner.sweep import search  # imports Optuna

                say(search.rehearse(planned, trust))
        else:
            seen = examine(compose(overrides), trust, say).found
            notes, plan = seen.notes, [*seen.plan, *([seen.pretrained.summary()] if seen.pretrained else [])]
    except ConfigError as error:
        say(error.mistakes)
    if as_json:
        plain = [mistake.as_json() for mistake in found]
        print(json.dumps({"mistakes": plain, "count": len(found), "notes": notes, "plan": plan}, default=str))
    else:
        for line in plan:
            print(line)
        for note in notes:
            print(f"note: {note}")
        print(count_line(len(found)) if found else "No mistakes.")
    return 2 if found else 0
