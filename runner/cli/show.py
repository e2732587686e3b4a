"""`python -m runner show data | schedule | model [overrides]`: preview a config in tables and plots."""

from collections.abc import Callable, Sequence
from pathlib import Path

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb, choose_subject
from runner.config.check.check import check
from runner.config.compose import compose
from runner.core.errors import ConfigError
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED

EPOCH = Option("--epoch", "steps of an epoch, otherwise counted from the dataset", "N", COUNT)
INPUT = Option("--input", "shape instead of the dataset's sample; once for each input", "3x640x640", is_repeatable=True)
BATCH = Option("--batch", "size of the batch, otherwise 1", "N", COUNT)


VERBS = (
    Verb("show data"),
    Verb("show schedule", options=(EPOCH, JSON, TRUST)),
    Verb("show model", options=(INPUT, BATCH, JSON, TRUST)),
)


def main(argv: Sequence[str]) -> int:
    """Show the preview named by the first argument.

    Raises:
        ConfigError: nothing is named, or what does not exist.
        RunError: data or weights cannot be had.
    """
    subject = choose_subject("show", argv, list(SHOWN))
    return SHOWN[subject](argv[1:])


def show_data(argv: Sequence[str]) -> int:
    """Print a table per split and write contact sheets below `outputs/show/<name>/`."""
    given = VERBS[0].parse(argv)
    config = check(compose(given.overrides), given.trust)
    from runner.experiment.preview.data import format_table, inspect_splits

    facts = inspect_splits(config, Path("outputs") / "show" / config.name, given.trust)
    if given.as_json:
        print_json(facts)
    else:
        print(format_table(facts))
    return EXIT_DONE


def show_schedule(argv: Sequence[str]) -> int:
    """Print each parameter group's planned learning rate; plot `outputs/show/<name>/schedule.svg`.

    `--epoch N` says the steps of an epoch, which are otherwise counted from the dataset.
    """
    given = VERBS[1].parse(argv)
    from runner.experiment.examine import require_valid

    examined = require_valid(compose(given.overrides), given.trust)
    from runner.experiment.preview.train import draw_schedule, format_table, plan

    planned = plan(examined.config, given.trust, given.get("--epoch"))
    if given.as_json:
        print_json(planned)
        return EXIT_DONE
    print(format_table(planned))
    if planned["steps"]:
        file = Path("outputs") / "show" / examined.config.name / "schedule.svg"
        draw_schedule(planned, file)
        print(file)
    return EXIT_DONE


def show_model(argv: Sequence[str]) -> int:
    """Print each layer's shape, parameters, activations and multiply-accumulates in both directions.

    `--input 3x640x640` (`ids=128:int64`, more than one) takes the place of the dataset's sample, `--batch N` of one.
    """
    given = VERBS[2].parse(argv)
    composed = compose(given.overrides)
    config = check(composed, given.trust)
    from runner.experiment.preview.model import describe, read_inputs

    batch = given.get("--batch", 1)
    try:
        table = describe(config, read_inputs(given.get_all("--input"), batch), batch, given.trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error
    if given.as_json:
        print_json(table.as_json())
    else:
        print(make_printable(table))
    return EXIT_FAILED if table.problem else EXIT_DONE


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {
    "data": show_data,
    "schedule": show_schedule,
    "model": show_model,
}
