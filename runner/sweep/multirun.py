"""`python -m runner -m …`: a sweep that may be cut off anywhere, and goes on when the same line is given again."""

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from runner.config.check.check import Check
from runner.core.errors import ConfigError, Mistake, RunError, count_line
from runner.core.files import sync_folder
from runner.core.lock import Lock
from runner.experiment.examine import reporter
from runner.sweep.console import Console, Tally, board_for
from runner.sweep.controller import EXIT_STOPPED, Controller, Stop, stopping
from runner.sweep.examine import examine_jobs
from runner.sweep.executors.choose import Nowhere, executor_of
from runner.sweep.interfaces import Executor, Point, Source
from runner.sweep.jobs import Asked, Plan, objective_of
from runner.sweep.launcher import GROUP, OURS
from runner.sweep.ledger import FILE, Ledger, Row, put_aside
from runner.sweep.reconcile import adopt, decide, mark, reconcile
from runner.sweep.report.write import report
from runner.sweep.search.grid import Listed
from runner.sweep.space import request
from runner.sweep.summary import after, before

MANY = 200  # points, whose check takes some seconds


EXIT_DONE, EXIT_FAILED, EXIT_WRONG = 0, 1, 2


def source_of(plan: Plan) -> Source:
    """Where the points of this command line come from."""
    if not plan.sweep.is_search:
        return Listed([Point(point.own) for point in plan.sweep.points()])
    from runner.sweep.search import optuna_search  # imports Optuna

    return optuna_search.source(plan)


def main(overrides: Sequence[str], argv: Sequence[str], trust: tuple[str, ...]) -> int:
    """Run the sweep, or what is left of it; the exit status.

    0 where every job is done, 1 where one failed, 75 or 130 where it was stopped, 2 where a job is wrong: then nothing
    was started.

    Raises:
        ConfigError: the sweep cannot be composed, or is in progress.
        RunError: jobs cannot be run here.
    """
    if asks_for_hydras_own(overrides):
        from runner.sweep import hydra_launcher

        return hydra_launcher.main(overrides, argv, trust)
    stop = Stop()
    with stopping(stop):
        return sweep_of(overrides, argv, trust, stop)


def sweep_of(overrides: Sequence[str], argv: Sequence[str], trust: tuple[str, ...], stop: Stop) -> int:
    """`main` by launchers of ours."""
    plan = Plan(request.plan(overrides, Path.cwd(), trust), argv, trust)
    if (plan.folder / "config.yaml").is_file():
        rule, where = "must be the name of a sweep, but is that of a run", plan.sweep.base.layers.blame(("sweep", "id"))
        raise ConfigError([Mistake("sweep.id", f"{rule} in {plan.folder.parent}", plan.id, where)])
    source = source_of(plan)
    if source.known and source.total and source.total > MANY:
        Console(sys.stdout).say(f"{source.total:,} points: each is checked before the first job starts")
    asked, checks = known_points(plan, source)
    if any(check.at_once for check in checks):
        return wrong(examine_jobs(checks, plan.settings.processes, reporter()))
    with ExitStack() as stack:
        ledger, rows = opened(plan, stack)
        # Those that were left out before are asked for again.
        wanted = [replace(rows[one.id], active=True) for one in asked if one.id in rows]
        todo = decide(wanted, ledger, plan).run if ledger else {}
        new = checks
        if source.known:
            new = [check for one, check in zip(asked, checks, strict=True) if one.id not in rows or one.id in todo]
        executor: Executor = Nowhere()
        if new or not source.known:
            executor = executor_of(plan)  # it gets ready while the jobs are examined
            stack.callback(executor.close)
            if mistakes := examine_jobs(new, plan.settings.processes, reporter()):
                return wrong(mistakes)
            executor.prepare()
        for note in request.notes(check.composed for check in new):
            Console(sys.stdout).say(f"note: {note}")
        try:
            if ledger is None:  # nothing is made before all is known to be right
                plan.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(plan.folder.parent)
                ledger, _ = opened(plan, stack, create=True)
            assert ledger is not None
            return run(plan, ledger, source, asked, executor, stop)
        except (OSError, sqlite3.Error) as error:
            rule = f"the sweep in {plan.folder} cannot write down what happens ({error}), and has stopped its jobs"
            raise RunError(f"{rule}; the same line goes on") from error


