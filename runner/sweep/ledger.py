"""Ledger of a sweep: one SQLite file, a row per job, one writer (the controller), many readers.

The truth of a job is its directory. The ledger says what was asked for, and how each job ended that left no result.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from runner.core import safe_io

FILE = "ledger.sqlite"


Status = Literal["waiting", "running", "completed", "failed", "interrupted", "pruned"]


# Why a job failed. What the machine did is tried again by the next invocation, what the job did is listed.
Cause = Literal["exception", "non-finite", "exit", "crash", "killed", "memory", "timeout", "lost", "disk"]


OF_THE_MACHINE: tuple[Cause, ...] = ("killed", "memory", "timeout", "lost", "disk")


@dataclass
class JobRecord:
    """Record of one job.

    Attributes:
        id: hash of the resolved config without the keys that cannot change its result.
        number: from 0, in the order in which jobs were first asked for; never given twice.
        overrides: the point, as arguments of the command line.
        values: the swept keys and their values, as written.
        replicate_of: the id without the seed, which replicates share.
        code: hash of the imported project modules (`Ledger.modules` has them one by one); empty before the job has run.
        data: hash of the fingerprints of the data; empty before the job has run.
        status: see `Status`; `interrupted` was stopped or cut off, and is continued by the next invocation.
        cause: of a failed job, see `Cause`; else empty.
        host: the machine of the last attempt; `slot` its slot there, `pid` its process.
        start: of the last attempt, seconds since 1970; `end` likewise.
        objective: the objective of the last weights, of a completed or pruned job.
        metrics: the final metrics of a completed job, the last ones known of a pruned one.
        path: the job's directory, relative to the sweep's.
        error: one paragraph; for an interrupted job why it is not continued, where it is not.
        exit: the exit status of the last attempt, minus the signal's number where a signal ended it.
        attempt: how often it was started, 0 before the first time.
        active: whether the last invocation asked for this point ("removed" otherwise).
    """

    id: str
    number: int
    overrides: list[str]
    path: str
    values: dict[str, Any] = field(default_factory=dict)
    replicate_of: str = ""
    code: str = ""
    data: str = ""
    status: Status = "waiting"
    cause: Cause | Literal[""] = ""
    host: str = ""
    slot: int | None = None
    pid: int | None = None
    start: float | None = None
    end: float | None = None
    objective: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    exit: int | None = None
    attempt: int = 0
    active: bool = True


_JSON = {"overrides", "values", "metrics"}


_TYPES = {"number": "INTEGER", "slot": "INTEGER", "pid": "INTEGER", "exit": "INTEGER", "attempt": "INTEGER"} | {
    "active": "INTEGER",
    "start": "REAL",
    "end": "REAL",
    "objective": "REAL",
}


_COLUMNS = {f.name: {"values": "values_"}.get(f.name, f.name) for f in fields(JobRecord)}  # `values` is a word of SQL


_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS sweep (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS code (hash TEXT PRIMARY KEY, modules TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
  {", ".join(f"{column} {_TYPES.get(name, 'TEXT')}" for name, column in _COLUMNS.items())}, PRIMARY KEY (id)
);
"""


def put_aside(folder: Path) -> str:
    """Rename a damaged ledger and its rollback journal to the first free `ledger.N.sqlite`."""
    number = 1
    while (aside := folder / f"ledger.{number}.sqlite").exists():
        number += 1
    for end in ("", "-journal"):
        if (file := folder / f"{FILE}{end}").exists():
            file.rename(f"{aside}{end}")
    return aside.name


# As SQLite keeps the statements above: columns with types, and no expression.
_PLAIN_TABLE = r"CREATE TABLE \w+ \([\w\s,]*(PRIMARY KEY \(\w+\))?\s*\)"


