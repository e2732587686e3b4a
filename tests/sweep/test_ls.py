"""`ls`: the table of runs, its index, and SQL over it."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.core.lock import Lock
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.runs import reading
from runner.sweep.runs.index import FILE, read_table
from tests.support import make_result, write_files, write_run

ROOT = Path("outputs")


@pytest.fixture
def runs(elsewhere):
    """Four runs: two completed, one failed, one cut off in the middle."""
    for number, lr in enumerate((0.1, 0.2)):
        write_run(ROOT / f"a/r{number}", {"seed": number, "optimizer": {"lr": lr}}, make_result(0.5 + number / 4))
    write_run(ROOT / "b/failed", {"optimizer": {"lr": 1}}, make_result(None, "failed", cause="memory", error="\x1b[2J"))
    write_run(ROOT / "b/cut")
    write_files(
        ROOT / "b/cut", {"metrics.jsonl": '{"step": 1, "val/accuracy": 0.1}\n{"step": 2, "val/accuracy": 0.3}\n{"st'}
    )
    return elsewhere


def ask(runner, *argv):
    """The answer of `ls --json`."""
    ran = runner("ls", *argv, "--json")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


def list_paths(answer):
    return [run["path"].removeprefix("outputs/") for run in answer["runs"]]


def test_every_run_is_a_row_with_status_age_and_objective(runs, runner):
    ran = runner("ls", "--show", "optimizer.lr,val/accuracy", "--sort", "-val/accuracy")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["run", "status", "age", "objective", "optimizer.lr", "val/accuracy"]
    assert lines[1][:2] == ["outputs/a/r1", "completed"]
    assert lines[1][3:] == ["0.75", "val/accuracy", "0.2", "0.75"]
    assert [line[0] for line in lines[1:5]] == ["outputs/a/r1", "outputs/a/r0", "outputs/b/cut", "outputs/b/failed"]
    assert lines[4][1:3] == ["failed", "(memory)"]
    assert ran.out.endswith("4 runs: 2 completed, 1 interrupted, 1 failed\n")


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["optimizer.lr > 0.1 and status == completed"], ["a/r1"]),
        (["optimizer.lr > 0.1", "status == failed"], ["b/failed"]),
        (["val/accuracy == 0.3"], ["b/cut"]),  # the last whole line of one that has no result
        (["outputs/b"], ["b/cut", "b/failed"]),
        (["outputs/b", "seed == 0", "--sort", "status"], ["b/failed", "b/cut"]),
        (["age < 1h", "outputs/a/r0"], ["a/r0"]),
        (["age > 1h"], []),
        ([" or ".join(f"seed == {number}" for number in range(1, 40))], ["a/r1"]),  # longer than a name can be
    ],
)
def test_a_filter_and_a_folder_select(runs, runner, words, paths):
    assert list_paths(ask(runner, *words)) == paths


def test_json_has_what_a_program_asks(runs, runner):
    answer = ask(runner, "seed == 1", "--show", "optimizer.lr,size")
    (run,) = answer["runs"]
    assert (answer["total"], answer["counts"]) == (4, {"completed": 1})
    assert (run["path"], run["objective"], run["objective_name"], run["mode"]) == (
        "outputs/a/r1",
        0.75,
        "val/accuracy",
        "max",
    )
    assert (run["metrics"], run["shown"]["optimizer.lr"]) == ({"val/accuracy": 0.75}, 0.2)
    assert run["shown"]["size"] == sum(file.stat().st_size for file in Path("outputs/a/r1").iterdir())


def test_csv_has_a_line_a_run_and_no_formula(runs, runner):
    write_run(ROOT / "c/r", {"name": "=1+1"}, make_result("NaN"))
    header, *lines = runner("ls", "seed == 0", "--csv", "--show", "optimizer.lr").out.splitlines()
    assert header.endswith(",optimizer.lr")
    assert [line.split(",")[1] for line in lines] == ["made", "made", "made", "'=1+1"]


def test_control_characters_of_a_stranger_are_spelled_out(runs, runner):
    write_run(ROOT / "c\x1b[2J/r", {"name": "\x1b[2J"}, make_result(0.5))
    ran = runner("ls", "--show", "error,name")
    assert "\x1b" not in ran.out
    assert "c\\x1b[2J/r" in ran.out


# ---- the index


def test_a_run_that_changes_is_seen_at_once(runs, runner):
    assert ask(runner)["counts"] == {"completed": 2, "interrupted": 1, "failed": 1}
    write_run(ROOT / "b/cut", {"optimizer": {"lr": 3}}, make_result(0.9))
    (ROOT / "b/failed/config.yaml").unlink()
    (ROOT / "b/failed/result.json").unlink()
    (ROOT / "b/failed").rmdir()
    write_run(ROOT / "c/new", {}, make_result(0.1))
    answer = ask(runner, "--show", "optimizer.lr")
    assert list_paths(answer) == ["a/r0", "a/r1", "b/cut", "c/new"]
    assert [run["objective"] for run in answer["runs"]] == [0.5, 0.75, 0.9, 0.1]
    assert answer["runs"][2]["shown"] == {"optimizer.lr": 3}


def test_a_second_call_reads_no_run_again(runs, monkeypatch):
    first = read_table(ROOT)
    monkeypatch.setattr("runner.sweep.runs.index.read_run", None)
    second = read_table(ROOT)
    assert [row.columns for row in second.rows] == [row.columns for row in first.rows]
    assert [row.config for row in second.rows] == [row.config for row in first.rows]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"SQLite format 3\0" + b"x" * 5_000),
        lambda file: file.write_text("no database"),
        lambda file: file.unlink(),
        lambda file: sqlite3.connect(file).executescript("create view v as select 1"),
        lambda file: sqlite3.connect(file).executescript("update runs set said = '{'"),
        lambda file: sqlite3.connect(file).executescript("update runs set said = '{\"columns\": 3}'"),
        lambda file: sqlite3.connect(file).executescript("insert into runs values (x'ff', '', '{', '[')"),
        lambda file: sqlite3.connect(file).executescript("drop table runs; create table runs (path)"),
    ],
)
def test_a_damaged_index_is_made_anew(runs, runner, damage):
    before = list_paths(ask(runner))
    damage(ROOT / FILE)
    answer = ask(runner)
    assert (list_paths(answer), answer["notes"]) == (before, [])
    assert ask(runner, "--sql", "select count(*) from runs")["rows"] == [[4]]


def test_an_index_that_leads_elsewhere_is_not_written(runs, runner):
    write_files(runs, {"precious": "mine"})
    (ROOT / FILE).symlink_to(runs / "precious")
    answer = ask(runner)
    assert (runs / "precious").read_text() == "mine"
    assert len(answer["runs"]) == 4
    assert "there is no index" in answer["notes"][0]


def test_two_at_once_and_a_sweep_that_writes(runs):
    failed: list[BaseException] = []

    def work(number):
        try:
            for turn in range(6):
                if number == 0:
                    write_run(ROOT / f"w/r{turn}", {"seed": turn}, make_result(turn / 10))
                read_table(ROOT)
        except BaseException as error:  # noqa: BLE001  it is shown
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [row.get("objective") for row in read_table(ROOT).rows if "/w/" in row.path] == [
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    ]


# ---- status


def test_a_run_in_progress_is_one_whose_lock_is_held(runs, runner):
    with Lock(ROOT / "b/cut"), Lock(ROOT / "a/r1"):  # one is resumed
        statuses = {run["path"]: run["status"] for run in ask(runner)["runs"]}
    assert (statuses["outputs/b/cut"], statuses["outputs/a/r1"]) == ("running", "running")
    time.sleep(0.02)
    write_run(ROOT / "a/r1", {}, make_result(0.8))
    statuses = {run["path"]: run["status"] for run in ask(runner)["runs"]}
    assert (statuses["outputs/b/cut"], statuses["outputs/a/r1"]) == ("interrupted", "completed")


def test_a_job_without_a_result_has_the_status_of_its_ledger(runs, runner):
    sweep = ROOT / "s/sweep_1"
    jobs = {f"{number}_0000000{number}": status for number, status in enumerate(("failed", "running", "waiting"))}
    for path in jobs:
        write_run(sweep / path)
    with Ledger(sweep) as ledger:
        rows = [JobRecord(path, int(path[0]), [], path, status=status) for path, status in jobs.items()]
        rows[0].cause, rows[0].error = "lost", "the machine is gone"
        ledger.add(rows)
    answer = ask(runner, "sweep != null", "--show", "sweep,job")
    assert [run["status"] for run in answer["runs"]] == ["failed", "interrupted", "waiting"]
    assert (answer["runs"][0]["cause"], answer["runs"][0]["error"]) == ("lost", "the machine is gone")
    assert answer["runs"][1]["shown"] == {"sweep": "outputs/s/sweep_1", "job": 1}


# ---- damage and strangers


def test_damaged_directories_are_listed_as_such(runs, runner):
    write_files(
        ROOT,
        {
            "d/bad_yaml/config.yaml": "a: [",
            "d/bad_json/config.yaml": "seed: 1",
            "d/bad_json/result.json": "{",
            "d/deep/config.yaml": "seed: 1",
            "d/deep/result.json": "[" * 10_000,
            "d/list/config.yaml": "- 1",
            "d/nothing/metrics.jsonl": "",
            "d/other/config.yaml": "seed: 1",
            "d/other/result.json": '{"status": "won"}',
            "d/odd/config.yaml": "1: {null: 3}\ntrain: 3\nname: [1]\nseed: " + "9" * 200,
            "d/odd/result.json": '{"status": "completed", "metrics": 3, "best": [], "objective": {}, "steps": "x"}',
            "d/odd/provenance.json": '{"git": 3, "time": []}',
        },
    )
    (ROOT / "d/pipe").mkdir()
    os.mkfifo(ROOT / "d/pipe/config.yaml")
    (ROOT / "d/link").mkdir()
    (ROOT / "d/link/config.yaml").symlink_to("/etc/passwd")
    found = {run["path"].removeprefix("outputs/d/"): run for run in ask(runner, "outputs/d")["runs"]}
    assert found.pop("odd")["status"] == "completed"
    assert {run["status"] for run in found.values()} == {"damaged"}
    assert all(run["problem"] for run in found.values())
    assert "is a link" in found["link"]["problem"]
    assert "damaged: outputs/d/bad_yaml: config.yaml cannot be read as YAML" in runner("ls", "status == damaged").out


def test_links_are_not_followed(runs, runner):
    write_run(runs / "beyond/r", {}, make_result(1.0))
    (ROOT / "a/loop").symlink_to("..")
    (ROOT / "beyond").symlink_to(runs / "beyond")
    answer = ask(runner)
    assert list_paths(answer) == ["a/r0", "a/r1", "b/cut", "b/failed"]
    assert answer["notes"] == ["2 links to folders below outputs not followed"]


def test_no_runs_are_no_mistake_and_leave_nothing(elsewhere, runner):
    ran = runner("ls", "whatever > 3")
    assert (ran.status, ran.out, list(elsewhere.iterdir())) == (0, "no runs below outputs\n", [])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["outputs/nope"], "outputs/nope is neither a folder nor a name that a run has"),
        (["--show", "val/acuracy"], "did you mean `val/accuracy`?"),
        (["--sort", "-val/acuracy"], "did you mean `val/accuracy`?"),
        (["--shw", "seed"], "did you mean `--show`?"),
        (["--csv", "--json"], "contradict each other"),
        (["seed == 1", "--sql", "select 1"], "takes no filter"),
    ],
)
def test_a_wrong_request_is_refused(runs, runner, argv, said):
    ran = runner("ls", *argv)
    assert (ran.status, said in ran.err) == (2, True), ran.err


# ---- SQL


def test_sql_answers_over_the_same_table(runs, runner):
    answer = ask(runner, "--sql", 'select path, "optimizer.lr" from runs where "val/accuracy" > 0.4 order by 2 desc')
    assert answer == {"columns": ["path", "optimizer.lr"], "rows": [["outputs/a/r1", 0.2], ["outputs/a/r0", 0.1]]}
    ran = runner(
        "ls", "--sql", "select status, count(*) as n from runs group by status order by n desc, status", "--csv"
    )
    assert ran.out == "status,n\ncompleted,2\nfailed,1\ninterrupted,1\n"
    assert runner("ls", "--sql", "select * from runs where seed = 1 and age < 100").out.count("outputs/a/r1") == 1


def test_sql_takes_nan_for_null(runs, runner):
    write_run(ROOT / "c/r", {}, make_result("NaN"))
    assert ask(runner, "--sql", 'select max("val/accuracy"), max(objective) from runs')["rows"] == [[0.75, 0.75]]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("drop table runs", "must be one `select`"),
        ("delete from runs", "must be one `select`"),
        ("update runs set path = 1", "must be one `select`"),
        ("attach 'x.sqlite' as x", "must be one `select`"),
        ("pragma journal_mode=wal", "must be one `select`"),
        ("vacuum into 'x'", "must be one `select`"),
        ("pragma query_only", "must be one `select`"),
        ("explain select 1", "must be one `select`"),
        ("select load_extension('x')", "--sql"),
        ("select 1; select 2", "must be one `select`"),
        ("select objectiv from runs", "did you mean `objective`?"),
        ('select "optimizer.lrr" from runs', "did you mean `optimizer.lr`?"),
        ("select commit from runs", "in double quotes"),
        ("select * from jobs", "the only table is `runs`"),
        ("select randomblob(1000000000)", "--sql"),
        (" ;", "must be one `select`"),
    ],
)
def test_sql_is_read_only_and_says_what_is_wrong(runs, runner, query, said):
    before = ask(runner)["total"]
    ran = runner("ls", "--sql", query)
    assert (ran.status, said in ran.err) == (2, True), ran.err
    assert (ask(runner)["total"], Path("x.sqlite").exists(), Path("x").exists()) == (before, False, False)


def test_an_endless_query_is_stopped(runs, runner, monkeypatch):
    monkeypatch.setattr("runner.sweep.runs.sql.SECONDS", 0.05)
    query = "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c"
    assert "must take at most" in runner("ls", "--sql", query).err


# ---- a config that is read key by key

CONFIGS = [
    "a: 1\nb:\n  c: [1, 2]\n  d: {}\nlist:\n- x\n- y: 2\n",
    "a: 1\na: 2\n",
    "a: &x {b: 1}\nc: *x\n",
    "a: [1,\nb, c]\nd: 3\n",
    'a: "x\n\n  y: z"\nb: 1\n',
    "a: |\n  text\n  b: 2\nc: 3\n",
    "# first\na: 1\n",
    "a: 1 # one\n# two\nb: 2\n",
    "---\na: 1\n...\n",
    "a: !!python/object:x {}\n",
    "a: 1e-3\nb: 1.0e-3\nc: yes\n'on': 1\n",
    "a: on\non: 2\n",
    "a:\n  include:\n  - .*\n  - '*'\n",
    "a: {b: 1,\n  c: 2}\n",
    "a b: 1\nc: \n",
    "a\n",
    "a: 1\nb\n",
    "a: 1\n  b: 2\n",
    "a: 1\n- b\n",
    "",
    "a: " + "[" * 200 + "]" * 200 + "\n",
    "a: " + "9" * 500 + "\n",
    "a: ~\nb: null\nc:\n",
    "a: 2026-01-01\n",
    "{a: 1}\n",
    "a: x\n y\nb: 1\n",
    "<<: {a: 1}\n",
    "a:\n  <<: {b: 1}\n  c: 2\n",
    "1: a\nb: 2\n",
    "a: '\n  x'\nb: 1\r\n",
]


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_read_key_by_key_is_that_of_the_whole_file(elsewhere, monkeypatch, text):
    Path("config.yaml").write_text(text)
    problems = [], []
    known = reading._read_config(elsewhere, problems[0])
    monkeypatch.setattr(reading, "_read_sections", lambda _: None)
    assert (known, problems[0]) == (reading._read_config(elsewhere, problems[1]), problems[1])


def test_the_config_of_every_experiment_is_read_key_by_key(elsewhere, monkeypatch):
    import yaml

    from runner.config.check.check import to_resolved_data
    from runner.config.compose import compose
    from runner.config.parsing import read

    for name in ("digits_mlp", "digits_cnn"):
        config = to_resolved_data(read(compose([f"experiment={name}"]).config)[0])
        Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        known = reading._read_sections(elsewhere / "config.yaml")
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_read_sections", lambda _: None)
            assert known == reading._read_config(elsewhere, []) != {}


# ---- speed


@pytest.mark.exhaustive
def test_a_thousand_runs_are_indexed_in_ten_seconds_and_listed_in_one(elsewhere):
    """Each with a config of 150 keys, as processes: what is measured is what a user waits for."""
    config = {f"part{number}": {f"key{inner}": inner / 7 for inner in range(15)} for number in range(10)}
    for number in range(1_000):
        write_run(ROOT / f"n{number % 10}/r{number}", config | {"seed": number}, make_result(number / 1_000))
    took = []
    for _ in range(2):
        began = time.perf_counter()
        line = [sys.executable, "-m", "runner", "ls", "seed < 3 and val/accuracy >= 0", "--json"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
        took.append(time.perf_counter() - began)
        assert len(json.loads(done.stdout)["runs"]) == 3
    assert took[0] < 10, took
    assert took[1] < 1, took
