"""One attempt of a job, in this process or in one forked process per rank."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.check.check import parse
from runner.config.check.own_downloads import find_own_downloads
from runner.config.parsing import read
from runner.core.errors import ConfigError, Mistake
from runner.core.exit_status import EXIT_DISK, EXIT_DONE, EXIT_FAILED, EXIT_WRONG
from runner.core.lock import Lock
from runner.core.shared_answers import ask_once
from runner.experiment.record.continuation import Continuation, plan_continuation
from runner.experiment.record.recorded import load_recorded_config
from runner.sweep.interfaces import OUTPUT, JobSpec
from runner.sweep.outcome import LOG, REFUSED, RESULT, read_json
from runner.sweep.pruning import connect

if TYPE_CHECKING:
    from runner.experiment.run import RunTask

LOCK_SECONDS = 60.0  # for the end of an attempt that was killed a moment ago; a killed process needs milliseconds


OF_ALL_ATTEMPTS = {".lock", ".heartbeat", OUTPUT}  # what is printed is appended


def run_attempt(job: JobSpec) -> int:
    """Run or continue the job; return the exit status of `python -m runner`.

    In this process, or, where it is one of several processes, in as many that this one forks.

    Nothing that an earlier attempt left is overwritten: `result.json` becomes `result.1.json`, and where the attempt
    failed `log.txt` becomes `log.1.txt`; where the job starts anew so does everything else.

    Raises:
        ConfigError: it cannot be continued exactly, and is not to be started anew; nothing was touched.
    """
    folder = Path(job.folder)
    wait_for_the_last_attempt(folder)
    if job.processes == 1:
        return _run_job(job, folder)
    from runner.experiment.worker_rank import run_worker_rank
    from runner.sweep.executors.rank_processes import run_ranks

    refusal = folder / REFUSED
    status = run_ranks(
        job.processes,
        lambda: _run_rank_zero(job, folder, refusal),
        lambda place: run_worker_rank(place, tuple(job.trust)),
    )
    if refusal.exists():
        text = refusal.read_text()
        refusal.unlink()
        raise ConfigError([Mistake(**mistake) for mistake in json.loads(text)])
    return status


def _run_rank_zero(job: JobSpec, folder: Path, refusal: Path) -> int:
    """Run rank 0; hand its config mistakes to the parent process and dismiss the other ranks."""
    from runner.train.distributed import environment
    from runner.train.distributed.process_group import dismiss

    place = environment.read_place()
    assert place is not None
    try:
        status = _run_job(job, folder)
    except ConfigError as error:
        refusal.write_text(json.dumps([mistake.as_json() for mistake in error.mistakes]))
        status = EXIT_WRONG
    dismiss(place, status)
    return status


def _run_job(job: JobSpec, folder: Path) -> int:
    from runner.experiment import run

    task = prepare_task(job, folder)
    if task is None:
        return EXIT_DONE
    outcome = run.launch_task(task)
    if task.again is not None and outcome.status == EXIT_FAILED and not (folder / RESULT).exists():
        from runner.experiment.record import result as record_result

        record_result.write_result(folder, outcome.result)  # it could not go on: what it had is in the file put aside
    return outcome.status if (folder / RESULT).exists() else EXIT_DISK


def prepare_task(job: JobSpec, folder: Path) -> "RunTask | None":
    """Prepare the directory of a job for an attempt; return the task, or None where the job is done.

    Raises:
        ConfigError: it cannot be continued exactly, and is not to be started anew; nothing was touched.
    """
    from runner.experiment.preflight.preflight import prepare_model_table
    from runner.experiment.run import RunTask
    from runner.experiment.run_log import OF_TRAINING

    command, trust = ["python", "-m", "runner", *job.argv], tuple(job.trust)
    judge = connect(job.judge, job.id, folder)
    if job.anew != "always" and (folder / "config.yaml").is_file():
        if (read_json(folder / RESULT) or {}).get("status") in ("completed", "pruned"):
            return None
        try:
            again = _plan_continuation(job, folder, trust)
        except ConfigError:
            if job.anew == "never":
                raise
        else:
            return RunTask(again.config, folder, again.unresolved, command, trust, again=again, judge=judge)
    put_aside(folder, [path.name for path in folder.iterdir()])
    config = parse(job.config)
    found = None
    if config.log.model_table:  # jobs of a stack whose configs differ in training alone have one
        alike = repr({name: value for name, value in job.config.items() if name not in OF_TRAINING})
        found = ask_once(("preflight", alike), lambda: prepare_model_table(config, trust))
    return RunTask(config, folder, job.unresolved, command, trust, found, judge=judge)


def _plan_continuation(job: JobSpec, folder: Path, trust: tuple[str, ...]) -> Continuation:
    """Plan to continue the run in the folder with its recorded config; raise ConfigError on any change."""
    # A folder outside that the user named on the sweep's line was examined with it, and the record does not say so.
    components = read(job.config)[1].components
    own = [own.root for path, _, node in components for own in find_own_downloads(path, node, trust)]
    config, unresolved = load_recorded_config(folder, trust=trust, data_folders=own)
    again = plan_continuation(folder, config, unresolved, trust)
    if again.changes:
        raise ConfigError(again.changes)
    put_aside(folder, [RESULT, LOG] if job.retry else [RESULT])
    return again


def put_aside(folder: Path, names: list[str]) -> None:
    """Rename the files of an earlier attempt: `log.txt` becomes `log.1.txt`, one free number for all.

    `config.yaml` goes first: a folder without it is no run, whatever else is in it when this is cut short.
    """
    names = [name for name in names if (folder / name).exists() and not _is_numbered(name)]
    names = [name for name in names if name not in OF_ALL_ATTEMPTS and not name.endswith(".tmp")]
    names.sort(key=lambda name: name != "config.yaml")
    number = 1
    while any((folder / _insert_number(name, number)).exists() for name in [*names, RESULT, LOG]):
        number += 1
    for name in names:
        (folder / name).rename(folder / _insert_number(name, number))


def _insert_number(name: str, number: int) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  `.hydra` has no suffix
    return f"{stem}.{number}{suffix}"


def _is_numbered(name: str) -> bool:
    parts = name.lstrip(".").split(".")
    return any(part.isdigit() for part in parts[1:])


def wait_for_the_last_attempt(folder: Path) -> None:
    """Wait until no process holds the lock of the folder, LOCK_SECONDS at most."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            Lock(folder).release()
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
