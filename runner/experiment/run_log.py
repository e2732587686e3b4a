"""Logs of a run: open and close them, log start and end, write tracebacks to `log.txt`."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner.config.schema import Config
from runner.core import event_stream
from runner.core.files import write_json
from runner.core.shared_answers import ask_once
from runner.experiment.builders import log as log_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.preflight.report import Preflight
from runner.experiment.record.recorded_run import RecordedRun
from runner.log.console import print_final_report
from runner.log.logger import LogFile, Logger, WatchedLogger, mend
from runner.model.summary import ModelTable, build_model_table
from runner.train.distributed import environment
from runner.train.state import Run

# Asked whether to stop: the how-manieth value of the objective this is (from 1, also across resumes), and the value.
Judge = Callable[[int, float], bool]


def write_traceback(log: Logger | None, folder: Path, error: Exception) -> str:
    """Write an error's traceback to `log.txt`; return a message if that fails, else an empty text."""
    try:
        if log is None:
            LogFile(folder).exception(error)
        else:
            log.exception(error)  # noqa: LOG004
    except OSError as refused:
        return f" (nor could log.txt be written: {refused.strerror or refused})"
    return ""


def open_log(run: Run, config: Config, judge: Judge | None = None, trust: Trust = ()) -> Logger:
    """Open the run's log at its current step, and start its trackers."""
    progress = run.progress
    said = list[str]()
    if progress.step > run.rhythm.first_step:
        # The lines that a checkpoint knows of: its losses are those since a line, and an evaluation has one.
        since = progress.step - len(run.losses.sizes) - len(progress.left_out)
        known = max(since if since > run.rhythm.first_step else 0, progress.evaluated_at or 0)
        said = mend(run.folder, progress.step, known, run.rhythm.steps_per_epoch)
    log = Logger if judge is None else partial(WatchedLogger, watch=PruningWatch(run, judge))
    opened = log(
        run.folder,
        tensorboard=config.log.tensorboard,
        progress=config.log.progress,
        total_steps=run.rhythm.total_steps,
        start_step=run.progress.step,
        go_on=config.train.on_save_error == "go_on",
        trace=config.log.trace,
    )
    for line in said:
        opened.say(line)
    opened.trackers = log_builder.start_trackers(run, config, trust, opened.alert)
    return opened


def close_log(log: Logger | None, folder: Path, run: Run | None, config: Config, status: str) -> None:
    """Close the log, if there is one, with the run's hparams; print which events a full disk lacks."""
    if log is None:
        return
    shown = run if run is not None and run.log is log else None
    try:
        try:
            log.end(status, complete=run is None or not run.progress.evaluation_pending)
            if shown is not None:
                show_hparams(shown, config, status)
        finally:
            log.close()
    except OSError as error:
        print(f"{folder / 'tb'} lacks its last events: {error.strerror or error}", file=sys.stderr)


def show_hparams(run: Run, config: Config, status: str) -> None:
    """Write the run's row in TensorBoard's hparams table: its config and how it ended."""
    wanted = config.log.hparams
    if wanted:
        run.log.hparams(log_builder.collect_hparams(run.config, None if wanted is True else [*wanted]), status)


@dataclass
class PruningWatch:
    """Pruning callback: asks `judge` at each new value of the objective; a yes stops and saves the run."""

    run: Run
    judge: Judge
    step: int = -1  # of the last value
    count: int = 0  # of values, those before a resume included

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        run = self.run
        at_end = step >= run.rhythm.total_steps or run.stop.asked
        if run.objective.name not in values or step == self.step or at_end:
            return
        if self.step < 0:
            events = RecordedRun(run.folder).read_events()
            self.count = sum(run.objective.name in event and event["step"] < step for event in events)
        self.step, self.count = step, self.count + 1
        if self.judge(self.count, values[run.objective.name]):
            run.stop.on_pruned()


def log_start(run: Run, config: Config, found: Preflight | None, said: Sequence[str]) -> None:
    """Log the start of training: the model's table, notes, the plan of each split, steps and device."""
    event_stream.emit(
        "started",
        run=str(run.folder),
        step=run.progress.step,
        steps=run.rhythm.total_steps,
        device=str(run.device),
        processes=run.team.world,
        objective=run.objective.name,
        mode=run.objective.mode,
    )
    if found is not None:
        if config.log.model_table and found.model is not None and found.batch is not None:
            run.log.say(make_model_table(run, config, found))
        for note in found.notes:
            run.log.say(f"note: {note}")
    if run.pretrained is not None:
        write_json(run.folder / "pretrained.json", run.pretrained.as_json())
        run.log.say(run.pretrained.summary())
        for line in run.pretrained.begins:
            run.log.say(f"pretrained: {line}")
    for name, split in run.splits.items():
        run.log.say(f"{name}: {split.size:,} samples, {split.plan}" if split.size else f"{name}: {split.plan}")
        if left_out := split.fingerprint.describe():
            run.log.say(f"{name}: {left_out}")
    first, total = run.rhythm.first_step, run.rhythm.total_steps
    steps = f"steps {first + 1:,} to {total:,}" if first else f"{total:,} steps"
    run.log.say(f"{steps} on {run.device}, in {run.folder}")
    for line in said:
        run.log.say(line)


OF_TRAINING = frozenset({"name", "seed", "init", "optimizer", "param_groups", "scheduler", "train", "sweep"})


def make_model_table(run: Run, config: Config, found: Preflight) -> ModelTable:
    """Make the table of a model; jobs of a stack whose configs differ in training alone have one."""
    assert found.model is not None
    key = repr({name: value for name, value in run.config.items() if name not in OF_TRAINING})
    return ask_once(("model table", key), partial(build_model_table, found.model, found.one_sample(config)))


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """Print the end of a run: metrics, the line that resumes it, or the error in one paragraph."""
    if result["status"] == "completed":
        print_final_report(result["metrics"] or result.get("train", {}), folder)
    elif result["status"] == "pruned":
        print(f"pruned after step {result['steps']:,}; train it to the end with:")
        print(f"python -m runner resume {shlex.quote(str(folder))}")
    elif result["status"] == "interrupted":
        print(f"stopped by {result['signal']} after step {result['steps']:,}; continue with:")
        print(f"{environment.describe_command()} -m runner resume {folder}")
    else:
        print(f"The run failed: {result['error']}", file=sys.stderr)
        if "nor could log.txt" not in result["error"]:
            print(f"The traceback is in {folder / 'log.txt'}", file=sys.stderr)
