"""Sweeps through submitit and Ray: the same ledger, the same bits and the same report as on one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.config.launchers import SubmititLauncher
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors.submitit_cluster import SlurmExecutor
from runner.sweep.interfaces import JobSpec
from runner.sweep.launcher_settings import OURS
from tests.support import read_result
from tests.sweep.project import ENVIRONMENT, bits, processes_below, rows, run, said, start, sweep_of, wait_for, write

QUICK = ("-m", "experiment=quick")
FAILS = (*QUICK, "model.fail=none,exception,kill,exit", "train.duration=1ep", "sweep.retry=none")
LONG = (*QUICK, "seed=0,1,2", "train.duration=15ep", "model.pause=0.05")  # 3 s a job
LOCAL, RAY, SLURM = (f"hydra/launcher={name}" for name in ("submitit_local", "ray", "submitit_slurm"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of this machine; the folder where it keeps its jobs."""
    programs, state = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol"):
        shutil.copy(Path(__file__).parent / "slurm.py", programs / name)
        (programs / name).chmod(0o755)
        text = (programs / name).read_text().replace("/usr/bin/env python", sys.executable)
        (programs / name).write_text(text)
    for environment in (os.environ, ENVIRONMENT):
        monkeypatch.setitem(environment, "PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setitem(environment, "FAKE_SLURM", str(state))
    return state


def said_to_slurm(*command):
    """Give one of SLURM's commands."""
    subprocess.run(command, env=ENVIRONMENT, check=True)


def queued(folder):
    """What has been submitted and may run, as submitit notes it."""
    return sorted(folder.glob("outputs/*/*/queue/*/*_submitted.pkl"))


def resumed(folder, row):
    """Whether a job went on from a checkpoint, each time exactly."""
    record = json.loads((sweep_of(folder) / row.path / "provenance.json").read_text())
    return [one["exact"] for one in record.get("resumed", [])]


def has_saved(folder, count=1):
    """Whether so many jobs have a checkpoint."""
    return sum((sweep_of(folder) / row.path / "checkpoints").is_dir() for row in rows(folder)) >= count


@pytest.mark.parametrize("name", OURS)
def test_the_shipped_launchers_and_their_keys_are_checked(name, runner):
    assert runner("check", "-m", f"hydra/launcher={name}", "seed=0,1").status == 0
    wrong = "ray.init.adress=x" if name == "ray" else "array_parallelisms=3"
    right = "ray.init.address" if name == "ray" else "array_parallelism"
    ran = runner("check", "-m", f"hydra/launcher={name}", f"hydra.launcher.{wrong}", "seed=0,1")
    assert (2, True) == (ran.status, f"did you mean `hydra.launcher.{right}`?" in ran.out), ran.out


@pytest.mark.parametrize(("package", "launcher", "extra"), [("submitit", SLURM, "slurm"), ("ray", RAY, "ray")])
def test_a_missing_extra_is_named(package, launcher, extra, runner, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    for ran in (runner("check", "-m", launcher, "seed=0,1"), runner("-m", launcher, "seed=0,1")):
        assert (2, True) == (ran.status, f"pip install 'yaml-experiment-runner[{extra}]'" in ran.out + ran.err)
    assert not Path("outputs").exists()


def test_no_slurm_is_said_before_anything_is_made(runner, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ran = runner("-m", SLURM, "seed=0,1")
    assert (2, True) == (ran.status, "needs SLURM" in ran.err)
    assert not Path("outputs").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", [LOCAL, RAY])
def test_failures_are_told_as_on_one_machine_and_the_rest_has_the_same_bits(launcher, project):
    assert run(project, *FAILS, launcher) == 1
    told = {row.overrides[0].partition("=")[2]: (row.status, row.cause, row.attempt) for row in rows(project)}
    expected = {
        "none": ("completed", "", 1),
        "exception": ("failed", "exception", 1),
        "kill": ("failed", "killed", 1),
        "exit": ("failed", "exit", 1),
    }
    assert expected == told
    assert {row.host for row in rows(project)} != {""}
    report = json.loads((sweep_of(project) / "report.json").read_text())
    assert 3 == len(report["failed"])

    (here,) = (sweep_of(project) / row.path for row in rows(project) if row.status == "completed")
    alone = project / "alone"
    alone.mkdir()
    write(alone)
    run(alone, *QUICK, "model.fail=none", "train.duration=1ep")
    (expected,) = bits(alone).values()
    assert expected[0] == read_result(here)["weights_sha256"]
    assert expected[3] == (here / "metrics.jsonl").read_text()


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", [LOCAL, RAY])
def test_a_killed_controller_takes_its_jobs_along_and_the_same_line_goes_on(launcher, project, tmp_path):
    killed = start(project, *LONG, launcher)
    wait_for(lambda: any((sweep_of(project) / r.path / "checkpoints").is_dir() for r in rows(project)), 90)
    killed.kill()
    killed.wait()
    wait_for(lambda: not processes_below(project), 60)
    assert run(project, *LONG, launcher) == 0, said(project)
    assert [("completed", "")] * 3 == [(row.status, row.cause) for row in rows(project)]

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    write(undisturbed)
    assert run(undisturbed, *LONG) == 0
    assert bits(undisturbed) == bits(project)


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", [LOCAL, RAY])
def test_ctrl_c_at_a_terminal_lets_jobs_save(launcher, project):
    """A terminal sends it to all processes of the command, and not to the controller alone."""
    process = start(project, *LONG, launcher, start_new_session=True)
    wait_for(lambda: has_saved(project), 90)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    ended = {row.status for row in rows(project)}
    assert "interrupted" in ended
    assert "failed" not in ended, said(project)
    assert processes_below(project) == []
    assert run(project, *LONG, launcher) == 0, said(project)
    assert any(resumed(project, row) for row in rows(project))


RANKED = """
import os

import parts


class Net(parts.Net):
    def end(self):
        if os.environ.get("RANK") == "1":
            super().end()
"""


@pytest.mark.exhaustive
def test_a_job_that_fails_on_any_rank_has_failed(project):
    (project / "ranked.py").write_text(RANKED)
    (project / "conf" / "model" / "net.yaml").write_text("{_target_: ranked.Net, fail: none, at: 3, pause: 0.0}")
    line = (*QUICK, LOCAL, "device.parallel=ddp", "sweep.processes=2")
    assert run(project, *line, "model.fail=none,exception,kill") == 1
    found = {row.values["model.fail"]: (row.status, row.cause) for row in rows(project)}
    expected = {"none": ("completed", ""), "exception": ("failed", "exception"), "kill": ("failed", "killed")}
    assert expected == found, said(project)


@pytest.mark.exhaustive
def test_a_search_prunes_jobs_elsewhere(project):
    """What the jobs log is read from their files; a job that lags behind is told by another one."""
    sampler = "sweep.search.sampler={_target_: optuna.samplers.RandomSampler}"
    pruner = "sweep.search.pruner={_target_: optuna.pruners.SuccessiveHalvingPruner, min_resource: 2}"
    line = (*QUICK, LOCAL, sampler, pruner, "sweep.search.trials=6", "optimizer.lr=tag(log, interval(0.0001, 1))")
    assert run(project, *line, "train.duration=30ep", "model.pause=0.03") == 0
    ended = [row.status for row in rows(project)]
    assert (6, {"completed", "pruned"}) == (len(ended), set(ended))


@pytest.mark.exhaustive
def test_jobs_of_slurm_outlive_the_controller_and_are_found_in_the_queue(project, slurm):
    killed = start(project, *LONG, SLURM, "hydra.launcher.partition=gpu")
    wait_for(lambda: len(queued(project)) == 3, 60)
    killed.kill()
    killed.wait()
    assert run(project, *LONG, SLURM) == 0
    assert 3 == len(list(slurm.glob("*.script"))), "no job was submitted again"
    assert ["completed"] * 3 == [row.status for row in rows(project)]
    submissions = [Path((slurm / f"{number}.script").read_text()).read_text() for number in (100, 101, 102)]
    assert all("--partition=gpu" in text for text in submissions)


@pytest.mark.exhaustive
def test_a_lost_node_is_the_machines_fault_and_the_job_goes_on(project, slurm):
    process = start(project, *QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05", SLURM)
    wait_for(lambda: any((sweep_of(project) / r.path / "checkpoints").is_dir() for r in rows(project)), 90)
    (slurm / "100.state").write_text("NODE_FAIL")
    said_to_slurm("scancel", "--signal=KILL", "100")
    assert process.wait() == 1
    assert [("failed", "lost")] == [(row.status, row.cause) for row in rows(project)]
    assert run(project, *QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05", SLURM) == 0


@pytest.mark.exhaustive
def test_a_job_whose_time_is_up_saves_and_is_queued_again(project, slurm):
    """SLURM's signal before the end of the time reaches submitit, which queues the job anew."""
    process = start(project, *QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05", SLURM)
    job = wait_for(lambda: next((sweep_of(project) / r.path for r in rows(project)), None), 60)
    wait_for((job / "checkpoints").is_dir, 90)
    time.sleep(0.3)
    said_to_slurm("scancel", "--signal=USR2", "100")
    assert process.wait() == 0
    assert 1 == len(list(slurm.glob("*.script")))
    assert (job / "result.1.json").exists()
    assert read_result(job)["status"] == "completed"


@pytest.mark.exhaustive
def test_what_the_queue_takes_back_saves_and_goes_on_there(project, slurm):
    """As when jobs of a higher priority come: SIGTERM to all of its processes, and later it begins again."""
    line = (*QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05")
    process = start(project, *line, SLURM)
    wait_for(lambda: has_saved(project), 90)
    said_to_slurm("scontrol", "requeue", "100")
    assert process.wait() == 0, said(project)
    (row,) = rows(project)
    assert (1, "completed", [True]) == (row.attempt, row.status, resumed(project, row))
    assert 1 == len(list(slurm.glob("*.script")))


@pytest.mark.exhaustive
def test_a_job_that_began_anew_goes_on_when_it_is_queued_again(project, slurm):
    line = (*QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05")
    assert run(project, *line) == 0
    parts = project / "parts.py"
    parts.write_text(parts.read_text().replace("Dropout(0.2)", "Dropout(0.3)"))
    process = start(project, *line, SLURM, "sweep.rerun=changed")
    (row,) = rows(project)
    job = sweep_of(project) / row.path
    wait_for(lambda: (job / "checkpoints").is_dir() and (job / "checkpoints.1").is_dir(), 90)
    said_to_slurm("scontrol", "requeue", "100")
    assert process.wait() == 0, said(project)
    assert [True] == resumed(project, row)


@pytest.mark.exhaustive
def test_ctrl_c_takes_back_what_waits_in_the_queue(project, slurm):
    (slurm / "held").touch()
    process = start(project, *LONG, SLURM)
    wait_for(lambda: len(queued(project)) == 3, 60)
    said_to_slurm("scontrol", "release", "101")
    wait_for(lambda: has_saved(project), 90)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert ["CANCELLED by 0", "COMPLETED", "CANCELLED by 0"] == [
        (slurm / f"{number}.state").read_text().strip() for number in (100, 101, 102)
    ]
    assert {"interrupted"} == {row.status for row in rows(project)}
    (slurm / "held").unlink()
    assert run(project, *LONG, SLURM) == 0, said(project)


@pytest.mark.exhaustive
def test_a_cancelled_job_is_a_killed_one(project, slurm):
    line = (*QUICK, "seed=0", "train.duration=15ep", "model.pause=0.05", SLURM)
    process = start(project, *line)
    wait_for(lambda: has_saved(project), 90)
    said_to_slurm("scancel", "100")
    assert process.wait() == 1
    (row,) = rows(project)
    assert ("failed", "killed") == (row.status, row.cause)
    assert "SLURM job 100 ended as CANCELLED" in row.error
    assert run(project, *line) == 0, said(project)
    assert [True] == resumed(project, row), "it had been given the time to save"


@pytest.mark.exhaustive
def test_jobs_in_the_queue_keep_the_code_of_their_submission(project, slurm):
    line = (*QUICK, "model=late", "seed=0,1", SLURM)
    (slurm / "held").touch()
    process = start(project, *line)
    wait_for(lambda: len(queued(project)) == 2, 60)
    process.kill()
    process.wait()
    (project / "late.py").write_text("FACTOR = 2.0\n")
    process = start(project, *line)
    wait_for(lambda: said(project).count("2 jobs, 2 to run") == 2)
    for number in ("100", "101"):
        said_to_slurm("scontrol", "release", number)
    assert process.wait() == 0, said(project)
    assert 2 == len(list(slurm.glob("*.script")))
    (project / "late.py").write_text("FACTOR = 1.0\n")
    alone = project / "alone"
    alone.mkdir()
    write(alone)
    assert run(alone, *line[:-1]) == 0
    assert bits(alone) == bits(project)


def test_what_is_submitted_is_found_whenever_its_controller_was_killed(project, slurm, monkeypatch):
    """There is no moment between the submission and a note of it: SLURM runs nothing that is not noted."""
    (slurm / "held").touch()
    monkeypatch.chdir(project)
    job = JobSpec("id", str(project / "0_id"), "", {"device": {"type": "cpu"}}, [])
    for _ in range(2):
        SlurmExecutor(SubmititLauncher(), CodeSnapshot()).start(job)
    assert 1 == len(list(slurm.glob("*.script")))
    said_to_slurm("scancel", "100")
    SlurmExecutor(SubmititLauncher(), CodeSnapshot()).start(job)
    assert 2 == len(list(slurm.glob("*.script")))


def test_a_job_has_all_of_its_cores_in_its_step(project, slurm, monkeypatch):
    (slurm / "held").touch()
    monkeypatch.chdir(project)
    job = JobSpec("id", str(project / "0_id"), "", {"device": {"type": "cpu"}}, [], cores=6)
    SlurmExecutor(SubmititLauncher(), CodeSnapshot()).start(job)
    script = Path((slurm / "100.script").read_text()).read_text()
    assert script.count("--cpus-per-task=6") == 2, "of sbatch, and of srun, which does not inherit it"


@pytest.mark.exhaustive
def test_a_job_larger_than_every_machine_runs_all_the_same(project):
    assert run(project, *QUICK, RAY, "seed=0", "device.threads=64", "train.duration=1st") == 0, said(project)
