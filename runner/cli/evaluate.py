"""`python -m runner evaluate RUN`: compute the metrics of a checkpoint.

`--checkpoint last|best|PATH` says of which, `--weights raw|ema` with which of its weights: with the average that
training evaluated (`train.ema`), unless told otherwise.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.config.suggestions import find_nearest
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable
from runner.experiment.record.recorded import load_recorded_config

VERBS = (
    Verb(
        "evaluate",
        words=("RUN",),
        options=(
            Option("--checkpoint", "checkpoint of the run, otherwise the last", "last|best|PATH"),
            Option("--weights", "otherwise the average, where the run has one", "WHICH", choices=("raw", "ema")),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint of a run on every split except train; return the exit status."""
    given = VERBS[0].parse(argv)
    trust, folder = given.trust, Path(given.words[0])
    config, _ = load_recorded_config(folder, given.overrides, trust, verb="evaluate")
    checkpoint = find_checkpoint(folder, given.get("--checkpoint", "last"))
    from runner.experiment import diagnosis
    from runner.experiment.builders import run as run_builder
    from runner.log.console import print_final_report
    from runner.train import evaluation
    from runner.train.state_dict import put_weights

    with diagnosis.convert_record_errors(folder):
        run = run_builder.build(config, folder, {}, trust)
        run.checkpoints.warn = lambda text: print(make_printable(text), file=sys.stderr)
        saved = run.checkpoints.load(checkpoint)
        put_weights(run, saved, given.get("--weights", ""))
        metrics: dict[str, float] = {}
        try:
            for name in run.splits:
                if name != "train":
                    metrics |= evaluation.evaluate(run, name) or {}
        except Exception as error:
            raise RunError(diagnosis.explain_failure(error, run, config, None, None)) from error
    if given.as_json:
        print(json.dumps({"run": str(folder), "step": saved["progress"]["step"], "metrics": metrics}))
    else:
        print_final_report(metrics, folder)
    return 0


def find_checkpoint(folder: Path, checkpoint: str) -> str:
    """Find the checkpoint `--checkpoint` names: last, best, a path or a file in the run's folder.

    Raises:
        ConfigError: there is no such file.
    """
    if checkpoint in ("last", "best"):
        return checkpoint
    beside = folder / "checkpoints" / checkpoint
    if checkpoint and Path(checkpoint).is_file():
        return checkpoint
    if checkpoint and beside.is_file():
        return str(beside)
    known = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    name = Path(checkpoint).name
    near = f"{name}.pt" if f"{name}.pt" in known else find_nearest(name, known)
    command = f"python -m runner evaluate {shlex.quote(str(folder))} --checkpoint"
    remedy = (
        f"did you mean `{command} {shlex.quote(str(folder / 'checkpoints' / near))}`?"
        if near
        else f"there are {', '.join(['last', 'best', *known])}"
    )
    rule = "must be last, best or a file"
    raise ConfigError(
        [Mistake("--checkpoint", rule, checkpoint, f"argument `--checkpoint {checkpoint}`", remedy, near, "file")]
    )
