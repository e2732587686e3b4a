"""Reconciliation of the planned jobs with the ledger and the job directories."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.config.check.imports import list_user_directories
from runner.sweep import code_snapshot
from runner.sweep.jobs import Anew, PlannedJob, SweepPlan
from runner.sweep.ledger import OF_THE_MACHINE, JobRecord, Ledger
from runner.sweep.outcome import read_json, read_outcome

# ---- what becomes of a job that has been there before


@dataclass
class Decisions:
    """Jobs to run, and finished jobs whose code has changed since."""

    run: dict[str, Anew] = field(default_factory=dict)  # by id, in order
    other_code: dict[str, list[str]] = field(default_factory=dict)  # finished by other code: the modules that differ


def decide(rows: Iterable[JobRecord], ledger: Ledger, plan: SweepPlan) -> Decisions:
    """Decide which active jobs run, by `sweep.retry` and `sweep.rerun`."""
    decided = Decisions()
    settings = plan.settings
    known: dict[str, list[str]] = {}
    folders = list_user_directories(plan.trust)
    for row in rows:
        if not row.active:
            continue
        if row.code not in known:
            known[row.code] = (
                code_snapshot.find_changed_modules(ledger.modules(row.code), plan.frozen, folders) if row.code else []
            )
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


def reconcile(ledger: Ledger, folder: Path) -> list[JobRecord]:
    """Update all rows from the job directories, in case a controller died early; return the rows."""
    rows = ledger.jobs()
    with ledger.transaction():
        return [reconcile_row(row, ledger, folder) for row in rows]


def reconcile_row(row: JobRecord, ledger: Ledger, folder: Path) -> JobRecord:
    """Update one row from its job directory; return the row."""
    job = folder / row.path
    columns: dict[str, Any] = {}
    if row.status in ("running", "waiting"):
        if (job / "config.yaml").is_file():
            columns = read_outcome(job, None)
        elif row.status == "running":
            columns = {"status": "waiting"}
    elif row.status == "completed" and not (job / "result.json").is_file():
        columns = {"status": "waiting", "objective": None, "metrics": {}}  # somebody deleted it
    elif row.status in ("failed", "interrupted", "pruned"):  # or continued it by hand
        result = read_json(job / "result.json") or {}
        if result.get("status") == "completed":
            columns = read_outcome(job, 0)
            seconds = result.get("seconds", 0.0)
            known = seconds if isinstance(seconds, int | float) else 0.0
            columns["start"] = (job / "result.json").stat().st_mtime - known
    if not columns:
        return row
    if columns["status"] == "completed":
        columns["end"] = (job / "result.json").stat().st_mtime
    remember_code(ledger, job, columns.get("code", ""))
    ledger.update(row.id, **columns)
    return dataclasses.replace(row, **columns)


def read_job_numbers(folder: Path) -> dict[str, int]:
    """Map id prefix to job number for every job directory. Used to rebuild a lost ledger."""
    names = [path.name.split("_", 1) for path in folder.iterdir() if re.fullmatch(r"\d+_[0-9a-f]{8}", path.name)]
    return {short: int(number) for number, short in names}


def adopt(ledger: Ledger, folder: Path, asked: Sequence[PlannedJob], plan: SweepPlan) -> None:
    """Add rows for new jobs; a job whose directory exists keeps that number after a lost ledger."""
    rows = ledger.jobs()
    known = {row.id for row in rows}
    there = read_job_numbers(folder)
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


def mark(ledger: Ledger, rows: Iterable[JobRecord], asked: Iterable[PlannedJob]) -> None:
    """Mark the rows that are asked for, and store the overrides that now ask for them.

    A job's own line is what all jobs share now and its arguments, which would lack what was shared before.
    """
    points: dict[str, PlannedJob] = {}
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
    """Store the module hashes that a job ran, once per code hash."""
    if code and not ledger.modules(code):
        record = read_json(job / "provenance.json") or {}
        files = record["modules"].get("files")
        if isinstance(files, dict):  # else the record is damaged
            ledger.remember_modules(code, {str(name): str(digest) for name, digest in files.items()})
