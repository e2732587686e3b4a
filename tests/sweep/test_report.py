"""The report of a sweep: its table, failures, files and picture; on ledgers written here."""

import contextlib
import csv
import io
import json
import os
import shlex
import sqlite3
import statistics
import subprocess
import sys

import pytest

from runner.core.errors import ConfigError
from runner.sweep.ledger import FILE, JobRecord, Ledger
from runner.sweep.report import curves, table
from runner.sweep.report.results import gather
from runner.sweep.report.write import report

SETTINGS = {
    "id": "sweep_1",
    "name": "digits",
    "command": ["python", "-m", "runner", "-m", "--trust", "timm.*", "optimizer.lr=0.1,1", "train.duration=1ep"],
    "base": ["train.duration=1ep", "freeze.params=['fc\\..*']", "sweep.slots=2"],
    "objective": "val/accuracy",
    "mode": "max",
}
UNTRUSTING = ["python", "-m", "runner", "-m", "optimizer.lr=0.1,1", "train.duration=1ep"]  # nothing of whom it trusted


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep({"optimizer.lr": 0.1, "seed": 0, "objective": 0.9, "status": …}, …)`: the folder of such a sweep."""
    monkeypatch.chdir(tmp_path)

    def make(*jobs, settings=None, name="sweep_1"):
        folder = tmp_path / "outputs" / "digits" / name
        folder.mkdir(parents=True)
        rows = []
        for number, job in enumerate(jobs):
            columns = {key: value for key, value in job.items() if key in JobRecord.__dataclass_fields__}
            values = {key: value for key, value in job.items() if key not in columns and key != "log"}
            without_seed = json.dumps({key: value for key, value in values.items() if key != "seed"})
            row = JobRecord(f"{number:016x}", number, [f"{k}={v}" for k, v in values.items()], f"{number}_x", values)
            row.replicate_of, row.status = without_seed, "completed"
            rows.append(JobRecord(**{**vars(row), **columns}))
            (folder / row.path).mkdir()
            (folder / row.path / "metrics.jsonl").write_text(job.get("log", ""))
        with Ledger(folder) as ledger:
            ledger.set(**SETTINGS | (settings or {}))
            ledger.add(rows)
        return folder

    return make


def line(step, value):
    return json.dumps({"step": step, "epoch": 1.0, "val/accuracy": value, "train/loss": 1 / step}) + "\n"


def shown(folder):
    """The lines of the table, without its header."""
    lines = table.format_report(gather(folder)).splitlines()
    return lines[4 if "by " in lines[2] else 3 :]


def test_jobs_are_ranked_by_the_objective_with_the_keys_that_varied(sweep):
    folder = sweep(
        {"optimizer.lr": 0.1, "model": "mlp", "objective": 0.5},
        {"optimizer.lr": 0.2, "model": "mlp", "objective": 0.75},
        {"optimizer.lr": 1.0, "model": "mlp", "status": "failed", "cause": "non-finite"},
        {"optimizer.lr": 0.4, "model": "mlp", "status": "waiting"},
    )
    text = table.format_report(gather(folder)).splitlines()

    assert text[1:3] == ["4 jobs: 2 completed, 1 failed, 1 waiting", "by val/accuracy, more is better"]
    assert [line.split() for line in text[3:8]] == [
        ["rank", "job", "optimizer.lr", "val/accuracy"],
        ["1", "1", "0.2", "0.75", "best"],
        ["2", "0", "0.1", "0.5"],
        ["2", "1", "failed", "(non-finite)"],
        ["3", "0.4", "waiting"],
    ]


def test_less_is_better_where_the_mode_says_so(sweep):
    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "objective": 0.25}, settings={"mode": "min"})

    assert [1, 0] == [entry.rows[0].number for entry in gather(folder).entries]


REPLICATES = {  # objectives of the seeds by rate
    0.1: [0.5, 0.52, 0.48, 0.51, 0.49],
    0.2: [0.9, 0.88, 0.92, 0.91, 0.93],
    0.3: [0.9, 0.89, 0.9, 0.91, 0.92],
}


@pytest.fixture
def replicated(sweep):
    """The report of three points, each with five seeds."""
    values = [(lr, seed, value) for lr, values in REPLICATES.items() for seed, value in enumerate(values)]
    return gather(sweep(*({"lr": lr, "seed": seed, "objective": value} for lr, seed, value in values)))


def test_replicates_are_one_entry_with_mean_and_interval(replicated):
    best, high = replicated.entries[0], REPLICATES[0.2]

    assert (["lr"], [{"lr": 0.2}, {"lr": 0.3}, {"lr": 0.1}]) == (
        replicated.keys,
        [entry.values for entry in replicated.entries],
    )
    assert pytest.approx((statistics.fmean(high), statistics.stdev(high))) == (best.mean.value, best.mean.std)
    assert "0.908 ± 0.024" == table.format_score(best)


def test_what_is_within_noise_of_the_best_is_noted_with_the_test_that_says_so(replicated):
    best, second, _ = replicated.entries

    assert [False, True, False] == [entry.within_noise for entry in replicated.entries]
    assert ["best"] == table.list_notes(best, replicated)
    assert "within noise of the best" in table.list_notes(second, replicated)[0]
    assert "Welch" in table.format_report(replicated)


def test_no_value_breaks_the_lines_of_the_table(sweep):
    jobs = [{"a": "x\ny", "seed": s, "objective": v} for s, v in enumerate([1e250, 2e250])]
    folder = sweep(*jobs, {"a": "z", "seed": 0, "objective": 0.5}, {"a": "z", "seed": 1, "objective": 0.6})
    text = table.format_report(gather(folder)).splitlines()

    assert ["1", "0-1", "'x\\ny'", "1.5e+250", "±", "6.4e+250", "2", "best"] == text[4].split()
    assert text[5].endswith("within noise of the best (p = 0.2)")


def test_the_best_mean_wins_and_not_the_best_seed(sweep):
    lucky = [{"lr": 1, "seed": seed, "objective": value} for seed, value in enumerate([0.99, 0.1, 0.1])]
    steady = [{"lr": 2, "seed": seed, "objective": value} for seed, value in enumerate([0.8, 0.8, 0.81])]

    assert {"lr": 2} == gather(sweep(*lucky, *steady)).best.values


def test_replicates_without_a_result_are_said(sweep):
    jobs = [{"lr": 1, "seed": 0, "objective": 0.5}, {"lr": 1, "seed": 1, "objective": 0.7}]
    jobs += [{"lr": 1, "seed": 2, "status": "failed", "cause": "killed"}, {"lr": 1, "seed": 3, "status": "waiting"}]
    found = gather(sweep(*jobs))

    assert 2 == found.entries[0].mean.n
    assert ["best", "1 of 4 failed", "1 of 4 waiting"] == table.list_notes(found.entries[0], found)


def test_a_failed_job_has_its_cause_its_log_and_the_line_that_runs_it_again(sweep):
    error = "Fault: the loss is NaN\nat step 3"
    failed = {"status": "failed", "cause": "non-finite", "error": error, "exit": 1}
    folder = sweep({"optimizer.lr": 0.1, "objective": 1.0}, {"optimizer.lr": 1.0} | failed)
    (folder / "1_x" / "log.txt").write_text("")
    text = table.format_report(gather(folder))
    (alone,) = (said.partition("alone: ")[2] for said in text.splitlines() if "alone: " in said)

    assert "non-finite: Fault: the loss is NaN at step 3" in text
    assert str(folder / "1_x" / "log.txt") in text
    assert shlex.split(alone) == [
        *["python", "-m", "runner", "train.duration=1ep", "freeze.params=['fc\\..*']"],
        "optimizer.lr=1.0",
    ]
    again = text.splitlines()[-1].partition("places: ")[2]
    assert shlex.split(again) == [*UNTRUSTING, "sweep.retry=all"]


def test_what_the_machine_did_is_run_again_by_the_same_line(sweep):
    folder = sweep({"a": 1, "objective": 1.0}, {"a": 2, "status": "failed", "cause": "killed", "exit": -9})

    assert shlex.split(gather(folder).again_line()) == UNTRUSTING


def test_jobs_that_are_no_longer_asked_for_are_reported_and_not_ranked(sweep):
    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "objective": 0.9, "active": False}, {"a": 3, "objective": 0.4})
    text = table.format_report(gather(folder))

    assert 0 == gather(folder).best.rows[0].number
    assert "no longer asked for, and left out of the table: job 1" in text
    assert "the best of them: job 1, a=2, val/accuracy 0.9" in text


def test_finished_jobs_that_are_no_longer_asked_for_have_a_table_of_their_own(sweep):
    folder = sweep(
        {"a": 1, "objective": 0.5},
        {"a": 2, "objective": 0.4, "active": False},
        {"a": 3, "objective": 0.9, "active": False},
        {"a": 4, "status": "failed", "active": False},
    )
    lines = table.format_report(gather(folder)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("no longer asked for"))

    assert lines[at] == "no longer asked for, and left out of the table: job 1-3"
    assert [line.split() for line in lines[at + 2 : at + 5]] == [
        ["job", "a", "val/accuracy"],
        ["2", "3", "0.9", "better", "than", "the", "best", "above"],
        ["1", "2", "0.4"],
    ]
    assert f"promote {folder} --job 2" in lines[at + 5]
    assert [entry["jobs"] for entry in table.as_json(gather(folder))["finished_before"]] == [[2], [1]]


def test_jobs_of_other_code_are_reported(sweep):
    jobs = [{"a": i, "objective": 0.1 * i, "code": "old" if i < 2 else "new", "start": float(i)} for i in range(4)]
    jobs.append({"a": 9, "objective": 0.0, "code": "another model", "start": 9.0})
    folder = sweep(*jobs)
    with Ledger(folder) as ledger:
        ledger.remember_modules("old", {"nets": "1", "data": "1"})
        ledger.remember_modules("new", {"nets": "2", "data": "1"})
        ledger.remember_modules("another model", {"mlp": "1", "data": "1"})  # imports other modules, which is no change
    found = gather(folder)

    assert {0: ["nets"], 1: ["nets"]} == found.other_code
    assert "of other code than later jobs (nets): job 0-1" in table.format_report(found)
    assert ["other code"] == table.list_notes(found.entries[-2], found)


def test_a_sweep_that_runs_shows_what_its_directories_say(sweep):
    """The ledger says that all of them run; the controller was killed, or is about to write down how they ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody waited for it
        cut_off_jobs_are_interrupted(sweep, ended.pid)


def cut_off_jobs_are_interrupted(sweep, pid):
    running, cut = {"status": "running", "pid": os.getpid()}, {"status": "running", "pid": pid}
    folder = sweep(
        {"a": 1, "log": line(10, 0.5) + line(20, 0.6) + '{"step": 30, "val/acc'} | running,
        {"a": 2, "log": line(10, 0.5)} | cut,
        {"a": 3} | running,
        {"a": 4} | running,
    )
    result = {"status": "completed", "objective": 0.8, "metrics": {"val/accuracy": 0.8}, "error": None}
    (folder / "2_x" / "result.json").write_text(json.dumps(result))
    (folder / "3_x" / "result.json").write_text(json.dumps({"status": "failed", "error": "RunError: no"}))
    found = gather(folder)

    assert [(2, "completed", 0.8), (0, "running", 0.6), (1, "interrupted", 0.5), (3, "failed", None)] == [
        (entry.rows[0].number, entry.rows[0].status, entry.rows[0].objective) for entry in found.entries
    ]
    assert "(0.6)" in table.format_report(found)


@pytest.mark.parametrize("status", ["pruned", "failed", "interrupted"])
def test_a_job_that_was_continued_by_hand_counts(status, sweep):
    """The ledger learns of it when the sweep's line is given again; the report does not wait for that."""
    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "status": status, "objective": 0.3, "cause": "exception"})
    result = {"status": "completed", "objective": 0.9, "metrics": {"val/accuracy": 0.9}, "error": None, "seconds": 2.0}
    (folder / "1_x" / "result.json").write_text(json.dumps(result))
    best, _ = gather(folder).entries

    assert ("completed", "", 0.9) == (best.rows[0].status, best.rows[0].cause, best.mean.value)


@pytest.mark.parametrize("status", ["pruned", "completed"])
def test_a_job_without_an_objective_that_is_a_number_has_none(status, sweep):
    """In files NaN and infinity are texts."""
    cut, metrics = {"status": "pruned", "objective": None}, {"val/accuracy": "nan"}
    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "metrics": metrics} | cut, {"a": 3, "log": line(1, 0.4)} | cut)
    result = {"status": status, "objective": "inf", "metrics": metrics, "error": None, "seconds": 2.0}
    (folder / "1_x" / "result.json").write_text(json.dumps(result))
    entries = gather(folder).entries

    assert {0: 0.5, 1: None, 2: 0.4} == {entry.rows[0].number: entry.rows[0].objective for entry in entries}


def test_a_pruned_job_is_marked_with_what_it_reached(sweep):
    log = line(10, 0.2) + line(20, 0.3)
    found = gather(sweep({"a": 1, "objective": 0.5}, {"a": 2, "status": "pruned", "log": log}))

    assert ["pruned"] == table.list_notes(found.entries[1], found)
    assert "(0.3)" == table.format_score(found.entries[1])
    assert found.entries[1].rank is None


def test_two_objectives_have_a_pareto_front(sweep):
    values = [(0.9, 10), (0.8, 5), (0.7, 7), (0.6, 1), (0.5, "nan")]
    jobs = [{"a": i, "objective": x, "metrics": {"val/accuracy": x, "val/cost": y}} for i, (x, y) in enumerate(values)]
    found = gather(sweep(*jobs, settings={"objectives": {"val/accuracy": "max", "val/cost": "min"}}))

    assert [True, True, False, True, False] == [entry.front for entry in found.entries]


def test_files_say_the_same_as_the_table(sweep):
    jobs = [{"lr": 10**-i, "seed": s, "objective": i + s / 10, "metrics": {"x": 1}} for i in range(3) for s in (0, 1)]
    jobs.append({"lr": 7, "seed": 0, "status": "failed", "cause": "exit", "exit": 3, "error": 'a, "b"\nc'})
    folder = sweep(*jobs, {"lr": [1, 2], "seed": 0, "objective": float("nan"), "active": False})
    said = []
    found = report(folder, said.append)
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    plain = json.loads((folder / "report.json").read_text())

    assert [row.number for entry in found.entries for row in entry.rows] + [7] == [int(row["number"]) for row in rows]
    assert ["1", "1", "2", "2", "3", "3", "", ""] == [row["rank"] for row in rows]
    assert ('a, "b"\nc', "exit", "3") == tuple(rows[6][key] for key in ("error", "cause", "exit"))
    assert ("[1, 2]", "true") == (rows[7]["lr"], rows[7]["removed"])
    assert {"lr", "seed", "val/accuracy", "x", "rerun"} <= rows[0].keys()
    assert {"best": [4, 5], "failed": [6], "jobs": len(rows), "n": 2, "objective": pytest.approx(2.05)} == {
        "best": plain["best"],
        "failed": [job["number"] for job in plain["failed"]],
        "jobs": len(plain["jobs"]),
        "n": plain["entries"][0]["n"],
        "objective": plain["entries"][0]["objective"],
    }


def test_the_curves_are_drawn_over_each_other(sweep):
    logs = [line(10, 0.1 * i) + line(20, 0.2 * i) + line(30, 0.3 * i) for i in range(1, 13)]
    folder = sweep(*({"a": i, "objective": i / 10, "log": log} for i, log in enumerate(logs)))
    report(folder, lambda _: None)

    assert b"\x89PNG" == (folder / "curves.png").read_bytes()[:4]
    assert not list(folder.glob(".*tmp"))


def test_whatever_a_value_looks_like_it_has_its_place_in_the_legend(sweep, monkeypatch):
    """What matplotlib would take for a formula, for a line without a name, or has no letters for."""
    from matplotlib.figure import Figure

    names, legends = ["$\\frac$", "${a}_${b}", "_x", "日本語"], []
    legend = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **more: legends.append(legend(*args, **more)) or legends[-1])
    log = line(10, 0.1) + line(20, 0.2)
    folder = sweep(*({"a": name, "status": "pruned", "log": log} for name in names), {"a": 1, "objective": 0.5})
    report(folder, lambda _: None)

    (drawn,) = legends
    said = [text.get_text() for text in drawn.get_texts()]
    assert ["1. 1  0.5", *(f"- {name}  (0.2)  pruned" for name in names)] == said
    assert "a  val/accuracy" == drawn.get_title().get_text()


def test_without_curves_nothing_is_drawn(sweep):
    folder = sweep({"a": 1, "objective": 0.5, "log": line(0 + 1, 0.5)})

    assert not curves.draw(gather(folder), folder / "curves.png")
    assert not (folder / "curves.png").exists()


def test_without_matplotlib_the_table_comes_and_the_extra_is_named(sweep, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = sweep({"a": 1, "objective": 0.5, "log": line(1, 0.5) + line(2, 0.5)})
    said = []
    report(folder, said.append)

    assert "yaml-experiment-runner[report]" in said[-1]
    assert "best" not in said[-1]
    assert "0.5" in said[0]


def test_the_verb_prints_table_or_json(sweep, capsys):
    from runner.__main__ import main

    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "objective": 0.6})
    capsys.readouterr()
    assert 0 == main(["report", str(folder)])
    assert "best" in capsys.readouterr().out
    assert 0 == main(["report", "sweep_1", "--json"])  # by its name
    assert [1] == json.loads(capsys.readouterr().out)["best"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "SWEEP is missing"),
        (["a", "b"], "SWEEP must be one, but there are 2: `a b`"),
        (["outputs/digits/sweep_2"], "did you mean `outputs/digits/sweep_1`"),
        (["outputs/digits/sweep_1/0_x"], "did you mean `outputs/digits/sweep_1`"),
        (["outputs/digits"], "has no ledger.sqlite"),
        (["outputs/digits/sweep_broken"], "cannot be read"),
        (["outputs/digits/sweep_empty"], "cannot be read"),
        (["outputs/digits/sweep_other"], "cannot be read"),
        (["outputs/digits/sweep_other"], "the sweep's line, given again, puts ledger.sqlite aside"),
    ],
)
def test_what_is_no_sweep_is_refused(words, said, sweep, capsys):
    from runner.__main__ import main

    folder = sweep({"a": 1, "objective": 0.5})
    (folder / "0_x" / "config.yaml").write_text("")
    for name, content in {"sweep_broken": b"no database " * 100, "sweep_empty": b""}.items():
        (folder.parent / name).mkdir()
        (folder.parent / name / FILE).write_bytes(content)
    (folder.parent / "sweep_other").mkdir()
    with contextlib.closing(sqlite3.connect(folder.parent / "sweep_other" / FILE)) as other:
        other.executescript("CREATE TABLE sweep (key, value); CREATE TABLE jobs (a); INSERT INTO jobs VALUES (1);")
    before = sorted(folder.parent.rglob("*"))

    assert 2 == main(["report", *words])
    assert said in capsys.readouterr().err
    assert before == sorted(folder.parent.rglob("*"))


def test_a_report_while_the_ledger_is_written(sweep):
    """The controller is in the middle of a transaction."""
    folder = sweep({"a": 1, "objective": 0.5})
    writer = sqlite3.connect(folder / FILE, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE jobs SET objective = 0.7")
    found = gather(folder)
    writer.execute("ROLLBACK")
    writer.close()

    assert 0.5 == found.rows[0].objective


def test_a_sweep_without_jobs_has_a_report(sweep):
    assert "0 jobs" in table.format_report(gather(sweep()))


def test_a_ledger_that_does_not_say_how_it_was_asked_for_has_a_report(sweep):
    folder = sweep({"a": 1, "objective": 0.5}, {"a": 2, "status": "failed"}, settings={"command": None, "base": None})

    assert "alone: python -m runner a=2" in table.format_report(gather(folder))


def test_a_folder_that_cannot_be_written_has_its_table_all_the_same(sweep, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    folder, said = sweep({"a": 1, "objective": 0.5}), []
    monkeypatch.setattr("runner.sweep.report.write.write_text", refuse)
    report(folder, said.append)

    assert "could not be written" in said[-1]


def test_a_missing_sweep_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError):
        gather(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["../../../../away", "/tmp/away", "..", "", "0_x/../../y", "0_x\n"])
def test_a_ledger_whose_jobs_lie_elsewhere_is_refused(sweep, path):
    folder = sweep({"seed": 0, "objective": 0.5})
    with contextlib.closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute("UPDATE jobs SET path = ?", (path,))

    with pytest.raises(ConfigError, match="the path of a job must be the name of a folder in it"):
        gather(folder)


def test_a_ledger_that_is_a_link_is_refused(sweep, tmp_path):
    folder = sweep({"seed": 0, "objective": 0.5})
    (folder / FILE).replace(tmp_path / "mine.sqlite")
    (folder / FILE).symlink_to(tmp_path / "mine.sqlite")

    with pytest.raises(ConfigError, match="must be no link"):
        gather(folder)


def test_what_a_ledger_says_is_no_line_that_trusts_no_formula_and_no_escape(sweep):
    words = ["python", "-m", "runner", "-m", "--trust=*", "--trust", "os.*", "name=$(touch away)", "seed=0,1"]
    folder = sweep(
        {"name": "=cmd|' /C calc'!A0", "objective": 0.5},
        {"name": "$(touch away)\x1b]0;mine\x07", "status": "failed", "cause": "exception", "error": "\x1b[2J@SUM(A1)"},
        settings={"command": words, "base": ["seed=0"]},
    )
    lines = []
    found = report(folder, say=lines.append)
    cells = list(csv.reader(io.StringIO((folder / "report.csv").read_text())))
    text = "\n".join(lines)

    assert "--trust" not in text + found.again_line() + (folder / "report.csv").read_text()
    assert shlex.split(found.again_line())[3:5] == ["-m", "name=$(touch away)"]
    assert ("\x1b" in text, "\x07" in text, "\\x1b" in text) == (False, False, True)
    assert not [cell for line in cells for cell in line if cell.startswith(("=", "@", "\x1b"))]
