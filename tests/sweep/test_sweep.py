"""Whole sweeps, as commands: every way to fail, to be cut off, and to go on."""

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.sweep import multirun
from runner.sweep.executors.attempt import put_aside
from runner.sweep.report.write import report
from tests.support import read_result, run_git
from tests.sweep.project import (
    ENVIRONMENT,
    bits,
    here,
    processes_below,
    result,
    rows,
    said,
    start,
    sweep_of,
    wait_for,
    write,
)

QUICK = ("-m", "experiment=quick")
SLOW = (*QUICK, "seed=range(0,6)", "train.duration=12ep", "model.pause=0.02")  # about 1 s a job
HOW = {  # model.fail → cause
    "exception": "exception",
    "exit": "exit",
    "exit0": "exit",
    "kill": "killed",
    "crash": "crash",
    "fault": "non-finite",
    "memory": "memory",
    "hang": "timeout",
}
PUT_ASIDE = (("config", ".yaml"), ("log", ".txt"), ("result", ".json"), ("checkpoints", ""))
LIMITS = ("sweep.timeout=9", "sweep.memory=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep that nobody cut off."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder)
    assert here(folder, *SLOW) == 0, said(folder)
    return folder


def table(folder):
    """What a report shows of each job."""
    return [(row.number, row.values, row.status, row.objective, row.metrics) for row in rows(folder)]


# ---- jobs that fail


def test_each_way_to_fail_is_contained_told_and_tried_again_when_asked(project):
    """A retry goes on from the job's checkpoint, and renames what the attempt before had said."""
    fails = ",".join(["none", *HOW])
    line = (*QUICK, f"model.fail={fails}", f"+model.once={project}/${{model.fail}}.once", *LIMITS)
    assert here(project, *line) == 1
    first = {row.values["model.fail"]: row for row in rows(project)}
    assert {name: row.cause for name, row in first.items()} == {"none": "", **HOW}
    assert first["none"].status == "completed"
    for name in HOW:
        assert f"model.fail={name}" in said(project).split("failed:")[-1]
    assert "sweep.retry=all" in said(project)
    assert processes_below(project) == []

    assert here(project, *line, "sweep.retry=all") == 0
    second = {row.values["model.fail"]: row for row in rows(project)}
    assert {name: row.attempt for name, row in second.items()} == dict.fromkeys(HOW, 2) | {"none": 1}
    assert {row.status for row in second.values()} == {"completed"}
    job = sweep_of(project) / second["exception"].path
    assert json.loads((job / "result.1.json").read_text())["status"] == "failed"
    assert "RuntimeError: on purpose" in (job / "log.1.txt").read_text()
    assert "RuntimeError: on purpose" not in (job / "log.txt").read_text()
    weights = {result(project, row)["weights_sha256"] for row in second.values()}
    assert len(weights) == 1, "whatever it went through, each ends with the same bits"


@pytest.mark.exhaustive
def test_thirty_of_a_hundred_jobs_fail_and_the_others_do_not(project):
    every = [name for name in HOW if name != "exit0"] * 5
    draw = random.Random(0)
    fails = every[:30]
    seeds = draw.sample(range(100), 30)
    points = [
        {"seed": seed, "model.fail": fails[seeds.index(seed)] if seed in seeds else "none"} for seed in range(100)
    ]
    (project / "points.jsonl").write_text("\n".join(map(json.dumps, points)))

    assert here(project, *QUICK, "sweep.points=points.jsonl", *LIMITS) == 1
    found = {row.values["seed"]: row for row in rows(project)}
    for point in points:
        row = found[point["seed"]]
        assert row.cause == HOW.get(point["model.fail"], "")
        assert row.status == ("completed" if point["model.fail"] == "none" else "failed")
        assert (f"log:   {sweep_of(project).relative_to(project) / row.path}/" in said(project)) == bool(row.cause)
    assert processes_below(project) == []


