"""`python -m runner check [-m] [--json] [--trust PATTERN] [overrides]`: everything that is wrong, before anything is touched."""

import json
from collections.abc import Sequence

from runner.config.check import Check, check_sweep
from runner.config.compose import compose
from runner.errors import ConfigError, Mistake, count_line, numbered
from runner.verbs.train import split_trust


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 where nothing is wrong, else 2."""
    rest, trust = split_trust(argv)
    as_json, sweep = "--json" in rest, bool({"-m", "--multirun"} & set(rest))
    overrides = [argument for argument in rest if argument not in ("--json", "-m", "--multirun")]
    try:
        found = _sweep(overrides, trust) if sweep else _run(overrides, trust, quiet=as_json)
    except ConfigError as error:
        found = error.mistakes
        if not as_json:
            print(numbered(found), flush=True)
    if as_json:
        print(json.dumps({"mistakes": [mistake.as_json() for mistake in found], "count": len(found)}, default=str))
    elif found:
        print(count_line(len(found)))
    else:
        print("No mistakes.")
    return 2 if found else 0


def _run(overrides: Sequence[str], trust: tuple[str, ...], *, quiet: bool) -> list[Mistake]:
    """Print what needs no import of torch at once, then the rest."""
    checked = Check(compose(overrides), trust)
    first = checked.at_once
    if first and not quiet:
        print(numbered(first), flush=True)
    rest = checked.by_import()
    if rest and not quiet:
        print(numbered(rest, start=len(first) + 1), flush=True)
    return [*first, *rest]


def _sweep(overrides: Sequence[str], trust: tuple[str, ...]) -> list[Mistake]:
    check_sweep(overrides, trust)
    return []
