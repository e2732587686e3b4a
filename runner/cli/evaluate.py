"""`python -m runner evaluate RUN`: compute the metrics of a checkpoint.

`--checkpoint last|best|PATH` says of which; without it the numbers are those of the run's end. `--weights raw|ema` says
with which of its weights: with the average that training evaluated (`train.ema`), unless told otherwise.
"""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "evaluate",
        about="Compute the metrics of a checkpoint; without options those of the end of training, to the bit.",
        examples=(
            ("evaluate outputs/digits_cnn/2026-01-31_12-00-00_a1b2", "the last checkpoint"),
            (
                "evaluate outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --checkpoint best --json",
                "the best one, for programs",
            ),
        ),
        words=("RUN",),
        options=(
            Option("--checkpoint", "otherwise the last, and for the test that of `train.test_with`", "last|best|PATH"),
            Option("--weights", "otherwise the average, where the run has one", "WHICH", choices=("raw", "ema")),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the metrics of a checkpoint of a run.

    Raises:
        ConfigError: there is no such run or checkpoint, or the config has mistakes.
        RunError: the data cannot be had, or the evaluation failed.
    """
    given = VERBS[0].parse(argv)
    from runner.experiment.evaluate import evaluate_run

    checkpoint, weights = given.get("--checkpoint", ""), given.get("--weights", "")
    found = evaluate_run(Path(given.words[0]), given.overrides, given.trust, checkpoint=checkpoint, weights=weights)
    if given.as_json:
        print_json(found.as_json())
    else:
        from runner.log.console import print_final_report

        print_final_report(found.metrics, found.folder)
    return EXIT_DONE
