"""Summary lines of a sweep at its start and at its end."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.sweep.code_snapshot import MOST_ENTRIES
from runner.sweep.console import describe_job, find_best
from runner.sweep.interfaces import Source
from runner.sweep.jobs import PlannedJob, SweepPlan
from runner.sweep.ledger import JobRecord
from runner.sweep.reconcile import Decisions

MOST_LISTED = 10  # rows of a kind on the console: the ledger has all of them


def describe_start(
    plan: SweepPlan, rows: Sequence[JobRecord], asked: Sequence[PlannedJob], decided: Decisions, source: Source
) -> Iterator[str]:
    """Yield the lines at the start: jobs to run, duplicates, removed jobs and outdated results."""
    by_id = {row.id: row for row in rows}
    if source.known:
        again = Counter(by_id[job].status for job in decided.run if by_id[job].status != "waiting")
        done = sum(row.active and row.status in ("completed", "pruned") and row.id not in decided.run for row in rows)
        number = len({one.id for one in asked})
        words = [f"{number:,} job{'s' * (number != 1)}, {len(decided.run):,} to run"]
        words += [f"{count:,} of them {status} before" for status, count in again.items()]
        words += [f"{done:,} done before"] if done else []
        yield ", ".join(words)
    elif source.total is not None and rows:
        yield f"a search of {source.total:,} trials, with {len(rows):,} job{'s' * (len(rows) != 1)} from before"
    first: dict[str, PlannedJob] = {}
    twice = [(one, first[one.id]) for one in asked if first.setdefault(one.id, one) is not one]
    for one, other in twice[:MOST_LISTED]:
        same = f"{shlex.join(one.point.overrides)} is the same job as {shlex.join(other.point.overrides)}"
        yield f"{same}: it runs once"
    if len(twice) > MOST_LISTED:
        yield f"and {len(twice) - MOST_LISTED:,} more points are jobs that are listed already"
    yield from list_rows("no longer asked for", [row for row in rows if not row.active])
    yield from list_rows(
        "finished by other code (sweep.rerun=changed runs it again)", [by_id[i] for i in decided.other_code]
    )
    if not plan.frozen.complete:
        yield f"note: there are more than {MOST_ENTRIES:,} files here: modules in deep folders are not held as they are"


def list_rows(what: str, rows: Sequence[JobRecord]) -> Iterator[str]:
    """Yield a line per row, at most MOST_LISTED of them."""
    for row in rows[:MOST_LISTED]:
        yield f"{what}: {describe_job(row)}"
    if len(rows) > MOST_LISTED:
        yield f"{what}: and {len(rows) - MOST_LISTED:,} more"


def describe_remaining(plan: SweepPlan, rows: Sequence[JobRecord]) -> Iterator[str]:
    """Yield the lines at the end: jobs that are not continued, and the command to go on."""
    for row in rows:
        if row.status == "interrupted" and row.error:
            yield f"not continued: {describe_job(row)}\n  {row.error}\n  sweep.rerun=changed starts it anew"
    if any(row.status in ("interrupted", "waiting") for row in rows):
        yield f"to go on: {shlex.join(['python', '-m', 'runner', *plan.argv])}"


def summarize(folder: Path, rows: Sequence[JobRecord], mode: str, exit_status: int) -> dict[str, Any]:
    """Summarize a sweep that ended for programs: status, jobs by status, the best job and its objective."""
    best = find_best([row for row in rows if row.status == "completed"], mode)
    words = {EXIT_DONE: "completed", EXIT_FAILED: "failed"}
    failed = [row.number for row in rows if row.status == "failed"]
    told = best and {
        "number": best.number,
        "overrides": best.overrides,
        "run": str(folder / best.path),
        "objective": best.objective,
    }
    return {
        "sweep": str(folder),
        "run": told and told["run"],
        "status": words.get(exit_status, "interrupted"),
        "objective": told and told["objective"],
        "best": told,
        "jobs": dict(Counter(row.status for row in rows)),
        "failed": failed,
    }
