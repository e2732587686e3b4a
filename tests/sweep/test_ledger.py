"""The ledger: rows go round, readers see them while a writer works and after one was killed."""

import contextlib
import dataclasses
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from runner.sweep.ledger import FILE, JobRecord, Ledger, put_aside

FULL = JobRecord(
    id="a1",
    number=3,
    overrides=["optimizer.lr=0.1", "model=mlp"],
    path="3_a1",
    values={"optimizer.lr": 0.1, "model": "mlp"},
    replicate_of="b2",
    code="c3",
    data="d4",
    status="failed",
    cause="memory",
    host="here",
    slot=1,
    pid=42,
    start=1.5,
    end=2.5,
    objective=0.25,
    metrics={"val/loss": "NaN"},
    error="too large",
    exit=-9,
    attempt=2,
    active=False,
)


def test_rows_and_settings_go_round(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.add([FULL, JobRecord("z", 0, ["seed=1"], "0_z")])
        ledger.set(swept=["optimizer.lr"], objective="val/loss")
        ledger.remember_modules("c3", {"nets": "00ff"})
    with Ledger(tmp_path, read_only=True) as ledger:
        assert [JobRecord("z", 0, ["seed=1"], "0_z"), FULL] == ledger.jobs()
        assert {"swept": ["optimizer.lr"], "objective": "val/loss"} == ledger.settings()
        assert {"nets": "00ff"} == ledger.modules("c3")


def test_an_update_changes_what_it_names(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.add([FULL])
        ledger.update("a1", status="completed", cause="", active=True, metrics={"val/loss": 0.1})
        changed = dataclasses.replace(FULL, status="completed", cause="", active=True, metrics={"val/loss": 0.1})

        assert [changed] == ledger.jobs()


def test_a_reader_cannot_write_and_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Ledger(tmp_path, read_only=True)
    assert [] == list(tmp_path.iterdir())
    Ledger(tmp_path).close()
    with Ledger(tmp_path, read_only=True) as ledger, pytest.raises(sqlite3.OperationalError):
        ledger.set(name="other")


def test_a_reader_sees_what_was_committed_before_its_writer_was_killed(tmp_path):
    """The writer dies inside a transaction, its journal on the disk."""
    code = f"""
import os, signal, sys
from pathlib import Path
from runner.sweep.ledger import JobRecord, Ledger
ledger = Ledger(Path({str(tmp_path)!r}))
ledger._db.execute("PRAGMA cache_size=1")
ledger._db.execute("PRAGMA cache_spill=1")
ledger.add(JobRecord(str(i), i, ["x" * 500], str(i)) for i in range(500))
with ledger.transaction():
    for i in range(500):
        ledger.update(str(i), status="running", error="y" * 500)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert -signal.SIGKILL == killed.returncode
    assert (tmp_path / f"{FILE}-journal").stat().st_size > 0

    with Ledger(tmp_path, read_only=True) as ledger:
        assert {"waiting"} == {row.status for row in ledger.jobs()}


@pytest.mark.parametrize("damage", ["garbage", "cut", "overwritten"])
def test_a_damaged_ledger_is_told_from_one_that_cannot_be_opened(tmp_path, damage):
    with Ledger(tmp_path) as ledger:
        ledger.add(JobRecord(str(i), i, ["x" * 500], str(i)) for i in range(50))
    whole = (tmp_path / FILE).read_bytes()
    middle = len(whole) // 2
    damaged = {"garbage": b"x" * 5000, "cut": whole[:middle], "overwritten": whole[:middle] + b"x" * middle}[damage]
    (tmp_path / FILE).write_bytes(damaged)

    with pytest.raises(sqlite3.DatabaseError) as raised:
        Ledger(tmp_path)
    assert not isinstance(raised.value, sqlite3.OperationalError)


def test_what_is_put_aside_keeps_its_journal_from_the_next_one(tmp_path):
    names = [FILE, f"{FILE}-journal"]
    for attempt in "ab":
        for name in names:
            (tmp_path / name).write_text(attempt)
        put_aside(tmp_path)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "ledger.1.sqlite": "a",
        "ledger.1.sqlite-journal": "a",
        "ledger.2.sqlite": "b",
        "ledger.2.sqlite-journal": "b",
    }


def test_a_disk_that_is_full_is_told_as_that(tmp_path):
    """A limit on the pages of the file stands for it, small enough that SQLite gives the transaction up."""

    def fill():
        with ledger.transaction():
            for i in range(100):
                ledger._db.execute("INSERT INTO sweep VALUES (?, ?)", (str(i), "y" * 2000))

    with Ledger(tmp_path) as ledger:
        ledger._db.execute("PRAGMA cache_size=1")
        ledger._db.execute("PRAGMA max_page_count=12")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            fill()
        assert ledger.settings() == {}


def test_a_transaction_that_raises_changes_nothing(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.add([FULL])
        with contextlib.suppress(ZeroDivisionError), ledger.transaction():
            ledger.update("a1", attempt=9)
            raise ZeroDivisionError

        assert [FULL] == ledger.jobs()
