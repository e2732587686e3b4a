"""Evaluation of a recorded run: the metrics of one of its checkpoints."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.suggestions import find_nearest
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable
from runner.experiment.record.recorded import load_recorded_config


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint, by `<split>/<metric>`, and the step that it was saved after."""

    folder: Path
    step: int
    metrics: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"run": str(self.folder), "step": self.step, "metrics": self.metrics}


def evaluate_run(
    folder: Path,
    overrides: Sequence[str] = (),
    trust: tuple[str, ...] = (),
    *,
    checkpoint: str = "last",
    weights: str = "",
) -> Evaluation:
    """Evaluate a checkpoint of a run on every split except train.

    Args:
        folder: the run directory.
        overrides: changes of its recorded config.
        trust: patterns of trusted names.
        checkpoint: `last`, `best`, a path, or a file in the run's folder.
        weights: `raw` or `ema`; empty for those that training evaluated.

    Raises:
        ConfigError: there is no such run or checkpoint, or the config has mistakes.
        RunError: the data cannot be had, or the evaluation failed.
    """
    config, _ = load_recorded_config(folder, overrides, trust, verb="evaluate")
    file = find_checkpoint(folder, checkpoint)
    from runner.experiment import diagnosis
    from runner.experiment.builders import run as run_builder
    from runner.train import evaluation
    from runner.train.state_dict import put_weights

    with diagnosis.convert_record_errors(folder):
        run = run_builder.build(config, folder, {}, trust)
        run.checkpoints.warn = lambda text: print(make_printable(text), file=sys.stderr)
        saved = run.checkpoints.load(file)
        put_weights(run, saved, weights)
        run.progress.step, run.progress.epoch = saved["progress"]["step"], saved["progress"]["epoch"]
        metrics: dict[str, float] = {}
        try:
            for name in run.splits:
                if name != "train":
                    metrics |= evaluation.evaluate(run, name) or {}
        except Exception as error:
            raise RunError(diagnosis.explain_failure(error, run, config, None, None)) from error
    return Evaluation(folder, saved["progress"]["step"], metrics)


def find_checkpoint(folder: Path, checkpoint: str, verb: str = "evaluate") -> str:
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
    command = f"python -m runner {verb} {shlex.quote(str(folder))} --checkpoint"
    remedy = (
        f"did you mean `{command} {shlex.quote(str(folder / 'checkpoints' / near))}`?"
        if near
        else f"there are {', '.join(['last', 'best', *known])}"
    )
    rule = "must be last, best or a file"
    raise ConfigError(
        [Mistake("--checkpoint", rule, checkpoint, f"argument `--checkpoint {checkpoint}`", remedy, near, "file")]
    )
