"""What a sweep says at its beginning and at its end, in lines."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from runner.sweep.board import name_of
from runner.sweep.frozen import MOST_ENTRIES
from runner.sweep.job import LOG
from runner.sweep.ledger import Row, Status
from runner.sweep.plan import Asked, Decided, Plan
from runner.sweep.protocols import OUTPUT, Source

MOST_LISTED = 10  # rows of a kind on the console: the ledger has all of them


def before(plan: Plan, rows: Sequence[Row], asked: Sequence[Asked], decided: Decided, source: Source) -> Iterator[str]:
    """What to say at the start: what there is to do, and what of earlier lines there is."""
    by_id = {row.id: row for row in rows}
    if source.known:
        again = Counter(by_id[job].status for job in decided.run if by_id[job].status != "waiting")
        done = sum(row.active and row.status in ("completed", "pruned") and row.id not in decided.run for row in rows)
        words = [f"{len({one.id for one in asked}):,} jobs, {len(decided.run):,} to run"]
        words += [f"{count:,} of them {status} before" for status, count in again.items()]
        words += [f"{done:,} done before"] if done else []
        yield ", ".join(words)
    first: dict[str, Asked] = {}
    for one in asked:
        if one.id in first:
            twice = f"{shlex.join(one.point.overrides)} is the same job as {shlex.join(first[one.id].point.overrides)}"
            yield f"{twice}: it runs once"
        first.setdefault(one.id, one)
    yield from listed("no longer asked for", [row for row in rows if not row.active])
    yield from listed(
        "finished by other code (sweep.rerun=changed runs it again)", [by_id[i] for i in decided.other_code]
    )
    if not plan.frozen.complete:
        yield f"note: there are more than {MOST_ENTRIES:,} files here: modules in deep folders are not held as they are"


def listed(what: str, rows: Sequence[Row]) -> Iterator[str]:
    """Some rows, on a line each."""
    for row in rows[:MOST_LISTED]:
        yield f"{what}: {name_of(row)}"
    if len(rows) > MOST_LISTED:
        yield f"{what}: and {len(rows) - MOST_LISTED:,} more"


def after(plan: Plan, rows: Sequence[Row], objective: str, mode: str) -> Iterator[str]:
    """How it ended: the best jobs, and each that failed with its cause, its log and the line that runs it alone."""
    sign = 1 if mode == "min" else -1
    done = sorted((r for r in rows if r.objective is not None), key=lambda r: (sign * (r.objective or 0.0), r.number))
    counts = Counter(row.status for row in rows)
    yield ", ".join(f"{counts[status]:,} {status}" for status in get_args(Status) if counts[status])
    for row in done[:MOST_LISTED]:
        yield f"  {objective} {row.objective:<10.6g} {name_of(row)}"
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        job = plan.folder / row.path
        said_where = OUTPUT if row.cause in ("exit", "crash") else LOG
        log = next((job / name for name in (said_where, OUTPUT) if (job / name).is_file()), job)
        yield f"failed ({row.cause}): {name_of(row)}\n  {row.error}\n  {log}\n  {plan.alone(row)}"
    if failed:
        yield f"again, with these: {shlex.join(['python', '-m', 'runner', *plan.argv, 'sweep.retry=all'])}"
    for row in rows:
        if row.status == "interrupted" and row.error:
            yield f"not continued: {name_of(row)}\n  {row.error}\n  sweep.rerun=changed starts it anew"
    if counts["interrupted"] or counts["waiting"]:
        yield f"to go on: {shlex.join(['python', '-m', 'runner', *plan.argv])}"