def asks_for_hydras_own(overrides: Sequence[str]) -> bool:
    """Whether the command line names a launcher or sweeper of Hydra's, or of another plugin."""
    named = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    return "hydra/sweeper" in named or named.get(GROUP, "ray") not in OURS


def known_points(plan: Plan, source: Source) -> tuple[list[Asked], list[Check]]:
    """All points of a source that knows them; else none, and the checks of the corners of its space."""
    if not source.known:
        return [], [Check(job.composed, plan.trust) for job in plan.sweep.to_be_checked()]
    pairs = []
    while (point := source.next()) is not None:
        pairs.append(plan.ask(point))
    return [one for one, _ in pairs], [check for _, check in pairs]


def wrong(mistakes: list[Mistake]) -> int:
    """The last line of a report that was said; the exit status."""
    print(count_line(len(mistakes)), file=sys.stderr)
    return EXIT_WRONG


def opened(plan: Plan, stack: ExitStack, *, create: bool = False) -> tuple[Ledger | None, dict[str, Row]]:
    """The sweep's ledger, for us alone, and its rows as its directories have them; None where there is none yet.

    Raises:
        ConfigError: another process is at work on it.
        RunError: it cannot be read, or nothing can be written there.
    """
    if not create and not (plan.folder / FILE).is_file():
        return None, {}
    try:
        stack.enter_context(Lock(plan.folder))
        try:
            ledger = stack.enter_context(sound(Ledger(plan.folder)))
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            said = f"{plan.folder / FILE} is damaged ({error}) and now called {put_aside(plan.folder)}"
            print(f"{said}: what the directories of its jobs say is in a new one", file=sys.stderr)
            ledger = stack.enter_context(Ledger(plan.folder))
        return ledger, {row.id: row for row in reconcile(ledger, plan.folder)}
    except (OSError, sqlite3.Error) as error:
        raise RunError(f"the sweep in {plan.folder} cannot be taken up: {error}") from error


def sound(ledger: Ledger) -> Ledger:
    """A ledger whose tables can be read.

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


def run(plan: Plan, ledger: Ledger, source: Source, asked: list[Asked], executor: Executor, stop: Stop) -> int:
    """Bring the ledger up to what is asked for, run what is left, and say how it ended; the exit status."""
    objective, mode = objective_of(asked[0].config if asked else plan.base)
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
    tally = Tally(rows, len(ids) if source.known else source.total, objective, mode)
    console = Console(sys.stdout)
    board = board_for(tally, console)
    controller = Controller(plan, ledger, source, executor, board, stop)
    stop.noted = True
    try:
        for line in before(plan, rows, asked, decided, source):
            board.say(line)
        for one in asked:
            controller.add(one, decided.run.pop(one.id, None))
        controller.run()
    finally:
        board.close()
        source.close()
    final = [row for row in ledger.jobs() if row.active]
    if len(stop.signals) < 2:  # "at once" leaves no time for pictures
        report(plan.folder, console.say)
    for line in after(plan, final):
        console.say(line)
    return status_of(final, stop)


def status_of(rows: Sequence[Row], stop: Stop) -> int:
    """The exit status of a sweep that ended with these rows."""
    if stop.signals:
        return stop.status
    if any(row.status == "failed" or (row.status == "interrupted" and row.error) for row in rows):
        return EXIT_FAILED
    return EXIT_STOPPED if any(row.status == "interrupted" for row in rows) else EXIT_DONE
