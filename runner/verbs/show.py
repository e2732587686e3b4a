"""`python -m runner show data | schedule | model [overrides]`: what a config will do, in tables and pictures."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.config.check import check
from runner.config.compose import compose
from runner.errors import ConfigError, Mistake, RunError
from runner.verbs.train import split_trust

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
        print(error, file=sys.stderr)
        return 1


def split_options(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The command line without options that take a value (`--name VALUE` or `--name=VALUE`), and their values."""
    rest, found = [], {name: list[str]() for name in names}
    arguments = iter(argv)
    for argument in arguments:
        name, given, value = argument.partition("=")
        if name not in found:
            rest.append(argument)
            continue
        value = value if given else next(arguments, "")
        if not value:
            raise ConfigError([Mistake(name, "needs a value", where=f"argument `{argument}`")])
        found[name].append(value)
    return rest, found


def show_data(argv: Sequence[str]) -> int:
    """Tables of each split, and contact sheets below `outputs/show/<name>/`."""
    rest, trust = split_trust(argv)
    as_json = "--json" in rest
    config = check(compose([argument for argument in rest if argument != "--json"]), trust)
    from runner.show_data import inspect_splits, table

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
    from runner.examine import examine

    examined = examine(composed, trust)
    if examined.mistakes:
        raise ConfigError(examined.mistakes)
    from runner.show_schedule import picture, plan, table

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
    from runner.show_model import describe, read_inputs

    batch = whole_number("--batch", options["--batch"]) or 1
    try:
        table = describe(config, read_inputs(options["--input"], batch), batch, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error
    if as_json:
        print(json.dumps(table.as_json()))
    else:
        print(table)
    return 1 if table.problem else 0


def whole_number(name: str, given: Sequence[str]) -> int | None:
    """The value of an option that counts; None where it is not given."""
    if not given:
        return None
    if not given[-1].isdecimal() or int(given[-1]) < 1:
        raise ConfigError([Mistake(name, "must be a whole number of at least 1", given[-1])])
    return int(given[-1])


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {
    "data": show_data,
    "schedule": show_schedule,
    "model": show_model,
}