_COMPUTED = {"AS", "GENERATED", "CHECK", "DEFAULT", "COLLATE", "REFERENCES"}


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# What a sweep has decided about jobs of one architecture, see `runner.sweep.verdicts`.
_VERDICT: dict[str, type] = {"as_one": bool, "why": str, "by": str, "fits": int, "jobs": list}


def _is_verdict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _VERDICT.keys()
        and all(isinstance(value[name], kind) for name, kind in _VERDICT.items())
        and all(isinstance(number, int) for number in value["jobs"])
    )


# The settings that are read again, and whether a value of one is of its kind: a ledger may come from a stranger.
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("id", "name", "created"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("command", "base", "swept"), _is_list_of_texts),
    "objective": lambda value: value is None or isinstance(value, str),
    "mode": lambda value: value in (None, "min", "max"),
    "objectives": lambda value: isinstance(value, dict) and all(mode in ("min", "max") for mode in value.values()),
    "stacks": lambda value: isinstance(value, dict) and all(map(_is_verdict, value.values())),
}


class Ledger:
    """Ledger in the folder of a sweep.

    A change is on the disk when the call returns: about 1 ms each. `read_only` opens one that exists, also while a
    sweep runs or after its controller was killed.

    Raises:
        FileNotFoundError: `read_only`, and there is none.
        sqlite3.DatabaseError: it is damaged; an `OperationalError`: it cannot be opened, or written.
        ConfigError: something in the folder leads elsewhere.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        safe_io.refuse_foreign(folder)
        file = folder / FILE
        if read_only and not file.is_file():
            raise FileNotFoundError(str(file))
        # A reader may have to roll back what a killed writer began, so that it opens the file for writing where it can.
        self._db = sqlite3.connect(file, timeout=60, isolation_level=None)
        try:
            self._refuse_programs()
            self._prepare(read_only)
        except sqlite3.DatabaseError as error:
            self._db.close()
            if not read_only or not isinstance(error, sqlite3.OperationalError):
                raise
            self._db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
            self._refuse_programs()

    def _refuse_programs(self) -> None:
        """Refuse a database with views, triggers or computed columns, which run when it is read."""
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, safe_io.MAX_BYTES)
        self._db.execute("PRAGMA trusted_schema=OFF")
        for kind, name, sql in self._db.execute("SELECT type, name, sql FROM sqlite_master"):
            words = set(re.findall(r"\w+", str(sql).upper()))
            plain = sql is None or (re.fullmatch(_PLAIN_TABLE, str(sql)) and words.isdisjoint(_COMPUTED))
            if kind not in ("table", "index") or not plain:
                raise sqlite3.DatabaseError(f"it has a {kind} {str(name)!r} that is none of a ledger")

    def _prepare(self, read_only: bool) -> None:
        if read_only:
            self._db.execute("PRAGMA query_only=ON")
            self._db.execute("SELECT count(*) FROM sweep")
            return
        (said,) = self._db.execute("PRAGMA quick_check(1)").fetchone()  # 4 ms for 3,000 jobs
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        # Not WAL, which needs shared memory that a network's file system does not have.
        self._db.execute("PRAGMA journal_mode=TRUNCATE")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes made inside at once, or none of them after an exception."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # where the disk is full SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ---- the sweep

    def settings(self) -> dict[str, Any]:
        """Return the settings of the sweep by name: id, name, command, objective, mode and others."""
        found = {key: safe_io.parse_json(value) for key, value in self._db.execute("SELECT key, value FROM sweep")}
        for key, value in found.items():
            if key in _SETTINGS and value is not None and not _SETTINGS[key](value):
                raise ValueError(f"`{key}` of the sweep has a value that it cannot have")
        return found

    def set(self, **settings: Any) -> None:
        """Write settings of the sweep; the values are plain data."""
        pairs = [(key, json.dumps(value)) for key, value in settings.items()]
        self._all("INSERT OR REPLACE INTO sweep VALUES (?, ?)", pairs)

    def modules(self, code: str) -> dict[str, str]:
        """Return the SHA-256 of each module's source behind the hash `code`; empty if unknown."""
        row = self._db.execute("SELECT modules FROM code WHERE hash = ?", (code,)).fetchone()
        known = safe_io.parse_json(row[0]) if row else {}
        if not isinstance(known, dict) or not all(isinstance(digest, str) for digest in known.values()):
            raise ValueError("the modules of a job must be names and hashes")
        return known

    def remember_modules(self, code: str, modules: dict[str, str]) -> None:
        """Store the modules behind a hash; a stored hash stays unchanged."""
        self._db.execute("INSERT OR IGNORE INTO code VALUES (?, ?)", (code, json.dumps(modules)))

    # ---- its jobs

    def jobs(self) -> list[JobRecord]:
        """Return every job, ordered by number."""
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS.values())} FROM jobs ORDER BY number")  # noqa: S608  ours
        return [_decode_row(row) for row in rows]

    def add(self, rows: Iterable[JobRecord]) -> None:
        """Insert new jobs in one transaction.

        Raises:
            sqlite3.IntegrityError: one is there already.
        """
        marks = ", ".join("?" * len(_COLUMNS))
        values = [[_encode_value(name, value) for name, value in asdict(row).items()] for row in rows]
        self._all(f"INSERT INTO jobs ({', '.join(_COLUMNS.values())}) VALUES ({marks})", values)  # noqa: S608  ours

    def update(self, id: str, **columns: Any) -> None:  # noqa: A002  the column's name
        """Update columns of one job; use `transaction()` for several jobs at once."""
        assert columns.keys() <= _COLUMNS.keys()
        assert "status" not in columns or columns["status"] in get_args(Status)
        changes = ", ".join(f"{_COLUMNS[name]} = ?" for name in columns)
        values = [_encode_value(name, value) for name, value in columns.items()]
        self._db.execute(f"UPDATE jobs SET {changes} WHERE id = ?", [*values, id])  # noqa: S608  names are ours

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, statement: str, rows: list[Any]) -> None:
        if self._db.in_transaction:
            self._db.executemany(statement, rows)
        else:
            with self.transaction():
                self._db.executemany(statement, rows)