def test_a_preset_of_ones_own_may_set_what_its_jobs_share(project):
    """A job of it is a run of its own with the job's arguments; the preset alone is no run."""
    (project / "conf" / "sweep").mkdir()
    (project / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer.lr: '0.1,0.2'}}}\nloader: {batch_size: 32}\n"
    )
    assert here(project, *QUICK, "sweep=mine", "train.duration=1st") == 0, said(project)
    first, _ = rows(project)
    alone = "experiment=quick", "sweep=mine", "train.duration=1st", "optimizer.lr=0.1"
    assert here(project, *alone) == 0, said(project)
    (run,) = (path for path in project.glob("outputs/quick/*/result.json") if path.parent.name[0] == "2")
    assert json.loads(run.read_text())["weights_sha256"] == result(project, first)["weights_sha256"]
    assert here(project, *alone[:3]) == 2


def test_a_wrong_point_is_told_before_anything_is_made(project):
    assert here(project, *QUICK, "model.at=1,2", "model.pause=0,x", "+model.onse=1") == 2
    assert not (project / "outputs").exists()


def test_the_name_of_a_run_is_none_of_a_sweep(project):
    run = project / "outputs" / "quick" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert here(project, *QUICK, "seed=0,1", "sweep.id=mine") == 2
    assert "sweep.id must be the name of a sweep, but is that of a run" in said(project)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


# ---- sweeps that are cut off


def running(folder, attempt=1):
    return lambda: [row for row in rows(folder) if row.status == "running" and row.pid and row.attempt >= attempt]


def server_of(job):
    """The process that a job was forked from."""
    return int(Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_sweep_that_is_cut_off_in_every_way_ends_as_if_it_never_was(project, undisturbed, seed):
    """Ctrl-C saves, twice stops at once, `kill -9` leaves no process; each time the same line goes on."""
    draw = random.Random(seed)
    sweep = start(project, *SLOW)
    wait_for(running(project))
    time.sleep(draw.uniform(0.2, 1))
    os.kill(server_of(running(project)()[0]), signal.SIGTERM)  # as a queue does, which signals every process
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    assert not [row for row in rows(project) if row.status == "failed"]
    stopped = [row for row in rows(project) if row.status == "interrupted"]
    assert stopped
    for row in stopped:
        assert result(project, row)["status"] == "interrupted"
        begun = result(project, row)["steps"] > 0
        assert (sweep_of(project) / row.path / "checkpoints" / "last.pt").exists() or not begun

    sweep = start(project, *SLOW)
    wait_for(running(project, attempt=2))
    time.sleep(draw.uniform(0, 1))
    wait_for(lambda: len(processes_below(project)) >= 3)  # between two jobs there may be none but ours
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not processes_below(project), 3)

    earlier = {row.pid for row in rows(project)}
    sweep = start(project, *SLOW)
    wait_for(lambda: [row for row in running(project)() if row.pid not in earlier])
    sweep.send_signal(signal.SIGINT)
    time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    exits = {row.exit for row in rows(project) if row.status == "interrupted"}
    assert exits <= {-signal.SIGKILL, -signal.SIGTERM, None}, "SIGTERM where a job did not listen yet"
    assert processes_below(project) == []

    assert here(project, *SLOW) == 0
    assert table(undisturbed) == table(project)
    assert bits(undisturbed) == bits(project)


def killed(folder, seed, kills, line=SLOW):
    """Kill the controller of one sweep at random instants until it ends by itself; how often it was."""
    draw = random.Random(seed)
    done, finished = 0, {}
    while True:
        sweep = start(folder, *line)
        if done < kills:
            if draw.random() < 0.8:
                wait_for(lambda sweep=sweep: sweep.poll() is not None or running(folder)())
            time.sleep(draw.uniform(0, 3))
            sweep.kill()
        status = sweep.wait()
        wait_for(lambda: not processes_below(folder), 10)
        for job, stamp in finished.items():
            assert stamp == (job / "result.json").stat().st_mtime_ns, "no finished job runs twice"
        jobs = folder.glob("outputs/*/*/*/result.json")
        ended = [path for path in jobs if json.loads(path.read_text())["status"] == "completed"]
        finished = {path.parent: path.stat().st_mtime_ns for path in ended}
        if status != -signal.SIGKILL:
            assert status == 0, said(folder)
            return done
        done += 1


@pytest.mark.exhaustive
def test_a_hundred_kills_of_the_controller(tmp_path, undisturbed, seed):
    kills = number = 0
    while kills < 100:
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder)
        kills += killed(folder, seed + number, 12)
        assert table(undisturbed) == table(folder)
        assert bits(undisturbed) == bits(folder)
        shutil.rmtree(folder)
        number += 1
    sys.stdout.write(f"{kills} kills of {number} sweeps\n")


