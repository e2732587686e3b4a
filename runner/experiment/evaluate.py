"""Evaluation of a recorded run: the metrics of one of its checkpoints."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.suggestions import find_nearest
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable
from runner.experiment.record.recorded import load_recorded_config


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint, by `<split>/<metric>`, and the step that it was saved after.

    `test_step` is the step of the weights of the test, where `train.test_with` is best.
    """

    folder: Path
    step: int
    metrics: dict[str, float]
    test_step: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        test = {} if self.test_step is None else {"test_step": self.test_step}
        return {"run": str(self.folder), "step": self.step, "metrics": self.metrics} | test


def evaluate_run(
    folder: Path,
    overrides: Sequence[str] = (),
    trust: tuple[str, ...] = (),
    *,
    checkpoint: str = "",
    weights: str = "",
) -> Evaluation:
    """Evaluate a checkpoint of a run on every split except train.

    Without a word of which it is the last one, and for the test split that of `train.test_with`: so the numbers are
    those of the run's end.

    Args:
        folder: the run directory.
        overrides: changes of its recorded config.
        trust: patterns of trusted names.
        checkpoint: `last`, `best`, a path, or a file in the run's folder; empty for those of the run's end.
        weights: `raw` or `ema`; empty for those that training evaluated.

    Raises:
        ConfigError: there is no such run or checkpoint, or the config has mistakes.
        RunError: the data cannot be had, or the evaluation failed.
    """
    config, _ = load_recorded_config(folder, overrides, trust, verb="evaluate")
    file = find_checkpoint(folder, checkpoint or "last")
    from runner.experiment import diagnosis
    from runner.experiment.builders import run as run_builder
    from runner.train import evaluation
    from runner.train.state_dict import put_weights

    with diagnosis.convert_record_errors(folder):
        run = run_builder.build(config, folder, {}, trust)
        run.checkpoints.warn = lambda text: print(make_printable(text), file=sys.stderr)
        saved = run.checkpoints.load(file)
        step, test_step = saved["progress"]["step"], None
        put_weights(run, saved, weights)
        run.progress.step, run.progress.epoch = saved["progress"]["step"], saved["progress"]["epoch"]
        metrics: dict[str, float] = {}
        try:
            for name in sorted(run.splits, key=lambda name: name == "test"):  # the test last: it may have other weights
                if name == "test" and not checkpoint and config.train.test_with == "best":
                    test_step = put_best_weights(run, saved, weights)
                if name != "train":
                    metrics |= evaluation.evaluate(run, name) or {}
        except ConfigError:
            raise
        except Exception as error:
            raise RunError(diagnosis.explain_failure(error, run, config, None, None)) from error
    return Evaluation(folder, step, metrics, test_step)


def put_best_weights(run: Any, last: Mapping[str, Any], weights: str) -> int:
    """Put the weights of the best checkpoint into the model, if it is there; return their step."""
    from runner.train.state_dict import put_weights

    best, step = last["progress"]["best"], int(last["progress"]["step"])
    if best is None:
        return step
    saved = run.checkpoints.load("best")
    if saved["progress"]["step"] != best["step"]:
        return step
    put_weights(run, saved, weights)
    return int(best["step"])


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
