"""`python -m runner predict RUN INPUT…`: outputs of a trained model, for files or a split.

An INPUT is an image, a folder of images, NPY, NPZ or a table; it goes through the run's evaluation transforms.
`--split val` takes the run's own data instead. Without `--out` the predictions are printed, one line each.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb
from runner.core.errors import ConfigError
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.sweep.runs.address import locate_run

VERBS = (
    Verb(
        "predict",
        about="Write the outputs of a trained model for images, folders, NPY, NPZ, tables, or a split of its data.",
        examples=(
            ("predict outputs/digits_cnn/2026-01-31_12-00-00_a1b2 photo.png", "of one image"),
            (
                "predict outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --split val --out predictions.csv",
                "of the validation data",
            ),
        ),
        words=("RUN",),
        more="INPUT…",
        options=(
            Option("--split", "the run's own data in place of inputs: val, test, train", "SPLIT"),
            Option("--out", "file for all numbers: .csv, .jsonl or .npz", "FILE"),
            Option("--checkpoint", "checkpoint of the run, otherwise the last", "last|best|PATH"),
            Option("--weights", "otherwise the average, where the run has one", "WHICH", choices=("raw", "ema")),
            Option("--batch-size", "samples of a batch, otherwise the run's own", "N", kind=COUNT),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print or write the predictions; return 1 where an input was bad and the others were predicted.

    Raises:
        ConfigError: there is no such run, checkpoint or input, or the model takes no such input.
        RunError: weights or data cannot be had, or the model refuses a batch.
    """
    given = VERBS[0].parse(argv)
    inputs = [word for word in given.overrides if "=" not in word or Path(word).exists()]
    overrides = [word for word in given.overrides if word not in inputs]
    out = Path(given.get("--out")) if "--out" in given else None
    from runner.experiment.inference import prediction_files
    from runner.experiment.inference.predict import predict

    if out is not None and (mistakes := prediction_files.check_out(out)):
        raise ConfigError(mistakes)
    found = predict(
        locate_run(given.words[0]),
        inputs,
        overrides,
        given.trust,
        split=given.get("--split", ""),
        checkpoint=given.get("--checkpoint", "last"),
        weights=given.get("--weights", ""),
        batch_size=given.get("--batch-size"),
    )
    for note in found.notes:
        print(f"note: {make_printable(note)}", file=sys.stderr)
    rows = []
    if out is not None:
        count = prediction_files.write_predictions(found, out)
    elif given.as_json:
        rows = list(prediction_files.make_rows(found))
        count = len(rows)
    else:
        count = 0
        for line in prediction_files.format_rows(found):
            print(make_printable(line))
            count += 1
    for text in found.refused:
        print(f"left out: {make_printable(text)}", file=sys.stderr)
    if found.refused:
        total = count + len(found.refused)
        rest = "the others are predicted" if count else "nothing is predicted"
        print(f"{len(found.refused):,} of {total:,} inputs are left out; {rest}.", file=sys.stderr)
    if given.as_json:
        plain = {
            "run": str(found.folder),
            "step": found.step,
            "weights": found.weights,
            "kind": found.interpretation.kind,
            "classes": found.classes,
            "count": count,
            "left_out": found.refused,
        }
        print_json(plain | ({"predictions": rows} if out is None else {"out": str(out)}))
    elif out is not None:
        print(f"{count:,} predictions of step {found.step:,} ({found.weights} weights) in {make_printable(out)}")
    return EXIT_FAILED if inputs and found.refused else EXIT_DONE
