"""What a sweep says at its beginning and at its end, in lines."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from runner.sweep.code_snapshot import MOST_ENTRIES
from runner.sweep.console import name_of
from runner.sweep.interfaces import Source
from runner.sweep.jobs import Asked, Plan
from runner.sweep.ledger import Row
from runner.sweep.reconcile import Decided

MOST_LISTED = 10  # rows of a kind on the console: the ledger has all of them


def before(plan: Plan, rows: Sequence[Row], asked: Sequence[Asked], decided: Decided, source: Source) -> Iterator[str]:
    """What to say at the start: what there is to do, and what of earlier lines there is."""
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
    first: dict[str, Asked] = {}
    twice = [(one, first[one.id]) for one in asked if first.setdefault(one.id, one) is not one]
    for one, other in twice[:MOST_LISTED]:
        same = f"{shlex.join(one.point.overrides)} is the same job as {shlex.join(other.point.overrides)}"
        yield f"{same}: it runs once"
    if len(twice) > MOST_LISTED:
        yield f"and {len(twice) - MOST_LISTED:,} more points are jobs that are listed already"
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


def after(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """What is left to be done, and how."""
    for row in rows:
        if row.status == "interrupted" and row.error:
            yield f"not continued: {name_of(row)}\n  {row.error}\n  sweep.rerun=changed starts it anew"
    if any(row.status in ("interrupted", "waiting") for row in rows):
        yield f"to go on: {shlex.join(['python', '-m', 'runner', *plan.argv])}"