@pytest.mark.exhaustive
def test_the_process_that_jobs_are_forked_from_is_killed(project, undisturbed):
    """Its jobs are lost, another one runs the rest, and the same line goes on with the lost ones."""
    sweep = start(project, *SLOW)
    job = wait_for(running(project))[0]
    time.sleep(0.3)
    os.kill(server_of(job), signal.SIGKILL)
    assert sweep.wait() == 1
    lost = [row for row in rows(project) if row.status == "failed"]
    assert lost
    assert {row.cause for row in lost} == {"lost"}
    assert len(lost) <= 2
    assert here(project, *SLOW) == 0
    assert bits(undisturbed) == bits(project)


def test_a_signal_to_a_sweep_that_has_not_begun_ends_it_with_the_status_of_the_contract(project):
    sweep = start(project, *SLOW)
    wait_for(lambda: len(processes_below(project)) > 1)
    sweep.send_signal(signal.SIGUSR1)
    assert sweep.wait() == 75
    assert said(project) == ""
    wait_for(lambda: not processes_below(project), 3)


@pytest.mark.exhaustive
def test_a_signal_at_any_moment_ends_a_sweep_with_the_status_of_the_contract(project, undisturbed, seed):
    """From when Python itself has begun to when it ends, of a sweep of which nothing is left to be done."""
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    draw = random.Random(seed)
    begun = time.monotonic()
    assert start(project, *SLOW).wait() == 0
    seconds = time.monotonic() - begun
    for number, status in ((signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)) * 10:
        sweep = start(project, *SLOW)
        time.sleep(draw.uniform(0.2, seconds))
        sweep.send_signal(number)
        assert sweep.wait() in (0, status)
    assert "Traceback" not in said(project)
    assert here(project, *SLOW) == 0
    assert table(undisturbed) == table(project)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_report_is_written_lets_it_be_written(project, undisturbed, monkeypatch, number):
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    (sweep_of(project) / "report.csv").unlink()

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return report(*arguments)

    monkeypatch.setattr(multirun, "report", interrupted)

    assert here(project, *SLOW) == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert (sweep_of(project) / "report.csv").is_file()


def test_a_console_that_is_gone_stops_no_sweep(project, undisturbed):
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        assert here(project, *SLOW, stdout=gone) == 0


