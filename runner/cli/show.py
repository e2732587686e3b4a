"""`python -m runner show data | schedule | model [overrides]`: preview a config in tables and plots."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.cli.options import parse_whole_number, split_options, split_trust
from runner.config.check.check import check
from runner.config.compose import compose
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable

USAGE = "python -m runner show data | schedule | model [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Show the preview named by the first argument; return 1 if data or weights are unavailable.

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
        print(make_printable(error), file=sys.stderr)
        return 1


def show_data(argv: Sequence[str]) -> int:
    """Print a table per split and write contact sheets below `outputs/show/<name>/`."""
    rest, trust = split_trust(argv)
    as_json = "--json" in rest
    config = check(compose([argument for argument in rest if argument != "--json"]), trust)
    from runner.experiment.preview.data import format_table, inspect_splits

    facts = inspect_splits(config, Path("outputs") / "show" / config.name, trust)
    print(json.dumps(facts) if as_json else format_table(facts))
    return 0


def show_schedule(argv: Sequence[str]) -> int:
    """Print each parameter group's planned learning rate; plot `outputs/show/<name>/schedule.svg`.

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
    from runner.experiment.preview.train import draw_schedule, format_table, plan

    length = parse_whole_number("--epoch", options["--epoch"])
    planned = plan(examined.config, trust, length)
    if as_json:
        print(json.dumps(planned))
        return 0
    print(format_table(planned))
    if planned["steps"]:
        file = Path("outputs") / "show" / examined.config.name / "schedule.svg"
        draw_schedule(planned, file)
        print(file)
    return 0


def show_model(argv: Sequence[str]) -> int:
    """Print each layer's shape, parameters, activations and multiply-accumulates in both directions.

    `--input 3x640x640` (`ids=128:int64`, more than one) takes the place of the dataset's sample, `--batch N` of one.
    """
    rest, trust = split_trust(argv)
    rest, options = split_options(rest, ["--input", "--batch"])
    as_json = "--json" in rest
    composed = compose([argument for argument in rest if argument != "--json"])
    config = check(composed, trust)
    from runner.experiment.preview.model import describe, read_inputs

    batch = parse_whole_number("--batch", options["--batch"]) or 1
    try:
        table = describe(config, read_inputs(options["--input"], batch), batch, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error
    if as_json:
        print(json.dumps(table.as_json()))
    else:
        print(make_printable(table))
    return 1 if table.problem else 0


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {
    "data": show_data,
    "schedule": show_schedule,
    "model": show_model,
}
