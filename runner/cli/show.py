"""`python -m runner show data | schedule | model [overrides]`: what a config will do, in tables and pictures."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.cli.options import split_options, split_trust, whole_number
from runner.config.check.check import check
from runner.config.compose import compose
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import printable

USAGE = "python -m runner show data | schedule | model [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Show what the first argument names; the exit status: 1 where data or weights cannot be had.

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
    try:
        return SHOWN[what](argv[1:])
    except RunError as error:
        print(printable(error), file=sys.stderr)
        return 1


def show_data(argv: Sequence[str]) -> int:
    """Tables of each split, and contact sheets below `outputs/show/<name>/`."""
    rest, trust = split_trust(argv)
    as_json = "--json" in rest
    config = check(compose([argument for argument in rest if argument != "--json"]), trust)
    from runner.experiment.preview.data import inspect_splits, table

    facts = inspect_splits(config, Path("outputs") / "show" / config.name, trust)
    print(json.dumps(facts) if as_json else table(facts))
    return 0


def show_schedule(argv: Sequence[str]) -> int:
    """The planned rate of each parameter group: a table, and `outputs/show/<name>/schedule.svg`.

    `--epoch N` says the steps of an epoch, which are otherwise counted from the dataset.
    """
    rest, trust = split_trust(argv)
    rest, options = split_options(rest, ["--epoch"])
    as_json = "--json" in rest
    composed = compose([argument for argument in rest if argument != "--json"])
    from runner.experiment.examine import examine

    examined = examine(composed, trust)
    if examined.mistakes:
        raise ConfigError(examined.mistakes)
    from runner.experiment.preview.train import picture, plan, table

    length = whole_number("--epoch", options["--epoch"])
    planned = plan(examined.config, trust, length)
    if as_json:
        print(json.dumps(planned))
        return 0
    print(table(planned))
    if planned["steps"]:
        file = Path("outputs") / "show" / examined.config.name / "schedule.svg"
        picture(planned, file)
        print(file)
    return 0


def show_model(argv: Sequence[str]) -> int:
    """Each layer's shape, parameters, multiply-accumulates forward and backward, and activations.

    `--input 3x640x640` (`ids=128:int64`, more than one) takes the place of the dataset's sample, `--batch N` of one.
    """
    rest, trust = split_trust(argv)
    rest, options = split_options(rest, ["--input", "--batch"])
    as_json = "--json" in rest
    composed = compose([argument for argument in rest if argument != "--json"])
    config = check(composed, trust)
    from runner.experiment.preview.model import describe, read_inputs

    batch = whole_number("--batch", options["--batch"]) or 1
    try:
        table = describe(config, read_inputs(options["--input"], batch), batch, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error
    if as_json:
        print(json.dumps(table.as_json()))
    else:
        print(printable(table))
    return 1 if table.problem else 0


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {
    "data": show_data,
    "schedule": show_schedule,
    "model": show_model,
}
