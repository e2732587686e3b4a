"""Run: training of a checked config in a run directory, with a result even after a failure."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.config import schema
from runner.config.check.check import to_resolved_data
from runner.config.composed import Composed
from runner.config.schema import Config
from runner.core import device as devices
from runner.core import event_stream
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.exit_status import EXIT_FAILED
from runner.core.files import remove, write_json
from runner.core.lock import Lock
from runner.experiment import diagnosis
from runner.experiment.builders import run as run_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.examine import Examination
from runner.experiment.finish import finish
from runner.experiment.first_batch import check_lengths, try_the_first_batch
from runner.experiment.preflight import processes as processes_preflight
from runner.experiment.preflight.report import Preflight
from runner.experiment.record.cause import describe_cause, describe_failure
from runner.experiment.record.continuation import Continuation, drop_schedule
from runner.experiment.record.result import (
    collect_provenance,
    compute_timings,
    list_inexact_steps,
    make_empty_result,
    read_inexact_steps,
    write_config,
    write_result,
)
from runner.experiment.record.stacked import describe_stacks, read_stacks
from runner.experiment.restore import continue_run, rebuild_at_checkpoint
from runner.experiment.run_log import Judge, close_log, log_start, open_log, print_result, write_traceback
from runner.experiment.signals import handle_stop_signals
from runner.log.logger import Logger, suppress_console_errors
from runner.train import finite, loop, nan_search, oom
from runner.train.broadcasting import refuse_broadcasting
from runner.train.distributed import environment
from runner.train.distributed.process_group import ProcessGroup
from runner.train.finite import NonFiniteError
from runner.train.single_process import SINGLE_PROCESS, SingleProcess
from runner.train.state import Run, StopRequest
from runner.train.time_budget import TIME_IS_UP, TrainingBudget


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run: exit status, directory and result."""

    status: int
    folder: Path
    result: dict[str, Any]


def train(
    examined: Examination,
    composed: Composed,
    argv: Sequence[str],
    trust: Trust,
    folder: Path,
    began: float | None = None,
    judge: Judge | None = None,
) -> Outcome:
    """Train an examined config, free of mistakes, in its own run directory.

    Args:
        examined: the config, and what the preflight found.
        composed: what it was composed to.
        argv: the command line, for the record.
        trust: patterns of names trusted on the command line.
        folder: the run directory; it exists.
        began: `time.perf_counter()` when the command was given.
        judge: asked after each value of the objective but that of the last step whether the run is to stop as pruned.
    """
    return launch(
        examined.config,
        folder,
        blame=composed.blame,
        unresolved=composed.unresolved_yaml,
        command=["python", "-m", "runner", *argv],
        trust=trust,
        found=examined.found,
        debugging=bool(composed.choices.get("debug")),
        began=began,
        judge=judge,
    )


def as_recorded(mistakes: list[Mistake]) -> list[Mistake]:
    """Place mistakes in the run's `config.yaml`, for a config that is known from its record only."""
    return [replace(mistake, where=mistake.where or f"config.yaml: {mistake.key}") for mistake in mistakes]


def launch(
    config: Config,
    folder: Path,
    *,
    unresolved: str,
    command: Sequence[str],
    trust: Trust = (),
    found: Preflight | None = None,
    again: Continuation | None = None,
    inexact: bool = False,
    debugging: bool = False,
    began: float | None = None,
    judge: Judge | None = None,
    blame: diagnosis.Blame = as_recorded,
) -> Outcome:
    """Train in an existing run directory while holding its lock.

    Args:
        config: the checked config.
        folder: the run directory; it exists.
        unresolved: the composed config as YAML, interpolations kept.
        command: the command line, for the record.
        trust: patterns of names trusted on the command line.
        found: what the preflight found, to be shown first.
        again: to continue: how the config compares with what the run was started with.
        inexact: whether to continue although numbers may differ.
        debugging: whether a `debug` option was chosen, so that the run may be too short for what it does.
        began: `time.perf_counter()` when the command was given.
        judge: asked after each value of the objective but that of the last step whether the run is to stop as pruned.
        blame: gives a mistake that only the data shows the place that set its key.

    Raises:
        ConfigError: another process is at work on it, or it cannot be continued exactly; nothing was touched.
    """
    began = time.perf_counter() if began is None else began
    return launch_task(
        RunTask(
            config,
            folder,
            unresolved,
            command,
            trust,
            found,
            again,
            inexact,
            debugging,
            began=began,
            judge=judge,
            blame=blame,
        )
    )


def launch_task(task: "RunTask") -> Outcome:
    """Train as `launch` does, with its arguments in one object."""
    stop, status = StopRequest(), EXIT_FAILED
    record = RunRecord(task, stop, join_process_group(task.config, stop, task.command), make_empty_result())
    with (
        Lock(task.folder),
        handle_stop_signals(stop),
        devices.keep_precision_flags(),
        suppress_console_errors(),
        refuse_broadcasting(),
    ):
        try:
            if task.again is not None and (stacked := describe_stacks(read_stacks(task.folder))):
                record.said.append(f"{stacked}; it goes on alone")
            open_record(record)
            status = train_recorded(record)
        except Exception as error:
            if task.again is not None and isinstance(error, ConfigError):
                raise
            record.team.failed(error)
            if not record.stands:
                return refuse_continuation(record, error)
            record_error(record, error)
        return close_record(record, status)


