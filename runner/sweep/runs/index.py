"""Index of runs in SQLite: brought up to date from the directories at each use, deletable any time.

It holds what each run directory says, with the stamp of its files. The directories are the truth: what the index lacks,
or has with another stamp, is read again; an index that is damaged, or is none of ours, is deleted and made anew.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.core.file_lock import lock_file
from runner.core.files import to_json
from runner.core.lock import DEAD_SECONDS, NO_LOCKS
from runner.sweep.ledger import Ledger
from runner.sweep.runs.discovery import Discovery, FoundRun, find_runs
from runner.sweep.runs.reading import COLUMNS, ENDS, RunRow, make_row, read_run

FILE = ".index.sqlite"


VERSION = 2  # of what `read_run` tells: another one is read again


BUSY_SECONDS = 5.0  # that another process may write before the table is made without writing


_TABLE = "CREATE TABLE runs (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, said TEXT NOT NULL, columns TEXT NOT NULL)"


_NO_TEXT = " OR ".join(f"typeof({column}) <> 'text'" for column in ("path", "stamp", "said", "columns"))


UNREADABLE_LEDGER = (sqlite3.Error, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError)


@dataclass(frozen=True)
class RunTable:
    """Table of all runs below a folder.

    Attributes:
        root: the folder.
        rows: a row for each run, sorted by path.
        found: the directories as they were found.
        index: file of the index; None where none could be written.
    """

    root: Path
    rows: list[RunRow]
    found: Discovery
    index: Path | None

    def list_names(self) -> set[str]:
        """List every column, metric and key that some run has."""
        names: set[str] = {*COLUMNS, "size"}
        for row in self.rows:
            names |= row.metrics.keys() | row.config.keys()
        return names


def find_root(folder: Path) -> Path:
    """Return the folder whose index knows the runs below `folder`: `outputs` where it lies in that."""
    outputs = Path("outputs")
    try:
        below = folder.resolve().is_relative_to(outputs.resolve())
    except (OSError, RuntimeError):  # links that lead to each other
        below = False
    return outputs if below and outputs.is_dir() else folder


def read_table(root: Path) -> RunTable:
    """Find the runs below a folder, bring its index up to date and return the table.

    Nothing but the index is written, and where that cannot be, nothing at all. Several processes may do it at once.
    """
    now = time.time()
    found = find_runs(root)
    has_place = bool(found.runs) and found.runs[0].path != "." and root.is_dir()
    database = _open_or_note(root / FILE, found) if has_place or (root / FILE).is_file() else None
    known = {} if database is None else _load(database)
    said: list[dict[str, Any]] = []
    fresh: dict[str, int] = {}
    for number, run in enumerate(found.runs):
        cached = known.get(_make_key(run))
        one = _parse(cached[1]) if cached is not None and cached[0] == _make_stamp(run) else None
        if one is None:
            fresh[_make_key(run)] = number
        said.append(read_run(root / run.path, run) if one is None else one)
    rows = [make_row(root, run, one, now) for run, one in zip(found.runs, said, strict=True)]
    _settle(rows, found)
    if database is not None:
        keys = [_make_key(run) for run in found.runs]
        columns = {key: to_json(row.columns) for key, row in zip(keys, rows, strict=True)}
        changes = {key: text for key, text in columns.items() if key not in known or known[key][2] != text}
        written = [(key, _make_stamp(found.runs[n]), to_json(said[n]), columns[key]) for key, n in fresh.items()]
        try:
            _store(database, written, changes, known.keys() - set(keys))
        except (sqlite3.Error, UnicodeEncodeError) as error:  # another process writes for long, or the disk is full
            found.notes.append(f"the index {root / FILE} is as it was ({error})")
        finally:
            database.close()
    return RunTable(root, rows, found, None if database is None else root / FILE)


def _open_or_note(file: Path, found: Discovery) -> sqlite3.Connection | None:
    try:
        return _open(file)
    except (sqlite3.Error, OSError) as error:
        found.notes.append(f"every run is read, for there is no index: {file} cannot be used ({error})")
        return None


def _make_stamp(run: FoundRun) -> str:
    return f"{VERSION}\n{run.stamp}"


def _make_key(run: FoundRun) -> str:
    """Make the key of a run; a name that is no UTF-8 is spelled out."""
    return run.path.encode("utf-8", "backslashreplace").decode()


def _parse(text: str) -> dict[str, Any] | None:
    """Parse what the index has of a run; None where that lacks a part of what `read_run` tells."""
    try:
        said = json.loads(text)
        is_whole = all(isinstance(said[part], dict) for part in ("columns", "config", "metrics"))
        return said if is_whole and isinstance(said["ended"], int | float | None) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _open(file: Path) -> sqlite3.Connection:
    """Open the index, made anew where it is damaged or none of ours. Raises OSError, sqlite3.Error."""
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            os.close(safe_io.open_regular(file))  # no link, no pipe
        database = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, safe_io.MAX_BYTES)
            database.execute("PRAGMA trusted_schema=OFF")
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("PRAGMA synchronous=OFF")  # a torn index is made anew
            tables = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            if not tables:
                database.execute(_TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
                return database
            is_ours = [tuple(table) for table in tables] == [("table", "runs", _TABLE)]
            if is_ours and not database.execute(f"SELECT 1 FROM runs WHERE {_NO_TEXT} LIMIT 1").fetchall():  # noqa: S608
                return database
        except sqlite3.OperationalError:
            database.close()
            raise
        except sqlite3.DatabaseError:
            pass
        database.close()
        _delete(file)
    message = "the index cannot be made"
    raise sqlite3.DatabaseError(message)


def _delete(file: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{file}{end}").unlink()


def _load(database: sqlite3.Connection) -> dict[str, tuple[str, str, str]]:
    try:
        rows = database.execute("SELECT path, stamp, said, columns FROM runs").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return {}
    return {str(path): (str(stamp), str(said), str(columns)) for path, stamp, said, columns in rows}


def _store(
    database: sqlite3.Connection, fresh: list[tuple[str, str, str, str]], columns: Mapping[str, str], gone: set[str]
) -> None:
    """Write the rows that are new or have changed, in one transaction."""
    if not fresh and not columns and not gone:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", fresh)
        database.executemany("UPDATE runs SET columns = ? WHERE path = ?", [(v, key) for key, v in columns.items()])
        database.executemany("DELETE FROM runs WHERE path = ?", [(key,) for key in gone])
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


# ---- what is not in a run's own files: whether it is running, and what its sweep knows of it


def _settle(rows: list[RunRow], found: Discovery) -> None:
    """Give each run its status: running where its lock is held, else by its result, sweep or files."""
    ledgers: dict[str, dict[str, Any]] = {}
    for row, run in zip(rows, found.runs, strict=True):
        said = row.status
        has_ended = said in ENDS and run.lock < run.result
        if not has_ended and is_in_progress(row.folder):
            _mark_running(row, run)
        elif said in ENDS:
            row.columns["status"] = "damaged" if row.columns["problem"] else said
        elif run.sweep:
            if run.sweep not in ledgers:
                ledgers[run.sweep] = _read_ledger(found.root / run.sweep)
            _settle_job(row, run, ledgers[run.sweep])
        else:
            row.columns["status"] = "damaged" if row.columns["problem"] else "interrupted"


def _mark_running(row: RunRow, run: FoundRun) -> None:
    """Mark a run whose lock is held: what its result says is of an earlier process."""
    row.columns |= {"status": "running", "cause": None, "error": None, "ended": None}
    if "config.yaml is missing" in str(row.columns["problem"]):  # it starts
        row.columns["problem"] = None
    row.ended = run.changed or None


def _settle_job(row: RunRow, run: FoundRun, ledger: Mapping[str, Any]) -> None:
    """Give a job without a result of its own the status that the ledger of its sweep has."""
    job = ledger.get(run.path.rpartition("/")[2])
    status = "interrupted" if job is None or job.status in ("running", "completed", "pruned") else job.status
    row.columns["status"] = "damaged" if row.columns["problem"] and status == "interrupted" else status
    if job is not None and job.status == "failed":
        row.columns |= {"cause": job.cause or None, "error": job.error or None}
        row.columns["objective"] = None
        if row.columns["problem"] == "config.yaml is missing":  # it failed before it had one
            row.columns["problem"] = None


def _read_ledger(sweep: Path) -> dict[str, Any]:
    """Map directory name to record for every job of a ledger; empty where it cannot be read."""
    try:
        with Ledger(sweep, read_only=True) as ledger:
            return {job.path: job for job in ledger.jobs()}
    except UNREADABLE_LEDGER:
        return {}


def is_in_progress(folder: Path) -> bool:
    """Return whether a process holds the lock of a run or a sweep; takes it for an instant at most."""
    with contextlib.suppress(OSError), _open_lock(folder / ".lock") as handle:
        try:
            lock_file(handle, folder / ".lock", shared=True)()
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                with contextlib.suppress(OSError):
                    return time.time() - (folder / ".heartbeat").stat().st_mtime < DEAD_SECONDS
    return False


@contextlib.contextmanager
def _open_lock(file: Path) -> Iterator[int]:
    handle = safe_io.open_regular(file)
    try:
        yield handle
    finally:
        os.close(handle)
