"""Limits of what a stranger's record may hold, each by the function that reads it."""

import itertools
import json
import sqlite3

import pytest

from runner.config import document
from runner.core import safe_io
from runner.core.errors import RunError
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.report.results import Report, read_curves
from runner.sweep.space import point_file
from runner.train import checkpoint

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS key, x AS value FROM c"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested deeper than 100"),
        ('{"a": "\\"", "b": ' + "[" * 101 + "]" * 101 + "}", "nested deeper than 100"),
        ('{"step": ' + "9" * 301 + "}", "more than 300 digits"),
        ("[" + "1," * 1_000_000 + "1]", "more than 1,000,000 values"),
    ],
)
def test_json_beyond_a_limit_is_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        safe_io.parse_json(text)


def test_json_of_digits_and_brackets_in_a_text_is_read():
    value = {"diff": "9" * 5_000 + "[" * 5_000, "number": 10**299}

    assert value == safe_io.parse_json(json.dumps(value))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: " + "9" * 5_000, "more than 400 digits"),
        ("a: 0x" + "f" * 5_000, "more than 400 digits"),
        ("a: " + ":".join(["59"] * 500), "more than 400 digits"),
        ("a: " + "${" * 400 + "b" + "}" * 400, "nested too deeply"),
        ("a: '" + "${b}" * 6_000 + "'", "more than 20,000 characters"),
    ],
)
def test_yaml_beyond_a_limit_is_a_mistake(text, rule, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)

    assert rule in str(document.load(file).mistake)


def test_ten_thousand_keys_are_found_by_index(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("base: &b {a: 1, z: 2}\n" + "\n".join(f"k{i}: {i}" for i in range(9_000)) + "\n<<: *b\na: 3\n")
    root = document.load(file).root

    assert [9_001, 9_003, 1, None] == [
        found and found[0] for found in (document.find(root, (name,)) for name in ("k8999", "a", "z", "nothing"))
    ]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path) as made:
        made.set(id="x", base=["--trust=*", "seed=1"], command=["python", "-m", "runner", "-m", "--trust", "*", "a=1"])
        made.add([JobRecord("0" * 64, 0, ["--trust=*", "a=1"], "0_00000000", {"a": 1}, status="completed")])
    return tmp_path


@pytest.mark.parametrize(
    "script",
    [
        f"DROP TABLE sweep; CREATE VIEW sweep AS {ENDLESS}",
        "CREATE TRIGGER t AFTER INSERT ON sweep BEGIN DELETE FROM jobs; END",
        "DROP TABLE sweep; CREATE TABLE sweep (key TEXT, value TEXT AS (hex(zeroblob(9000000))))",
        "DROP TABLE sweep; CREATE TABLE sweep (key TEXT, value TEXT DEFAULT (hex(zeroblob(9))))",
        "CREATE INDEX i ON jobs (hex(id))",
    ],
)
def test_a_ledger_with_a_program_in_it_is_refused(script, ledger):
    db = sqlite3.connect(ledger / "ledger.sqlite")
    db.executescript(script)
    db.close()
    for read_only in (True, False):
        with pytest.raises(sqlite3.DatabaseError, match="none of a ledger"):
            Ledger(ledger, read_only=read_only)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "nothing"), ("cause", "nothing"), ("number", -1), ("number", "x"), ("overrides", "5"),
        ("metrics", '{"a": []}'), ("values_", "[]"), ("error", None), ("objective", "x"), ("path", "../x"),
        ("path", "0_00000000\n"), ("id", None), ("start", "x"), ("pid", "x"),
    ],
)  # fmt: skip
def test_a_row_with_a_value_of_the_wrong_kind_is_refused(column, value, ledger):
    db = sqlite3.connect(ledger / "ledger.sqlite")
    db.execute(f"UPDATE jobs SET {column} = ?", (value,))
    db.commit()
    db.close()
    with Ledger(ledger, read_only=True) as opened, pytest.raises((ValueError, TypeError)):
        opened.jobs()


def test_commands_to_paste_have_no_option_from_a_ledger(ledger):
    with Ledger(ledger, read_only=True) as opened:
        report = Report(ledger, opened.settings(), opened.jobs())

    assert "python -m runner seed=1 a=1" == report.job_line(report.rows[0])
    assert "--trust" not in report.again_line()


@pytest.mark.parametrize("file", ["../../notes.txt", "/etc/passwd", "last.pt", "step_1.pt/../x", "step_1.pt\n", 5])
def test_a_manifest_names_checkpoints_beside_it_alone(file, tmp_path):
    rows = [{"file": file, "step": 1, "metric": None, "sha256": "0" * 64}]
    (tmp_path / "manifest.json").write_text(json.dumps({"entries": rows, "sha256": checkpoint._hash_rows(rows)}))
    with pytest.raises(checkpoint.DamagedManifest):
        checkpoint._read_manifest(tmp_path)


def test_a_sparse_file_larger_than_the_memory_is_refused_unread(tmp_path):
    file = tmp_path / "step_00000001.pt"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(RunError, match="bytes, and this machine"):
        checkpoint._load_state(file, "cpu", "0" * 64)


def test_numbers_that_are_none_are_left_out_of_a_curve(tmp_path):
    lines = ['{"step": 1e999, "a": 1}', '{"step": 1, "a": 1e999}', "[" * 200_000, '{"step": 2, "a": 5}', '{"step": 3']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))

    assert {"a": [(2, 5.0)]} == read_curves(tmp_path / "metrics.jsonl", ["a"])


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("p.csv", ",".join(f"k{i}" for i in range(20_000)) + "\n", "more than 1,000 keys"),
        ("p.jsonl", json.dumps(dict.fromkeys(map("k{}".format, range(1_001)), 1)), "more than 1,000 keys"),
        ("p.jsonl", '{"a": "' + "x" * 20_001 + '"}', "more than 20,000 characters"),
        ("p.jsonl", '{"a":' * 101 + "1" + "}" * 101, "nested deeper than 100"),
        ("p.jsonl", json.dumps({"k" * 201: 1}), "more than 200 characters"),
    ],
)
def test_points_beyond_a_limit_are_a_mistake(name, text, rule, tmp_path):
    (tmp_path / name).write_text(text)
    rows, mistakes = point_file.read(tmp_path / name, name, "")

    assert ([], True) == (rows, any(rule in str(one) for one in itertools.islice(mistakes, 5)))
