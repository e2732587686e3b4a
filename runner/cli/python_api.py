"""Python and notebooks: the commands as functions.

`from runner import run, resume, check, compose, load, multirun, report`: each takes the overrides of the command line
and raises what the command would print, `ConfigError` for a wrong request (exit status 2) and `RunError` for a run that
failed (1). The process is afterwards as it was: torch's settings, random generators, signal handlers, `sys.path`, the
environment and the working directory.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose as compose_config
from runner.core.errors import ConfigError, Mistake, RunError, format_count, format_mistakes
from runner.core.exit_status import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED
from runner.core.html_table import make_html_table, make_html_text
from runner.core.stop_signals import serve_host
from runner.core.user_trust import read_trusted
from runner.train.distributed import environment

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.experiment.inference.loaded_run import LoadedRun
    from runner.sweep.report.results import Report


def run(*overrides: str, trust: Sequence[str] = (), inexact: bool = False, schedule: str = "") -> "LoadedRun":
    """Train a run as `python -m runner OVERRIDES` does, in this process; return it.

    Args:
        overrides: `"optimizer.lr=0.1"`, `"experiment=digits_mlp"`, one text each.
        trust: patterns of names to import, as `--trust`.
        inexact: as `--inexact`, for `run=RUN`.
        schedule: as `--schedule`, for `run=RUN`.

    Raises:
        ConfigError: the request or the config is wrong; nothing was created.
        RunError: the run failed.
        KeyboardInterrupt: it was interrupted, and has saved; `load(RUN)` and `resume(RUN)` take it up.
    """
    with hold_process():
        from runner.experiment.examine import require_valid
        from runner.experiment.on_event import tell_end
        from runner.experiment.preflight import processes as processes_preflight
        from runner.experiment.record.directory import make_run_dir
        from runner.experiment.resume import resume as resume_run
        from runner.experiment.run import train

        given, argv = collect_trust(trust), [*overrides, *(word for one in trust for word in ("--trust", one))]
        composed = compose_config(overrides)
        examined = require_valid(composed, given)
        config = examined.config
        if started := processes_preflight.check_processes(config.device.parallel, argv):
            raise ConfigError(started)
        if config.run is not None:
            folder = Path(config.run)
            status = resume_run(
                folder, config, composed.unresolved_yaml, argv, given, inexact=inexact, schedule=schedule
            )
        else:
            outcome = train(examined, composed, argv, given, make_run_dir(Path("outputs"), config.name))
            tell_end(config.on_event, outcome.folder, outcome.result, outcome.status)
            folder, status = outcome.folder, outcome.status
        return finish_run(folder, status, given)


def resume(
    folder: str | Path, *overrides: str, trust: Sequence[str] = (), inexact: bool = False, schedule: str = ""
) -> "LoadedRun":
    """Continue an interrupted run as `python -m runner resume RUN` does; return it.

    Raises:
        ConfigError: it is no run, in progress, or cannot be continued exactly; nothing was touched.
        RunError: the run failed.
        KeyboardInterrupt: it was interrupted again, and has saved.
    """
    with hold_process():
        from runner.experiment.record.recorded import load_recorded_config
        from runner.experiment.resume import resume as resume_run

        given, path = collect_trust(trust), Path(folder)
        config, unresolved = load_recorded_config(path, overrides, given)
        argv = ["resume", str(path), *overrides]
        status = resume_run(path, config, unresolved, argv, given, inexact=inexact, schedule=schedule)
        return finish_run(path, status, given)


def collect_trust(trust: Sequence[str]) -> tuple[str, ...]:
    """Collect the patterns given here, and those that the user keeps for this project (`trust add`)."""
    return (*trust, *read_trusted())


def finish_run(folder: Path, status: int, trust: tuple[str, ...]) -> "LoadedRun":
    """Return the run of a folder, or raise what its exit status means."""
    from runner.experiment.inference.loaded_run import LoadedRun
    from runner.experiment.record.recorded_run import RecordedRun

    if status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt(f"stopped after a save; continue with resume({str(folder)!r})")
    if status == EXIT_STOPPED:
        raise SystemExit(EXIT_STOPPED)
    if status != EXIT_DONE:
        error = RecordedRun(folder).read_result().get("error") or "it failed"
        raise RunError(f"{error}\nThe traceback is in {folder / 'log.txt'}")
    return LoadedRun(folder, trust)


@dataclass(frozen=True)
class CheckReport:
    """Mistakes of a config, and what is planned of it; prints as `python -m runner check` does."""

    mistakes: list[Mistake]
    notes: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no mistake."""
        return not self.mistakes

    def __str__(self) -> str:
        count = len(self.mistakes)
        said = [format_mistakes(self.mistakes)] if self.mistakes else []
        lines = [*said, *self.plan, *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, format_count(count) if count else "No mistakes."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self.ok:
            return make_html_text(self)
        rows = [(one.key, one.rule, _format_value(one), one.where, one.remedy) for one in self.mistakes]
        return make_html_table(rows, ("key", "rule", "value", "place", "remedy"), format_count(len(rows)))


def _format_value(mistake: Mistake) -> str:
    return str(mistake.as_json().get("value", ""))


def check(*overrides: str, trust: Sequence[str] = (), multirun: bool = False) -> CheckReport:
    """List every mistake as `python -m runner check` does, with `multirun` for all jobs of a sweep."""
    with hold_process():
        from runner.experiment.examine import examine
        from runner.sweep.examine import examine_sweep

        found: list[Mistake] = []
        notes: list[str] = []
        plan: list[str] = []
        try:
            if multirun:
                examine_sweep(list(overrides), collect_trust(trust), found.extend, notes.extend)
            else:
                seen = examine(compose_config(overrides), collect_trust(trust), found.extend).found
                notes, plan = seen.notes, seen.plan
        except ConfigError as error:
            found.extend(error.mistakes)
        return CheckReport(found, notes, plan)


def compose(*overrides: str, trust: Sequence[str] = ()) -> "DictConfig":
    """Compose a config as a run would have it, resolved and with every default; nothing is built.

    Raises:
        ConfigError: every mistake that shows without an import.
    """
    from omegaconf import OmegaConf

    checked = Check(compose_config(overrides), collect_trust(trust))
    if checked.at_once:
        raise ConfigError(list(checked.at_once))
    return OmegaConf.create(to_resolved_data(checked.config))


def load(folder: str | Path, *, trust: Sequence[str] = (), checkpoint: str = "last", weights: str = "") -> "LoadedRun":
    """Load a run, by its directory or as `SWEEP:12`: its live model, config, metrics, predictions.

    Raises:
        ConfigError: it is no run directory, or its config has mistakes.
    """
    from runner.experiment.inference.loaded_run import LoadedRun
    from runner.sweep.runs.address import locate_run

    with make_importable():
        return LoadedRun(locate_run(str(folder)), collect_trust(trust), checkpoint=checkpoint, weights=weights)


@dataclass(frozen=True)
class SweepResults:
    """Sweep, finished or not, as its report says.

    Attributes:
        folder: of the sweep.
        gathered: its results.
        status: the exit status of the command that ran it; 1 where a job failed.
    """

    folder: Path
    gathered: "Report"
    status: int = EXIT_DONE

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """One mapping a job: rank, status, values of the swept keys, metrics, path."""
        from runner.sweep.report import table

        jobs: list[dict[str, Any]] = table.as_json(self.gathered)["jobs"]
        return jobs

    @cached_property
    def frame(self) -> Any:
        """The jobs as a pandas DataFrame."""
        from runner.experiment.inference.loaded_run import import_pandas

        return import_pandas().DataFrame(self.jobs)

    @property
    def runs(self) -> list["LoadedRun"]:
        """Completed runs, the best first."""
        rows = [row for entry in self.gathered.entries for row in entry.rows if row.status == "completed"]
        return [load(self.folder / row.path) for row in rows]

    @property
    def best(self) -> "LoadedRun | None":
        """Run of the best job; None where none is completed."""
        return next(iter(self.runs), None)

    def tensorboard(self) -> None:
        """Show all jobs in TensorBoard, below the cell of a notebook."""
        from runner.experiment.inference.loaded_run import show_tensorboard

        show_tensorboard(self.folder)

    def __str__(self) -> str:
        from runner.sweep.report import table

        return table.format_report(self.gathered)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from runner.sweep.report import table

        entries = self.gathered.entries[: table.SHOWN]
        rows = [
            [
                entry.rank,
                ", ".join(str(row.number) for row in entry.rows),
                *(table.format_value(entry.values[key]) for key in self.gathered.keys),
                table.format_score(entry),
                ", ".join(f"{count} {status}" for status, count in entry.statuses.items()),
            ]
            for entry in entries
        ]
        header = ["rank", "job", *self.gathered.keys, self.gathered.objective, "status"]
        return make_html_table(rows, header, str(self.folder))


def multirun(*overrides: str, trust: Sequence[str] = ()) -> SweepResults:
    """Run a sweep as `python -m runner -m OVERRIDES` does, or what is left of it; return its results.

    A job that failed is no exception here: `status` is 1 then, and the report names it.

    Raises:
        ConfigError: the sweep or a job of it is wrong; nothing was started.
        RunError: jobs cannot be run here.
        KeyboardInterrupt: it was interrupted; its jobs have saved, and the same call goes on.
    """
    with hold_process():
        from runner.core.exit_status import EXIT_WRONG
        from runner.sweep import multirun as sweep_multirun
        from runner.sweep.jobs import SweepPlan
        from runner.sweep.report.results import gather
        from runner.sweep.space import request

        given, argv = collect_trust(trust), ["-m", *overrides]
        status = sweep_multirun.main(list(overrides), argv, given)
        if status == EXIT_WRONG:
            raise ConfigError(check(*overrides, trust=trust, multirun=True).mistakes)
        if status == EXIT_INTERRUPTED:
            raise KeyboardInterrupt("the jobs have saved; the same call goes on")
        if status == EXIT_STOPPED:
            raise SystemExit(EXIT_STOPPED)
        folder = SweepPlan(request.make_request(list(overrides), Path.cwd(), given), argv, given).folder
        return SweepResults(folder.absolute(), gather(folder), status)


def report(folder: str | Path, *, html: bool | str | Path = False) -> SweepResults:
    """Report a sweep as `python -m runner report SWEEP` does, its files included; print nothing.

    `html` writes the page of `--html`, too: True for `report.html` in the folder, or the name of a file.

    Raises:
        ConfigError: it is no folder of a sweep.
    """
    from runner.sweep.report.write import report as report_sweep

    gathered = report_sweep(Path(folder), say=lambda _: None)
    if html:
        from runner.sweep.report.html.write import write_html

        write_html([str(gathered.folder)], None if html is True else Path(html))
    return SweepResults(gathered.folder.absolute(), gathered)


@contextlib.contextmanager
def hold_process() -> Iterator[None]:
    """Let a command work in this process, and leave the process as it was.

    Raises:
        RunError: torchrun started this process: its ranks are started by the command.
    """
    if environment.read_place() is not None:
        raise RunError("torchrun started this process: take `torchrun … -m runner` in place of a call from Python")
    import os

    from runner.core.process_settings import keep_process_settings  # imports torch

    with keep_process_settings(), serve_host(), make_importable():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the command: cuBLAS is deterministic with it
        yield


@contextlib.contextmanager
def make_importable() -> Iterator[None]:
    """Let code in the working directory be imported, as `python -m` does."""
    here = str(Path.cwd())
    absent = here not in sys.path and "" not in sys.path
    if absent:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if absent and here in sys.path:
            sys.path.remove(here)