@dataclass(frozen=True)
class RunTask:
    """Arguments of `launch`, in one object."""

    config: Config
    folder: Path
    unresolved: str
    command: Sequence[str]
    trust: Trust = ()
    found: Preflight | None = None
    again: Continuation | None = None
    inexact: bool = False
    debugging: bool = False
    began: float = field(default_factory=time.perf_counter)
    judge: Judge | None = None
    blame: diagnosis.Blame = as_recorded


@dataclass
class RunRecord:
    """Record of a run under way: directory, result and log, opened before training, closed after."""

    task: RunTask
    stop: StopRequest
    team: SingleProcess
    result: dict[str, Any]
    run: Run | None = None
    log: Logger | None = None
    said: list[str] = field(default_factory=list)  # to be logged at the start
    taken_up: bool = False  # a run that continues stands where it stood
    provenance: dict[str, Any] | None = None  # as the directory has it; None before it was written

    @property
    def stands(self) -> bool:
        """Return whether the directory may change: a run that continues is not touched until it stands."""
        return self.taken_up or self.task.again is None


def open_record(record: RunRecord) -> Run:
    """Build the run of a record, or restore it, and open its log; the run is ready to be trained."""
    task, team, again = record.task, record.team, record.task.again
    team.watch(lambda culprit: give_up(task.folder, record.result if record.stands else None, culprit))
    if again is None:
        run, facts = start(task, team)
    else:
        run, facts = continue_run(task.folder, again, task.command, task.trust, team, record.said, inexact=task.inexact)
    team.tell({"step": run.progress.step})
    start_logging(record, run)
    stop_in_time(run, task.began)
    if again is not None:
        record_continuation(task.folder, run, again, facts)
        record.taken_up = True
    record.provenance = facts
    log_start(run, task.config, task.found, record.said)
    record.result["seconds_startup"] = time.perf_counter() - task.began
    return run


def start_logging(record: RunRecord, run: Run) -> None:
    """Open the log of a run that stands, and give the run its stop request and this log."""
    if record.run is not None:  # which a fault has ended
        record.run.clock.pause()
        run.clock.budget = record.run.clock.budget
    record.run = run
    log = open_log(run, record.task.config, record.task.judge, record.task.trust)
    run.start(record.stop, log)
    record.log = log


def train_recorded(record: RunRecord, fault: NonFiniteError | None = None) -> int:
    """Train the run of an open record, answer faults as `train.on_fault` says; return the status.

    With a `fault`, training has come to it already.
    """
    task, run = record.task, record.run
    assert run is not None
    fault = fault or fit_until_fault(run, task.config)
    while fault is not None:
        if record.team.world > 1:  # the search trains on in one process
            raise fault
        rebuild = partial(rebuild_at_checkpoint, task.config, task.folder, task.trust, record.said, task.again)
        run = nan_search.answer(run, fault, rebuild, *get_fault_policy(task.config))
        if record.log is not None:
            record.log.close()
        start_logging(record, run)
        fault = fit_until_fault(run, task.config)
    return finish(run, record.result, task.config.train.test_with)


def record_error(record: RunRecord, error: Exception) -> None:
    """Write into the result of a record what failed, and its traceback into `log.txt`."""
    task, result = record.task, record.result
    culprit = record.team.blame(error)  # in another process
    message = culprit or diagnosis.explain_failure(error, record.run, task.config, task.found, task.blame)
    result |= describe_failure(error, message)
    if culprit:
        del result["cause"]  # its message says more than this error, which only follows from it
    result["error"] += write_traceback(record.log, task.folder, error)


def close_record(record: RunRecord, status: int) -> Outcome:
    """Write the result of a run that has ended, close its log, and print the result."""
    folder, result = record.task.folder, record.result
    result |= collect_outcome(record) | {"seconds": time.perf_counter() - record.task.began}
    status = status if write_result(folder, result) else EXIT_FAILED
    close_log(record.log, folder, record.run, record.task.config, result["status"])
    print_result(result, folder)
    event_stream.record_outcome({"run": str(folder), **result})
    record.team.end()
    return Outcome(status, folder, result)


def collect_outcome(record: RunRecord) -> dict[str, Any]:
    """Collect a run's timings, after its last save, and its inexact steps for the result."""
    run, known = record.run, record.provenance
    inexact = read_inexact_steps(record.task.folder) if known is None else list_inexact_steps(known)
    if run is None:
        return inexact
    with suppress(RunError):  # the last save; what it would say comes too late
        run.checkpoints.wait()
    return compute_timings(run) | inexact


