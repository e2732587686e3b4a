"""`python -m runner export RUN --to FORMAT`: the trained model for elsewhere, with a card.

`safetensors` and `state_dict` are weights, to be loaded by the model's own code; `torch_export` and `onnx` hold the
forward, too, with a free batch size, and the evaluation transforms where they can be traced.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.sweep.runs.address import locate_run

FORMATS = ("safetensors", "state_dict", "torch_export", "onnx")
VERBS = (
    Verb(
        "export",
        about="Write a trained model for use elsewhere: checked against the run, with a card.",
        examples=(
            ("export outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --to safetensors", "the weights"),
            ("export outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --to onnx --checkpoint best", "the forward, too"),
        ),
        words=("RUN",),
        options=(
            Option("--to", "format of the model's file", "FORMAT", choices=FORMATS),
            Option("--out", "folder of the export, otherwise one below outputs/exports/", "DIR"),
            Option("--checkpoint", "checkpoint of the run, otherwise the last", "last|best|PATH"),
            Option("--weights", "otherwise the average, where the run has one", "WHICH", choices=("raw", "ema")),
            Option("--license", "licence of the weights, for the card; otherwise the project's LICENSE", "TEXT"),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print what was exported.

    Raises:
        ConfigError: there is no such run, checkpoint or format, or the folder is taken.
        RunError: the model cannot be exported so, or the exported one does not agree with it.
    """
    given = VERBS[0].parse(argv)
    if "--to" not in given:
        remedy = f"--to {'|'.join(FORMATS)}"
        raise ConfigError([Mistake("--to", "must be given: the format of the export", remedy=remedy, kind="missing")])
    run = locate_run(given.words[0])
    from runner.experiment.inference.export import export_run
    from runner.sweep.report.replicates import describe_replicates

    made = export_run(
        run,
        given.get("--to"),
        Path(given.get("--out")) if "--out" in given else None,
        given.overrides,
        given.trust,
        checkpoint=given.get("--checkpoint", "last"),
        weights=given.get("--weights", ""),
        licence=given.get("--license", ""),
        intervals=describe_replicates(run),
    )
    for note in made.notes:
        print(f"note: {make_printable(note)}", file=sys.stderr)
    if given.as_json:
        print_json({"folder": str(made.folder)} | made.as_json())
        return EXIT_DONE
    files = sorted(path.name for path in made.folder.iterdir())
    if made.difference is None:
        checked = "read back: every tensor is the same"
    else:
        checked = f"agrees to {made.difference:.2g} on {made.checked}"
    print(f"step {made.trained.step:,} ({made.trained.weights} weights) as {made.to}: {make_printable(checked)}")
    print(make_printable(f"{made.folder}: {', '.join(files)}"))
    return EXIT_DONE
