"""`python -m runner show data | schedule | model [overrides]`: preview a config in tables and plots."""

from collections.abc import Callable, Sequence
from pathlib import Path

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb, choose_subject
from runner.core.errors import ConfigError
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED

EPOCH = Option("--epoch", "steps of an epoch, otherwise counted from the dataset", "N", COUNT)
INPUT = Option("--input", "shape instead of the dataset's sample; once for each input", "3x640x640", is_repeatable=True)
LONG = 60  # rows: more than a screen
DEPTH = Option("--depth", "fold what is deeper than this many names: 1 shows `layer1`, 2 `layer1.0`", "N", COUNT)
BATCH = Option("--batch", "size of the batch, otherwise 1", "N", COUNT)


VERBS = (
    Verb(
        "show data",
        about="Show what the data is: a table and a contact sheet for each split, class balance, value ranges.",
        examples=(
            ("show data", "the default dataset"),
            (
                "show data dataset=fake transform=cifar experiment=null model=small_cnn_rgb32",
                "before and after the transforms",
            ),
        ),
    ),
    Verb(
        "show schedule",
        options=(EPOCH, JSON, TRUST),
        about="Show the planned learning rate of each parameter group over the run, and draw it.",
        examples=(("show schedule scheduler=cosine train.duration=10ep", "a cosine over ten epochs"),),
    ),
    Verb(
        "show model",
        options=(DEPTH, INPUT, BATCH, JSON, TRUST),
        about="Show each layer's output shape, parameters, multiply-accumulates and activations; nothing is allocated.",
        examples=(
            ("show model", "the default model"),
            ("show model experiment=imagenet_resnet50 --depth 1", "ResNet-50 in ten rows"),
            ("show model model=small_cnn --input 1x8x8 --batch 64", "for another input"),
        ),
    ),
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
    from runner.config.check.check import check
    from runner.config.compose import compose

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
    from runner.config.compose import compose
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
    from runner.config.check.check import check
    from runner.config.compose import compose

    composed = compose(given.overrides)
    config = check(composed, given.trust)
    from runner.experiment.preview.model import describe, read_inputs

    batch, depth = given.get("--batch", 1), given.get("--depth")
    try:
        table = describe(config, read_inputs(given.get_all("--input"), batch), batch, given.trust, depth=depth)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error
    if given.as_json:
        print_json(table.as_json())
    else:
        print(make_printable(table))
        if depth is None and len(table.rows) > LONG:
            print(f"{len(table.rows)} rows: --depth 1 or --depth 2 folds them")
    return EXIT_FAILED if table.problem else EXIT_DONE


SHOWN: dict[str, Callable[[Sequence[str]], int]] = {
    "data": show_data,
    "schedule": show_schedule,
    "model": show_model,
}