def refuse_continuation(record: RunRecord, error: Exception) -> Outcome:
    """Print why a run cannot continue; its directory and its result stay as they were."""
    folder, result = record.task.folder, record.result
    result["error"] = record.team.blame(error) or describe_cause(error)
    if record.log is not None:
        with suppress(OSError):
            record.log.close()
    print(f"{folder} cannot go on: {result['error']}", file=sys.stderr)
    print("Its result, metrics and checkpoints are as they were.", file=sys.stderr)
    event_stream.record_outcome({"run": str(folder), "status": "failed", "error": result["error"]})
    record.team.end()
    return Outcome(EXIT_FAILED, folder, result)


def stop_in_time(run: Run, began: float) -> None:
    """Set the deadline of training by `train.max_time`, less the seconds of earlier processes."""
    if run.rhythm.max_seconds is None:
        return
    if run.rhythm.max_time_counts == "training":
        compiles = bool(run.config["device"]["compile"])
        used = run.progress.seconds_training
        run.clock.budget = TrainingBudget(run.stop, run.rhythm.max_seconds, used, watches_compiler=compiles)
    else:
        run.stop.end_at(began + run.rhythm.max_seconds - run.progress.seconds, TIME_IS_UP)


def join_process_group(config: Config, stop: StopRequest, command: Sequence[str]) -> SingleProcess:
    """Join the process group as rank 0 if the config wants one, else return the single process.

    Raises:
        ConfigError: it does, and this process was started by `command` and not by torchrun.
    """
    place = environment.read_place()
    if config.device.parallel not in schema.PROCESSES:
        return SINGLE_PROCESS
    if place is None:
        raise ConfigError(processes_preflight.check_processes(config.device.parallel, command[3:]))
    stop.shared = True
    return ProcessGroup(place, stop)


def give_up(folder: Path, result: dict[str, Any] | None, culprit: str) -> None:
    """Write the failed result, if there is one, and exit at once: another process has failed."""
    if result is not None:
        write_result(folder, result | {"error": culprit})
    print(f"The run failed: {culprit}", file=sys.stderr)
    event_stream.end(EXIT_FAILED, run=str(folder), **((result or {}) | {"status": "failed", "error": culprit}))
    os._exit(EXIT_FAILED)


def start(task: RunTask, team: SingleProcess) -> tuple[Run, dict[str, Any]]:
    """Build a new run, write config and provenance, try its first batch; return run and provenance."""
    config, folder = task.config, task.folder
    plain = to_resolved_data(config)
    write_config(folder, plain, task.unresolved)
    remove(folder / "result.json")  # of an attempt that failed before it had a config
    team.tell({"config": plain, "folder": str(folder.absolute()), "rescheduled": [], "settings": {}, "schedule": ""})
    run: Run | None = None
    try:
        run = run_builder.build(config, folder, plain, task.trust, team)
    finally:
        facts = collect_provenance(config, task.command, run)
        write_json(folder / "provenance.json", facts)
    if mistakes := check_lengths(config, run, debugging=task.debugging):
        raise RunError("; ".join(map(str, mistakes)))
    try_the_first_batch(run, config, task.found, task.trust, task.blame)
    return run, facts


def record_continuation(folder: Path, run: Run, again: Continuation, record: Mapping[str, Any]) -> None:
    """Record that a run continues: write its provenance and config, remove the earlier result."""
    write_json(folder / "provenance.json", record)
    if run.checkpoints.entries():
        run.checkpoints.finish()
    unresolved = drop_schedule(again)[1] if again.schedule == "constant" else again.unresolved
    write_config(folder, run.config, unresolved)
    remove(folder / "result.json")


def get_fault_policy(config: Config) -> tuple[str, int]:
    """Return `train.on_fault` and `train.max_faults`."""
    return config.train.on_fault, config.train.max_faults


def fit_until_fault(run: Run, config: Config) -> NonFiniteError | None:
    """Train to the end or to a signal; return the error of a NaN or an infinity, if one occurs."""
    try:
        with finite.detect_anomalies() if config.train.detect_anomaly else nullcontext():
            loop.fit(run)
    except NonFiniteError as fault:
        return fault
    except (RuntimeError, MemoryError) as error:
        if not oom.is_out_of_memory(error):
            raise
        raise RunError(describe_out_of_memory(run)) from error
    return None


def describe_out_of_memory(run: Run) -> str:
    """Describe an out-of-memory error: the step, the batch size, the peak, and the settings to change."""
    loader, evaluating = run.config["loader"], not run.model.training
    key, size = "loader.batch_size", loader["batch_size"]
    if evaluating and loader["eval"]["batch_size"] is not None:
        key, size = "loader.eval.batch_size", loader["eval"]["batch_size"]
    where = "in the evaluation after" if evaluating else "in the step after"
    ways = (
        "let the dataset give smaller batches"
        if size is None
        else oom.suggest_remedies(
            size,
            run.rhythm.accumulate,
            run.config["device"]["precision"],
            evaluating=evaluating,
            splits=run.config["train"]["split_on_oom"],
        )
    )
    return (
        f"out of memory {where} step {run.progress.step:,} with {key}={size}; {oom.describe_peak(run.device)}. {ways}"
    )
