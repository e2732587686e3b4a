"""Loaded run for notebooks and scripts: config, metrics, live model and predictions."""

import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from runner.config.check.imports import describe_install
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.html_table import make_html_table
from runner.core.process_settings import keep_process_settings
from runner.experiment.builders.instantiate import Trust
from runner.experiment.evaluate import evaluate_run
from runner.experiment.inference.export import Export, export_run
from runner.experiment.inference.predict import predict
from runner.experiment.inference.prediction_files import make_rows
from runner.experiment.inference.trained_model import load_trained_model
from runner.experiment.record.recorded import load_recorded_config, read_config_files
from runner.experiment.record.recorded_run import RecordedRun, print_to_stderr

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class PredictedRows:
    """Predictions in memory.

    Attributes:
        rows: one mapping a sample: `input`, `target`, `class`, `label`, `probability`, `output`.
        refused: inputs that are left out, each with what is wrong with it.
    """

    rows: list[dict[str, Any]]
    refused: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def output(self) -> Tensor:
        """Outputs of all samples in one tensor [N, ...].

        Raises:
            RunError: they make none, as boxes of several numbers.
        """
        import torch

        try:
            return torch.tensor([row["output"] for row in self.rows])
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError("the outputs make no tensor: they have several parts or shapes; `rows` has them") from error

    @property
    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        return import_pandas().DataFrame(self.rows)

    def _repr_html_(self) -> str:
        shown = [name for name in ("input", "target", "class", "label", "output") if self.rows and name in self.rows[0]]
        cells = [[_cut(row.get(name)) for name in shown] for row in self.rows[:20]]
        more = f"; {len(self.rows) - 20:,} more" * (len(self.rows) > 20)
        left_out = f"; {len(self.refused)} left out" * bool(self.refused)
        return make_html_table(cells, shown, f"{len(self.rows):,} predictions{more}{left_out}")


def _cut(value: Any) -> Any:
    """Cut a long list for a table."""
    if isinstance(value, list):
        said = ", ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in value[:6])
        return f"[{said}{', …' * (len(value) > 6)}]"
    return value


class LoadedRun:
    """Run directory, finished or not, as an object; nothing is read before it is asked for.

    Args:
        folder: the run directory.
        trust: patterns of trusted names.
        checkpoint: of `model` and `predict`: `last`, `best`, a path, or a file in the run's folder.
        weights: `raw` or `ema`; empty for those that training evaluated.

    Raises:
        ConfigError: it is no run directory, or its config has mistakes.
    """

    def __init__(self, folder: str | Path, trust: Trust = (), *, checkpoint: str = "last", weights: str = "") -> None:
        self.folder, self.trust = Path(folder).absolute(), tuple(trust)
        self.checkpoint, self.weights = checkpoint, weights
        self._checked, _ = load_recorded_config(self.folder, (), self.trust, verb="evaluate")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}): {self.status}"

    @cached_property
    def config(self) -> "DictConfig":
        """The run's resolved config, as Hydra gives one."""
        return OmegaConf.create(read_config_files(self.folder, print_to_stderr).data)

    @property
    def result(self) -> dict[str, Any]:
        """Content of `result.json` as it is now; empty where the run has not ended."""
        return RecordedRun(self.folder).read_result()

    @property
    def status(self) -> str:
        """State of the run: how it ended; `running or killed` where it has not written that."""
        return str(self.result.get("status", "running or killed"))

    @property
    def events(self) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl` as they are now.

        Raises:
            RunError: the file cannot be read.
        """
        try:
            return RecordedRun(self.folder).read_events()
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / 'metrics.jsonl'} cannot be read: {error}") from error

    @property
    def metrics(self) -> Any:
        """Logged metrics as a pandas DataFrame: a row a step, NaN where a metric was not logged."""
        frame = import_pandas().DataFrame(self.events)
        if "step" not in frame:
            return frame
        frame = frame.set_index("step")
        for name in frame:  # NaN and infinity are strings in JSON
            if frame[name].map(lambda value: value in ("NaN", "Infinity", "-Infinity")).any():
                frame[name] = frame[name].astype(float)
        return frame

    @cached_property
    def model(self) -> nn.Module:
        """The live model in eval mode, with the weights of the checkpoint.

        Raises:
            ConfigError: there is no such checkpoint.
            RunError: the model or the weights cannot be had.
        """
        with keep_process_settings():
            return load_trained_model(
                self.folder, self._checked, self.trust, checkpoint=self.checkpoint, weights=self.weights
            ).model

    def predict(self, *inputs: str | Path, split: str = "", batch_size: int | None = None) -> PredictedRows:
        """Predict for files, or for one of the run's own splits, as `python -m runner predict` does.

        Raises:
            ConfigError: there is no such input or split.
            RunError: data or weights cannot be had.
        """
        with keep_process_settings():
            made = predict(
                self.folder,
                [str(path) for path in inputs],
                (),
                self.trust,
                split=split,
                checkpoint=self.checkpoint,
                weights=self.weights,
                batch_size=batch_size,
            )
            return PredictedRows(list(make_rows(made)), made.refused)

    def evaluate(self) -> dict[str, float]:
        """Compute the metrics of the checkpoint anew, as `python -m runner evaluate` does.

        Raises:
            ConfigError: there is no such checkpoint.
            RunError: the data cannot be had.
        """
        with keep_process_settings():
            return evaluate_run(self.folder, (), self.trust, checkpoint=self.checkpoint, weights=self.weights).metrics

    def export(self, to: str, out: str | Path | None = None) -> Export:
        """Export the model as `python -m runner export` does; see `export_run`.

        Raises:
            ConfigError: there is no such format.
            RunError: the model cannot be exported so.
        """
        with keep_process_settings():
            return export_run(
                self.folder,
                to,
                None if out is None else Path(out),
                (),
                self.trust,
                checkpoint=self.checkpoint,
                weights=self.weights,
            )

    def tensorboard(self) -> None:
        """Show the run in TensorBoard, below the cell of a notebook."""
        show_tensorboard(self.folder)

    def _repr_html_(self) -> str:
        result = self.result
        metrics = result.get("metrics")
        rows: list[Sequence[object]] = [("status", self.status), ("steps", result.get("steps"))]
        rows += [("seconds", result.get("seconds"))] if "seconds" in result else []
        rows += list(metrics.items()) if isinstance(metrics, dict) else []
        rows += [("error", result["error"])] if result.get("error") else []
        return make_html_table([*rows, ("folder", self.folder)], caption=self._checked.name)


def import_pandas() -> Any:
    """Import pandas, an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        rule, remedy = "needs pandas, which is not installed", describe_install("pandas")
        raise ConfigError([Mistake("metrics", rule, remedy=remedy, kind="unavailable")]) from error


def show_tensorboard(folder: Path) -> None:
    """Start TensorBoard on a folder, or show the one that runs, in a notebook's cell."""
    notebook = importlib.import_module("tensorboard.notebook")
    beside = Path(sys.executable).parent / "tensorboard"  # a kernel's PATH may lack its environment's programs
    if beside.exists():
        os.environ.setdefault("TENSORBOARD_BINARY", str(beside))
    notebook.start(f"--logdir {shlex.quote(str(folder))}")