def _encode_value(name: str, value: Any) -> Any:
    return json.dumps(value) if name in _JSON else int(value) if name == "active" else value


def _decode_row(values: tuple[Any, ...]) -> JobRecord:
    named = dict(zip(_COLUMNS, values, strict=True))
    for name in _JSON:
        named[name] = safe_io.parse_json(named[name])
    if not re.fullmatch(r"\w[\w.-]*", str(named["path"]), re.ASCII):
        raise ValueError(f"the path of a job must be the name of a folder in it, but is {named['path']!r}")
    named["active"] = bool(named["active"])
    record = JobRecord(**named)
    for name, fits in _KINDS.items():
        if not fits(getattr(record, name)):
            raise ValueError(f"`{name}` of a job has a value that it cannot have: {repr(getattr(record, name))[:100]}")
    return record


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return value is None or isinstance(value, int)


def _is_real(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def is_metrics(value: Any) -> bool:
    """Return whether a value maps names to numbers, or to the texts that stand for NaN and infinity."""
    return isinstance(value, dict) and all(isinstance(number, int | float | str | None) for number in value.values())


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("id", "path", "replicate_of", "code", "data", "host", "error"), _is_text),
    **dict.fromkeys(("slot", "pid", "exit"), _is_count),
    **dict.fromkeys(("start", "end", "objective"), _is_real),
    "number": lambda value: isinstance(value, int) and value >= 0,
    "attempt": lambda value: isinstance(value, int),
    "overrides": _is_list_of_texts,
    "values": lambda value: isinstance(value, dict),
    "metrics": is_metrics,
    "status": lambda value: value in get_args(Status),
    "cause": lambda value: value == "" or value in get_args(Cause),
}
