"""`python -m runner -m …`: run a sweep, or continue it when the same command is given again."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from runner.config.check.check import Check
from runner.core import event_stream, safe_io
from runner.core.collection import pause_collection
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_WRONG
from runner.core.files import sync_folder
from runner.core.lock import Lock
from runner.core.shared_answers import share_answers
from runner.experiment.examine import make_reporter, report_count
from runner.experiment.on_event import tell_event
from runner.sweep.console import Console, EventConsole, SweepProgress, make_console
from runner.sweep.controller import Controller, SweepStop, catch_stop_signals
from runner.sweep.examine import Examiner, examine_jobs
from runner.sweep.executors.choose import NoExecutor, make_executor
from runner.sweep.executors.local import STACK_MODULES, LocalExecutor
from runner.sweep.interfaces import Executor, Proposal, Source
from runner.sweep.jobs import PlannedJob, SweepPlan, find_objective
from runner.sweep.launcher_settings import uses_hydra_launcher
from runner.sweep.ledger import FILE, JobRecord, Ledger, put_aside
from runner.sweep.reconcile import adopt, decide, mark, reconcile
from runner.sweep.report import curves
from runner.sweep.report.write import report
from runner.sweep.search.grid import Grid
from runner.sweep.space import request
from runner.sweep.stacks import may_have_stacks
from runner.sweep.summary import describe_remaining, describe_start, summarize

MANY = 200  # points, whose check takes some seconds


def make_source(plan: SweepPlan) -> Source:
    """Make the source of points: a grid, or an Optuna search."""
    if not plan.sweep.is_search:
        return Grid([Proposal(point.own) for point in plan.sweep.points()])
    from runner.sweep.search import optuna_search  # imports Optuna

    return optuna_search.make_search(plan)


def main(
    overrides: Sequence[str],
    argv: Sequence[str],
    trust: tuple[str, ...],
    server: "subprocess.Popen[bytes] | None" = None,
) -> int:
    """Run the sweep or its remaining jobs; return the exit status.

    0 where every job is done, 1 where one failed, 75 or 130 where it was stopped, 2 where a job is wrong: then nothing
    was started.

    Raises:
        ConfigError: the sweep cannot be composed, or is in progress.
        RunError: jobs cannot be run here.
    """
    if uses_hydra_launcher(overrides):
        from runner.sweep import hydra_launcher

        return hydra_launcher.main(overrides, argv, trust)
    stop = SweepStop()
    with catch_stop_signals(stop):
        return run_sweep(overrides, argv, trust, stop, server)


def run_sweep(
    overrides: Sequence[str],
    argv: Sequence[str],
    trust: tuple[str, ...],
    stop: SweepStop,
    server: "subprocess.Popen[bytes] | None" = None,
) -> int:
    """Run the sweep with an executor of this project; return the exit status."""
    plan = SweepPlan(request.make_request(overrides, Path.cwd(), trust), argv, trust)
    if (plan.folder / "config.yaml").is_file():
        rule, where = "must be the name of a sweep, but is that of a run", plan.sweep.base.layers.blame(("sweep", "id"))
        raise ConfigError([Mistake("sweep.id", f"{rule} in {plan.folder.parent}", plan.id, where, kind="file")])
    with ExitStack() as stack:
        ready = None if server is None or plan.is_queued else stack.enter_context(closing(make_executor(plan, server)))
        source = make_source(plan)
        if source.known and source.total and source.total > MANY:
            Console(sys.stdout).say(f"{source.total:,} points: each is checked before the first job starts")
        asked, checks = plan_known_points(plan, source)
        if any(check.at_once for check in checks):
            elsewhere = choose_examiner(ready, source)
            return print_mistake_count(examine_jobs(checks, plan.settings.processes, make_reporter(), elsewhere))
        ledger, rows = open_ledger(plan, stack)
        # Those that were left out before are asked for again.
        wanted = [replace(rows[one.id], active=True) for one in asked if one.id in rows]
        todo = decide(wanted, ledger, plan).run if ledger else {}
        to_start, new = asked, checks
        if source.known:
            to_start = [one for one in asked if one.id not in rows or one.id in todo]
            ids = {one.id for one in to_start}
            new = [check for one, check in zip(asked, checks, strict=True) if one.id in ids]
        executor: Executor = NoExecutor()
        if new or not source.known:
            executor = ready or make_executor(plan)  # it gets ready while the jobs are examined
            stack.callback(executor.close)  # before the ledger
            modules = STACK_MODULES if may_have_stacks(plan.settings, len(asked)) else ()
            elsewhere = choose_examiner(executor, source, prepare_for_jobs(plan, to_start), modules)
            if mistakes := examine_jobs(new, plan.settings.processes, make_reporter(), elsewhere):
                return print_mistake_count(mistakes)
            prepare_executor(executor, plan, len(asked))
        for note in request.collect_notes(check.composed for check in new):
            Console(sys.stdout).say(f"note: {note}")
        try:
            if ledger is None:  # nothing is made before all is known to be right
                plan.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(plan.folder.parent)
                ledger, _ = open_ledger(plan, stack, create=True)
            assert ledger is not None
            return run(plan, ledger, source, asked, executor, stop)
        except (OSError, sqlite3.Error) as error:
            rule = f"the sweep in {plan.folder} cannot write down what happens ({error}), and has stopped its jobs"
            raise RunError(f"{rule}; the same line goes on") from error


def prepare_executor(executor: Executor, plan: SweepPlan, points: int) -> None:
    """Prepare an executor for the jobs of a plan, and for stacks where it may have some."""
    executor.prepare()
    if isinstance(executor, LocalExecutor) and may_have_stacks(plan.settings, points):
        executor.prepare_stacks()


def choose_examiner(
    executor: Executor | None, source: Source, meanwhile: Iterable[object] = (), modules: Sequence[str] = ()
) -> Examiner | None:
    """Choose who examines the jobs, so that this process need not import torch; None: this process.

    It examines the points of a search itself, one by one. `meanwhile` is gone through while others examine;
    `modules` are what some jobs need.
    """
    if isinstance(executor, LocalExecutor) and source.known and "torch" not in sys.modules:
        return partial(executor.examine, meanwhile=meanwhile, modules=modules)
    return None


def prepare_for_jobs(plan: SweepPlan, jobs: Sequence[PlannedJob]) -> Iterator[None]:
    """Compute, job by job, what is needed once they start; then import what draws their curves."""
    for job in jobs:
        plan.prepare(job)
        yield
    curves.prepare()


def plan_known_points(plan: SweepPlan, source: Source) -> tuple[list[PlannedJob], list[Check]]:
    """Plan all points of a known source; else plan none and check the corners of the space."""
    if not source.known:
        return [], [Check(job.composed, plan.trust) for job in plan.sweep.to_be_checked()]
    pairs = []
    with share_answers(), pause_collection():
        while (point := source.next()) is not None:
            asked, check = plan.ask(point)
            _ = check.at_once  # here, where the answers are shared
            pairs.append((asked, check))
    return [one for one, _ in pairs], [check for _, check in pairs]


def print_mistake_count(mistakes: list[Mistake]) -> int:
    """Print the number of mistakes; return the exit status."""
    report_count(mistakes)
    return EXIT_WRONG


def open_ledger(
    plan: SweepPlan, stack: ExitStack, *, create: bool = False
) -> tuple[Ledger | None, dict[str, JobRecord]]:
    """Lock and open the ledger; return it with its reconciled rows, or None if there is none yet.

    Raises:
        ConfigError: another process is at work on it.
        RunError: it cannot be read, or nothing can be written there.
    """
    if not create and not (plan.folder / FILE).is_file():
        return None, {}
    try:
        stack.enter_context(Lock(plan.folder))
        safe_io.refuse_foreign_jobs(plan.folder)
        try:
            ledger = stack.enter_context(verify_ledger(Ledger(plan.folder)))
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            said = f"{plan.folder / FILE} is damaged ({error}) and now called {put_aside(plan.folder)}"
            print(f"{said}: what the directories of its jobs say is in a new one", file=sys.stderr)
            ledger = stack.enter_context(Ledger(plan.folder))
        return ledger, {row.id: row for row in reconcile(ledger, plan.folder)}
    except (OSError, sqlite3.Error) as error:
        raise RunError(f"the sweep in {plan.folder} cannot be taken up: {error}") from error


def verify_ledger(ledger: Ledger) -> Ledger:
    """Verify that the tables of a ledger can be read; return the ledger.

    Raises:
        sqlite3.DatabaseError: they are those of something else; it is closed.
    """
    try:
        ledger.settings()
        ledger.jobs()
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        ledger.close()
        foreign = not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)
        raise (sqlite3.DatabaseError(f"no ledger: {error}") if foreign else error) from error
    return ledger


def run(
    plan: SweepPlan, ledger: Ledger, source: Source, asked: list[PlannedJob], executor: Executor, stop: SweepStop
) -> int:
    """Update the ledger, run the remaining jobs and print the results; return the exit status."""
    objective, mode = find_objective(asked[0].config if asked else plan.base)
    earlier = ledger.settings()
    ledger.set(
        id=plan.id,
        name=plan.base.name,
        created=earlier.get("created") or datetime.now().astimezone().isoformat(timespec="seconds"),
        command=["python", "-m", "runner", *plan.argv],
        base=plan.shared,
        swept=list(plan.sweep.space.keys),
        objective=objective,
        mode=mode,
        objectives=dict(plan.settings.search.objectives),
        searched=plan.settings.search.sampler is not None,
    )
    adopt(ledger, plan.folder, asked, plan)
    rows = reconcile(ledger, plan.folder)
    ids = {one.id for one in asked}
    if source.known:
        mark(ledger, rows, asked)
    decided = decide(rows, ledger, plan)
    tally = SweepProgress(rows, len(ids) if source.known else source.total, objective, mode)
    console = Console(sys.stdout)
    told = {"sweep": str(plan.folder), "objective": objective, "mode": mode}
    event_stream.emit("started", **told, jobs=tally.total, to_run=len(decided.run) if source.known else None)
    board = EventConsole(make_console(tally, console), tally, plan.folder)
    controller = Controller(plan, ledger, source, executor, board, stop)
    stop.noted = True
    try:
        for line in describe_start(plan, rows, asked, decided, source):
            board.say(line)
        for one in asked:
            controller.add(one, decided.run.pop(one.id, None))
        curves.prepare()
        controller.run()
        if isinstance(executor, LocalExecutor):
            executor.dismiss()  # while the report is written
    finally:
        board.close()
        source.close()
    final = [row for row in ledger.jobs() if row.active]
    if len(stop.signals) < 2:  # "at once" leaves no time for pictures
        with pause_collection():  # the plan of a thousand jobs would be searched for garbage several times
            report(plan.folder, console.say)
    for line in describe_remaining(plan, final):
        console.say(line)
    status = compute_exit_status(final, stop)
    summary = summarize(plan.folder, final, mode, status)
    event_stream.record_outcome(summary)
    tell_event(plan.base.on_event, "sweep_done", {"exit": status, **summary}, lambda _: None)
    return status


def compute_exit_status(rows: Sequence[JobRecord], stop: SweepStop) -> int:
    """Return the exit status of a sweep that ended with these rows."""
    if stop.signals:
        return stop.status
    if any(row.status == "failed" or (row.status == "interrupted" and row.error) for row in rows):
        return EXIT_FAILED
    return EXIT_STOPPED if any(row.status == "interrupted" for row in rows) else EXIT_DONE
