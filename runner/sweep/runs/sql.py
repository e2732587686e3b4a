"""SQL over the table of runs: one `select`, read-only, within limits."""

import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.core.files import to_json
from runner.sweep.runs.index import RunTable
from runner.sweep.runs.reading import COLUMNS, RunRow

SECONDS = 30.0  # that a query may take


MOST_COLUMNS = 1_900  # of the table: SQLite takes 2,000


MOST_ROWS = 1_000_000  # of an answer


_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


_REFUSED = {"load_extension", "edit", "readfile", "writefile", "fts3_tokenizer"}


@dataclass(frozen=True)
class QueryResult:
    """Answer of a query: the names of its columns, and its rows."""

    names: list[str]
    rows: list[tuple[Any, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"columns": self.names, "rows": [list(row) for row in self.rows]}


def run_query(tables: Sequence[RunTable], text: str) -> QueryResult:
    """Answer a `select` over `runs`, a row a run: its columns, and a column for each metric and each key.

    A name with a dot or a slash stands in double quotes. `config` and `metrics` hold all of them as JSON. The database
    is the index, opened read-only; where there is none, the same table in memory.

    Raises:
        ConfigError: the text is no single `select`, has an unknown name, or takes too long.
    """
    names = {name for table in tables for name in table.list_names()} - {"size"}
    if not re.match(r"\s*(select|with|values)\b", text, re.IGNORECASE):
        remedy = "the table is `runs`, and is read only"
        raise ConfigError([Mistake("--sql", "must be one `select`", text, f"argument `--sql {text}`", remedy)])
    _check_quoted(text, names)
    with closing(_open(tables)) as database:
        columns = _choose_columns(text, names, tables)
        database.text_factory = lambda raw: raw.decode(errors="replace")
        database.execute(_make_view(columns))
        database.execute("PRAGMA query_only=ON")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, safe_io.MAX_BYTES)
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000)
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        database.set_authorizer(_check_action)
        until = time.monotonic() + SECONDS
        database.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        try:
            cursor = database.execute(text)
            rows = cursor.fetchmany(MOST_ROWS)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise ConfigError([_explain(error, text, names)]) from error
        if cursor.description is None:
            raise ConfigError(
                [Mistake("--sql", "must be one `select`", text, f"argument `--sql {text}`", kind="syntax")]
            )
        return QueryResult([str(column[0]) for column in cursor.description], rows)


def _open(tables: Sequence[RunTable]) -> sqlite3.Connection:
    """Open the index read-only, or make the same table in memory where there are several, or no index."""
    if len(tables) == 1 and (index := tables[0].index) is not None and _is_complete(tables[0]):
        return sqlite3.connect(f"{Path(index).resolve().as_uri()}?mode=ro", uri=True, timeout=60, isolation_level=None)
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE runs (path TEXT, said TEXT, columns TEXT)")
    rows = [(row.path, _write_said(row), to_json(row.columns)) for table in tables for row in table.rows]
    database.executemany("INSERT INTO runs VALUES (?, ?, ?)", rows)
    return database


def _write_said(row: RunRow) -> str:
    text = to_json({"config": row.config, "metrics": row.metrics, "ended": row.ended})
    return text.encode("utf-8", "backslashreplace").decode()


def _is_complete(table: RunTable) -> bool:
    """Return whether the index has been brought up to date, and nobody keeps it from being read."""
    return not any("index" in note for note in table.found.notes)


def _check_action(action: int, _first: str | None, second: str | None, *_: object) -> int:
    if action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _REFUSED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _choose_columns(text: str, names: set[str], tables: Sequence[RunTable]) -> dict[str, str]:
    """Choose the columns of the view, each with its part: those that the text mentions; all for `*`."""
    metrics = {name for table in tables for row in table.rows for name in row.metrics}
    places = {name: "metrics" if name in metrics else "config" for name in sorted(names - {*COLUMNS})}
    lowered = text.lower()
    mentioned = {name: part for name, part in places.items() if name.lower() in lowered}
    if "*" not in text:
        return mentioned
    rest = dict(sorted(places.items(), key=lambda pair: pair[1] != "metrics"))
    return dict(list((mentioned | rest).items())[: MOST_COLUMNS - len(COLUMNS)])


def _make_view(columns: dict[str, str]) -> str:
    """Make the statement of the view `runs`, which hides the table of the same name."""
    fixed = [f"{_extract('columns', name)} AS {_quote_name(name)}" for name in COLUMNS if name != "age"]
    others = [f"{_extract('said', part, name)} AS {_quote_name(name)}" for name, part in columns.items()]
    age = f"max(0.0, {time.time()!r} - json_extract(said, '$.ended')) AS age"
    whole = ["json_extract(said, '$.config') AS config", "json_extract(said, '$.metrics') AS metrics"]
    return f"CREATE TEMP VIEW runs AS SELECT {', '.join([*fixed, age, *whole, *others])} FROM main.runs"  # noqa: S608


def _extract(column: str, *names: str) -> str:
    """Make the expression of a value in a column's JSON; null for NaN and infinity."""
    path = "$" + "".join(f'."{to_json(name)[1:-1]}"' for name in names)
    value = f"json_extract({column}, '{path.replace(chr(39), chr(39) * 2)}')"
    return f"nullif(nullif(nullif({value}, 'NaN'), 'Infinity'), '-Infinity')"


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""').replace("\0", "") + '"'


def _check_quoted(text: str, names: set[str]) -> None:
    """Refuse a name in double quotes that no run has: SQLite would take it for a text."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", text)
    aliases = {alias.lower() for alias in re.findall(r'\bas\s+"([^"]+)"', bare, re.IGNORECASE)}
    known = {name.lower() for name in names} | aliases | {"config", "metrics", "runs", "age"}
    for name in re.findall(r'"([^"]+)"', bare):
        if name.lower() not in known and re.search(r"[./]", name):
            near = find_nearest(name, names)
            remedy = format_suggestion(near) or "a text stands in single quotes"
            where = f"argument `--sql {text}`"
            rule = f"names the column `{name}`, which no run has"
            raise ConfigError([Mistake("--sql", rule, where=where, remedy=remedy, suggestion=near, kind="unknown-key")])


def _explain(error: BaseException, text: str, names: set[str]) -> Mistake:
    said, where = str(error), f"argument `--sql {text}`"
    if "not authorized" in said or "prohibited" in said or "one statement" in said:
        remedy = "the table is `runs`, and is read only"
        return Mistake("--sql", f"must be one `select` ({said})", where=where, remedy=remedy, kind="syntax")
    if "interrupted" in said:
        return Mistake("--sql", f"must take at most {SECONDS:g} s", where=where)
    missing = re.search(r"no such column: (?:\w+\.)?(\S+)", said)
    near = find_nearest(missing[1], {*names, *COLUMNS}) if missing else ""
    remedy = format_suggestion(near)
    if missing and not remedy:
        remedy = 'a name with a dot or a slash stands in double quotes: "optimizer.lr"'
    if (word := re.search(r'near "(\w+)": syntax error', said)) and word[1].lower() in names:
        remedy = f"`{word[1]}` is a word of SQL, and as a column stands in double quotes"
    if "no such table" in said:
        remedy = "the only table is `runs`"
    return Mistake("--sql", f"cannot be answered: {said}", where=where, remedy=remedy, suggestion=near, kind="syntax")
