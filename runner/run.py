"""One run: from a checked config to a run directory with its result, also when it fails."""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import Tensor

from runner import build, fit, provenance
from runner.config.check import resolved
from runner.config.compose import Composed
from runner.config.schema import Config
from runner.data import Split
from runner.errors import ConfigError
from runner.files import Lock, write_json, write_text
from runner.log import Log, final_report
from runner.model_table import model_table
from runner.preflight import Preflight, preflight
from runner.state import Run, Stop, restore

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit status, directory and result."""

    status: int
    folder: Path
    result: dict[str, Any]


@contextmanager
def stopping(stop: Stop) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and Ctrl-C set a flag, and the step under way ends first; a second Ctrl-C leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.signal == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        stop.signal = number

    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def weights_sha256(state_dict: Mapping[str, Any]) -> str:
    """A hash of names, dtypes, shapes and bytes of a state_dict, in its order."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(
    config: Config,
    composed: Composed,
    argv: Sequence[str],
    trust: build.Trust,
    make_folder: Callable[[str], Path],
    began: float | None = None,
) -> Outcome:
    """Preflight, make the run directory, train.

    Args:
        config: the checked config.
        composed: what it was checked from, which knows who set what.
        argv: the command line, for the record.
        trust: patterns of names trusted on the command line.
        make_folder: makes the run directory from the config's `name`.
        began: `time.perf_counter()` when the command was given.

    Raises:
        ConfigError: the preflight found mistakes; nothing was made.
    """
    found = preflight(config, trust)
    if found.mistakes:
        raise ConfigError(composed.blame(found.mistakes))
    return launch(
        config,
        make_folder(config.name),
        unresolved=composed.unresolved_yaml,
        command=["python", "-m", "runner", *argv],
        trust=trust,
        found=found,
        began=began,
    )


def launch(
    config: Config,
    folder: Path,
    *,
    unresolved: str,
    command: Sequence[str],
    trust: build.Trust = (),
    found: Preflight | None = None,
    resume: bool = False,
    began: float | None = None,
) -> Outcome:
    """Train in a run directory that is ours.

    Args:
        config: the checked config.
        folder: the run directory; it exists.
        unresolved: the composed config as YAML, interpolations kept.
        command: the command line, for the record.
        trust: patterns of names trusted on the command line.
        found: what the preflight found, to be shown first.
        resume: whether to continue from the newest checkpoint.
        began: `time.perf_counter()` when the command was given.
    """
    began = time.perf_counter() if began is None else began
    stop, status = Stop(), EXIT_FAILED
    run: Run | None = None
    log: Log | None = None
    result: dict[str, Any] = {"status": "failed", "metrics": {}, "best": None, "objective": None, "steps": 0}
    plain = resolved(config)
    with Lock(folder), stopping(stop):
        try:
            (folder / ".hydra").mkdir(exist_ok=True)
            write_text(folder / ".hydra" / "config.yaml", unresolved)
            write_text(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
            try:
                run = build.build(config, folder, plain, trust)
            finally:
                record(folder, config, command, run.splits if run is not None else {})
            run.stop = stop
            if resume and run.checkpoints.entries():
                restore(run, run.checkpoints.load("last"))
            run.log = log = Log(
                folder,
                tensorboard=config.log.tensorboard,
                progress=config.log.progress,
                total_steps=run.total_steps,
                start_step=run.progress.step,
            )
            introduce(run, config, found, resume=resume)
            result["seconds_startup"] = time.perf_counter() - began
            fit.fit(run)
            status = finish(run, result)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
            if log is None:  # a log that cuts nothing off
                log = Log(folder, tensorboard=False, progress=False, total_steps=0, start_step=sys.maxsize)
            log.exception(error)  # noqa: TRY401  not a logger of the standard library
        if run is not None:
            result |= figures(run)
        result["seconds"] = time.perf_counter() - began
        write_json(folder / "result.json", result)
        assert log is not None
        log.close()
        conclude(result, folder)
    return Outcome(status, folder, result)


def introduce(run: Run, config: Config, found: Preflight | None, *, resume: bool) -> None:
    """Say what is about to be trained: the model's table, how batches are made, where."""
    if found is not None:
        if config.log.model_table and found.model is not None and found.batch is not None:
            run.log.say(model_table(found.model, found.one_sample(config)))
        for note in found.notes:
            run.log.say(f"note: {note}")
    for name, split in run.splits.items():
        run.log.say(f"{name}: {split.size:,} samples, {split.plan}")
    run.log.say(f"{run.total_steps:,} steps on {run.device}, in {run.folder}")
    if resume:
        run.log.say(f"continues at step {run.progress.step:,}")


def conclude(result: Mapping[str, Any], folder: Path) -> None:
    """Say how it ended: the metrics, or the error in one paragraph, and the run directory."""
    if result["status"] == "completed":
        final_report(result["metrics"], folder)
    elif result["status"] == "interrupted":
        print(f"stopped by {result['signal']} after step {result['steps']:,}; continue with:")
        print(f"python -m runner resume {folder}")
    else:
        print(f"The run failed: {result['error']}\nThe traceback is in {folder / 'log.txt'}", file=sys.stderr)


def record(folder: Path, config: Config, command: Sequence[str], splits: Mapping[str, Split]) -> None:
    """Write down where everything comes from: code, versions, machine, data."""
    facts = provenance.collect(
        Path.cwd(),
        command=command,
        seed=config.seed,
        data={name: {"samples": split.size, "sha256": split.fingerprint} for name, split in splits.items()},
        plan={name: split.plan for name, split in splits.items()},
    )
    write_json(folder / "provenance.json", facts)


def finish(run: Run, result: dict[str, Any]) -> int:
    """Evaluate the last weights on what has not been evaluated yet, and fill in the result; the exit status."""
    progress = run.progress
    if run.stop.signal is None:
        if progress.step == 0:
            fit.evaluate_and_compare(run)
            fit.save(run)
        if "test" in run.splits:
            test = fit.evaluate(run, "test")
            if test is not None:
                progress.last |= test
                run.log.evaluated(progress.step, progress.epoch, test)
    result["best"] = progress.best and {"step": progress.best["step"], "metrics": progress.best["metrics"]}
    result["weights_sha256"] = weights_sha256(run.model.state_dict())
    if run.stop.signal is not None:
        result["status"] = "interrupted"
        result["signal"] = signal.Signals(run.stop.signal).name
        return EXIT_INTERRUPTED if run.stop.signal == signal.SIGINT else EXIT_STOPPED
    result["status"] = "completed"
    result["metrics"] = {name: value for name, value in progress.last.items() if not name.startswith("train/")}
    result["objective"] = progress.last.get(run.objective)
    return EXIT_DONE


def figures(run: Run) -> dict[str, Any]:
    """Steps and seconds of a run."""
    clock = run.clock
    clock.pause()
    first_step, first_seconds = clock.first_epoch or (run.started_at, 0.0)
    steps, seconds = run.progress.step - first_step, clock.training - first_seconds
    return {
        "steps": run.progress.step,
        "seconds_evaluating": clock.evaluating,
        "seconds_saving": clock.saving,
        "steps_per_second": steps / seconds if steps > 0 and seconds > 0 else None,
    }