@pytest.mark.parametrize(
    "damage", ["garbage", *(pytest.param(other, marks=pytest.mark.exhaustive) for other in ("cut", "empty", "other"))]
)
def test_a_damaged_ledger_is_put_aside_and_made_again_from_the_directories(project, undisturbed, damage):
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    ledger = sweep_of(project) / "ledger.sqlite"
    whole = ledger.read_bytes()
    damaged = {"garbage": b"no ledger " * 500, "cut": whole[: len(whole) // 2], "empty": b"", "other": b""}[damage]
    ledger.write_bytes(damaged)
    if damage == "other":  # a database of something else
        with contextlib.closing(sqlite3.connect(ledger)) as other:
            other.executescript("CREATE TABLE jobs (a); INSERT INTO jobs VALUES (1);")
    jobs = {path: path.stat().st_mtime_ns for path in project.glob("outputs/*/*/*/result.json")}
    assert here(project, *SLOW) == 0, said(project)

    assert table(undisturbed) == table(project)
    assert jobs == {path: path.stat().st_mtime_ns for path in project.glob("outputs/*/*/*/result.json")}
    assert damage in ("empty", "other") or damaged == ledger.with_name("ledger.1.sqlite").read_bytes()


@pytest.mark.exhaustive
def test_a_point_that_was_cut_off_and_left_out_goes_on_when_it_is_asked_for_again(project, undisturbed):
    """Nothing else is left to be done then."""
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    last = rows(project)[-1]
    (sweep_of(project) / last.path / "result.json").unlink()
    assert here(project, *SLOW, "seed=range(0,5)") == 0
    assert not rows(project)[-1].active
    assert here(project, *SLOW) == 0

    assert table(undisturbed) == table(project)


@pytest.mark.exhaustive
def test_a_job_whose_result_is_damaged_is_continued_from_its_checkpoint(project, undisturbed):
    """By hand, and by its sweep where the ledger is lost too."""
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    first, second, *_ = rows(project)
    folder = sweep_of(project)
    for row, text in ((first, ""), (second, '{"status": "comp')):
        (folder / row.path / "result.json").write_text(text)
    (folder / "ledger.sqlite").unlink()
    assert here(project, "resume", str(folder / first.path)) == 0
    assert here(project, *SLOW) == 0

    assert bits(undisturbed) == bits(project)


@pytest.mark.exhaustive
def test_a_ledger_that_cannot_be_written_ends_the_sweep_in_a_sentence(project):
    """A limit on the size of files stands for a disk that is full."""
    line = ["ulimit -f 8; exec", sys.executable, "-m", "runner", *QUICK, "seed=range(0,99)", "debug=noop"]
    ended = subprocess.run(
        " ".join(map(shlex.quote, line)).replace("'ulimit -f 8; exec'", "ulimit -f 8; exec"),
        shell=True,
        cwd=project,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert processes_below(project) == []


@pytest.mark.exhaustive
def test_loader_workers_die_with_the_controller(project):
    line = (*QUICK, "seed=0,1", "loader.num_workers=1", "model.pause=0.05", "train.duration=100ep")
    sweep = start(project, *line)
    wait_for(lambda: len(running(project)()) == 2 and len(processes_below(project)) >= 6)
    sweep.kill()
    sweep.wait()

    wait_for(lambda: not processes_below(project), 3)


# ---- the same jobs, however they are run


def test_points_added_removed_and_given_twice(project):
    """Finished jobs stay as they are, new ones run, those no longer asked for are told, two spellings are one job."""
    assert here(project, *QUICK, "optimizer.lr=0.1,1e-1,0.2") == 0
    before = bits(project)
    assert len(before) == 2
    stamps = {row.id: (row.start, row.end) for row in rows(project)}
    assert here(project, *QUICK, "optimizer.lr=0.3,0.10,choice(0.3)", "log.every=1st") == 2, "Hydra's own grammar"
    assert here(project, *QUICK, "optimizer.lr=0.3,0.10", "log.every=1st", "sweep.slots=1") == 0

    after = {row.values["optimizer.lr"]: row for row in rows(project)}
    assert {lr: (row.number, row.active) for lr, row in after.items()} == {
        0.1: (0, True),
        0.2: (1, False),
        0.3: (2, True),
    }
    assert {row.id: (row.start, row.end) for lr, row in after.items() if lr != 0.3} == stamps
    assert "no longer asked for: 1: optimizer.lr=0.2" in said(project)
    assert "it runs once" in said(project)


def test_a_job_has_the_same_bits_alone_in_a_sweep_shuffled_and_beside_others(project):
    alone = {}
    for seed in (0, 1, 2):
        assert here(project, "experiment=quick", f"seed={seed}", "name=alone") == 0
    for path in project.glob("outputs/alone/*/"):
        seed = json.loads((path / "provenance.json").read_text())["seed"]
        alone[seed] = read_result(path)["weights_sha256"]
    for name, line in {
        "shuffled": ("seed=2,0,1", "sweep.slots=1"),
        "three": ("seed=1,2,0", "sweep.slots=3"),
    }.items():
        assert here(project, *QUICK, *line, f"sweep.id={name}") == 0
        folder = project / "outputs" / "quick" / name
        results = {
            json.loads((job.parent / "provenance.json").read_text())["seed"]: json.loads(job.read_text())
            for job in folder.glob("*/result.json")
        }
        assert {seed: ended["weights_sha256"] for seed, ended in results.items()} == alone


def test_code_and_config_are_those_of_the_start(project):
    """A module that nobody has imported yet, and a YAML, are edited while jobs wait: they run as they were.

    So is the commit that their records name.
    """
    run_git(project, "init", "-q")
    run_git(project, "add", ".")
    run_git(project, "commit", "-q", "-m", "of the start")
    line = ("-m", "experiment=quick", "model=late", "seed=range(0,4)", "sweep.slots=1")
    sweep = start(project, *line)
    wait_for(running(project))
    (project / "late.py").write_text("FACTOR = 0.0\n")
    (project / "parts.py").write_text("raise SystemExit\n")
    (project / "conf" / "experiment" / "quick.yaml").write_text("{train: {duration: 1st}}\n")
    run_git(project, "commit", "-q", "-a", "-m", "later")
    assert sweep.wait() == 0, said(project)
    records = [json.loads((sweep_of(project) / row.path / "provenance.json").read_text()) for row in rows(project)]
    assert {result(project, row)["steps"] for row in rows(project)} == {result(project, rows(project)[0])["steps"]}
    assert {record["modules"]["total"] for record in records} == {rows(project)[0].code}
    assert {record["git"]["commit"] for record in records} == {run_git(project, "rev-parse", "HEAD^")}
    losses = [result(project, row)["metrics"]["val/loss"] for row in rows(project)]
    assert max(losses) < 2.2, "a factor of zero would have learned nothing"


def test_finished_jobs_of_other_code_stay_and_run_again_when_asked(project):
    line = ("-m", "experiment=quick", "model=late", "seed=0,1", "train.duration=1ep")
    assert here(project, *line) == 0
    before = {row.id: (row.code, row.end) for row in rows(project)}
    (project / "parts.py").write_text((project / "parts.py").read_text() + "# edited\n")
    assert here(project, *line) == 0
    assert before == {row.id: (row.code, row.end) for row in rows(project)}
    assert "finished by other code" in said(project)

    assert here(project, *line, "sweep.rerun=changed") == 0
    after = rows(project)
    assert all(row.code != before[row.id][0] and row.attempt == 2 for row in after)
    job = sweep_of(project) / after[0].path
    assert json.loads((job / "result.1.json").read_text())["status"] == "completed"
    assert {"config.1.yaml", "log.1.txt", "checkpoints.1", "metrics.1.jsonl"} <= {path.name for path in job.iterdir()}


def test_a_job_of_a_sweep_is_a_run(project, undisturbed):
    """`resume`, `evaluate` and `explain` take its directory."""
    job = sweep_of(undisturbed) / rows(undisturbed)[0].path
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    job = project / job.relative_to(undisturbed)
    for verb in ("resume", "evaluate", "explain"):
        assert here(project, verb, str(job)) == 0


@pytest.mark.exhaustive
def test_a_second_controller_is_refused_and_a_lost_ledger_is_made_again(project, undisturbed):
    shutil.copytree(undisturbed, project, dirs_exist_ok=True)
    sweep = start(project, *SLOW, "seed=range(0,8)")
    wait_for(running(project))
    assert here(project, *SLOW) == 2
    assert "must not be in progress" in said(project)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait() == 75
    jobs = sweep_of(project)
    (jobs / "ledger.sqlite").unlink()
    ended = {path: path.stat().st_mtime_ns for path in jobs.glob("*/result.json")}
    assert here(project, *SLOW) == 0

    assert ended.items() <= {path: path.stat().st_mtime_ns for path in jobs.glob("*/result.json")}.items()
    assert table(undisturbed) == table(project)


def test_what_is_put_aside_is_never_overwritten(tmp_path):
    for attempt in range(3):
        for name in ("config.yaml", "log.txt", "result.json", ".lock"):
            (tmp_path / name).write_text(str(attempt))
        (tmp_path / "checkpoints").mkdir()
        put_aside(tmp_path, [path.name for path in tmp_path.iterdir()])

    assert [(tmp_path / f"log.{number}.txt").read_text() for number in (1, 2, 3)] == ["0", "1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        *(f"{name}.{number}{end}" for name, end in PUT_ASIDE for number in (1, 2, 3)),
    }


@pytest.mark.exhaustive
def test_a_thousand_jobs_take_as_long_each_as_a_hundred(project):
    """The clock of the ledger: what each hundred of them took."""
    assert here(project, *QUICK, "debug=noop", "seed=range(0,1000)", "log.model_table=false") == 0
    ends = sorted(row.end for row in rows(project))
    hundreds = [ends[i + 99] - ends[i] for i in range(0, 1000, 100)]
    sys.stdout.write(f"seconds for each hundred: {hundreds}\n")

    assert min(hundreds[-3:]) < 1.5 * min(hundreds[:3])
