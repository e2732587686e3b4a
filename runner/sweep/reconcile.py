"""Reconcile the jobs that are asked for with the ledger and the job directories."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.config.check.imports import user_directories
from runner.sweep import code_snapshot
from runner.sweep.jobs import Anew, Asked, Plan
from runner.sweep.ledger import OF_THE_MACHINE, Ledger, Row
from runner.sweep.outcome import ending, read_json

# ---- what becomes of a job that has been there before


@dataclass
class Decided:
    """Which jobs run, and what there is to say of the others."""

    run: dict[str, Anew] = field(default_factory=dict)  # by id, in order
    other_code: dict[str, list[str]] = field(default_factory=dict)  # finished by other code: the modules that differ


def decide(rows: Iterable[Row], ledger: Ledger, plan: Plan) -> Decided:
    """What to do with each job that is asked for, after `sweep.retry` and `sweep.rerun`."""
    decided = Decided()
    settings = plan.settings
    known: dict[str, list[str]] = {}
    folders = user_directories(plan.trust)
    for row in rows:
        if not row.active:
            continue
        if row.code not in known:
            known[row.code] = code_snapshot.changed(ledger.modules(row.code), plan.frozen, folders) if row.code else []
        differs = known[row.code]
        if row.status in ("completed", "pruned"):
            if differs and settings.rerun == "changed":
                decided.run[row.id] = "always"
            elif differs:
                decided.other_code[row.id] = differs
            continue
        anew: Anew = "if_changed" if settings.rerun == "changed" else "never"
        if row.status == "failed":
            of_the_machine = row.cause in OF_THE_MACHINE
            if settings.retry == "none" or (settings.retry == "machine" and not of_the_machine):
                continue
            anew = anew if of_the_machine else "if_changed"
        decided.run[row.id] = anew
    return decided


def reconcile(ledger: Ledger, folder: Path) -> list[Row]:
    """The rows, after what the directories say: the controller may have died before it wrote that down."""
    rows = ledger.jobs()
    with ledger.transaction():
        return [reconciled(row, ledger, folder) for row in rows]


def reconciled(row: Row, ledger: Ledger, folder: Path) -> Row:
    """One row, after what its directory says."""
    job = folder / row.path
    columns: dict[str, Any] = {}
    if row.status in ("running", "waiting"):
        if (job / "config.yaml").is_file():
            columns = ending(job, None)
        elif row.status == "running":
            columns = {"status": "waiting"}
    elif row.status == "completed" and not (job / "result.json").is_file():
        columns = {"status": "waiting", "objective": None, "metrics": {}}  # somebody deleted it
    elif row.status in ("failed", "interrupted", "pruned"):  # or continued it by hand
        result = read_json(job / "result.json") or {}
        if result.get("status") == "completed":
            columns = ending(job, 0)
            columns["start"] = (job / "result.json").stat().st_mtime - result.get("seconds", 0.0)
    if not columns:
        return row
    if columns["status"] == "completed":
        columns["end"] = (job / "result.json").stat().st_mtime
    remember_code(ledger, job, columns.get("code", ""))
    ledger.update(row.id, **columns)
    return dataclasses.replace(row, **columns)


def numbers_of(folder: Path) -> dict[str, int]:
    """The number of each job that has a directory, by the beginning of its id: a ledger that was lost knew more."""
    names = [path.name.split("_", 1) for path in folder.iterdir() if re.fullmatch(r"\d+_[0-9a-f]{8}", path.name)]
    return {short: int(number) for number, short in names}


def adopt(ledger: Ledger, folder: Path, asked: Sequence[Asked], plan: Plan) -> None:
    """Rows for jobs that are new to the ledger; a directory of the job's name is the job's (a ledger was lost)."""
    rows = ledger.jobs()
    known = {row.id for row in rows}
    there = numbers_of(folder)
    number = max([*(row.number for row in rows), *there.values(), -1]) + 1
    new = []
    for one in asked:
        if one.id in known:
            continue
        known.add(one.id)
        if one.id[:8] in there:
            new.append(plan.row(one, there[one.id[:8]]))
        else:
            new.append(plan.row(one, number))
            number += 1
    ledger.add(new)


def mark(ledger: Ledger, rows: Iterable[Row], asked: Iterable[Asked]) -> None:
    """Write into the rows which jobs are asked for, and as what: with a `sweep.id` other keys may lead to the same job.

    A job's own line is what all jobs share now and its arguments, which would lack what was shared before.
    """
    points: dict[str, Asked] = {}
    for one in asked:
        points.setdefault(one.id, one)
    with ledger.transaction():
        for row in rows:
            now = points.get(row.id)
            columns: dict[str, Any] = {"active": now is not None} if row.active != (now is not None) else {}
            if now is not None and row.overrides != list(now.point.overrides):
                columns |= {"overrides": list(now.point.overrides), "values": dict(now.job.point.values)}
            if columns:
                ledger.update(row.id, **columns)
                for name, value in columns.items():
                    setattr(row, name, value)


def remember_code(ledger: Ledger, job: Path, code: str) -> None:
    """Keep the hashes of the modules that a job ran, once for all jobs that ran them."""
    if code and not ledger.modules(code):
        record = read_json(job / "provenance.json") or {}
        ledger.remember_modules(code, record["modules"]["files"])
