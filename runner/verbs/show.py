"""`python -m runner show data [--json] [overrides]`: what a config makes of its data, in tables and pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.config.check import check
from runner.config.compose import compose
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_trust

USAGE = "python -m runner show data [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Show what the first argument names; the exit status.

    Raises:
        ConfigError: nothing is named, or what does not exist.
    """
    what = argv[0] if argv else ""
    if what not in SHOWN:
        rule = "is missing" if not what or "=" in what else "cannot be shown"
        remedy = f"{USAGE}; what can be shown: {', '.join(SHOWN)}"
        raise ConfigError(
            [Mistake("show", rule, what, remedy=remedy) if what else Mistake("show", rule, remedy=remedy)]
        )
    return SHOWN[what](argv[1:])


def show_data(argv: Sequence[str]) -> int:
    """Tables of each split, and contact sheets below `outputs/show/<name>/`."""
    rest, trust = split_trust(argv)
    as_json = "--json" in rest
    config = check(compose([argument for argument in rest if argument != "--json"]), trust)
    import sys

    from runner.errors import RunError
    from runner.show_data import inspect_splits, table

    folder = Path("outputs") / "show" / config.name
    try:
        facts = inspect_splits(config, folder, trust)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(facts) if as_json else table(facts))
    return 0


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {"data": show_data}
