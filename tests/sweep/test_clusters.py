"""Sweeps through submitit and Ray: the same ledger, the same bits and the same report as on one machine."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from runner.config.launcher import OURS

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from project import bits, processes_below, rows, run, said, start, sweep_of, wait_for, write

QUICK = ("-m", "experiment=quick")
FAILS = (*QUICK, "model.fail=none,exception,kill,exit", "train.duration=1ep", "sweep.retry=none")
LONG = (*QUICK, "seed=0,1,2", "train.duration=15ep", "model.pause=0.05")  # 3 s a job
LOCAL, RAY, SLURM = (f"hydra/launcher={name}" for name in ("submitit_local", "ray", "submitit_slurm"))


@pytest.fixture
def project(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of this machine; the folder where it keeps its jobs."""
    programs, state = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        shutil.copy(Path(__file__).parent / "slurm.py", programs / name)
        (programs / name).chmod(0o755)
        text = (programs / name).read_text().replace("/usr/bin/env python", sys.executable)
        (programs / name).write_text(text)
    for environment in (os.environ, sys.modules["project"].ENVIRONMENT):
        monkeypatch.setitem(environment, "PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setitem(environment, "FAKE_SLURM", str(state))
    return state


def jobs_below(folder):
    """The processes that work in a folder, without those of Ray, of which some outlive a driver that was killed."""
    processes = [Path(f"/proc/{number}/cmdline") for number in processes_below(folder)]
    return [text for process in processes if process.exists() and b"ray" not in (text := process.read_bytes())]


@pytest.mark.parametrize("name", OURS)
def test_the_shipped_launchers_and_their_keys_are_checked(name, runner):
    assert runner("check", "-m", f"hydra/launcher={name}", "seed=0,1").status == 0
    wrong = "ray.init.adress=x" if name == "ray" else "array_parallelisms=3"
    right = "ray.init.address" if name == "ray" else "array_parallelism"
    ran = runner("check", "-m", f"hydra/launcher={name}", f"hydra.launcher.{wrong}", "seed=0,1")
    assert (2, True) == (ran.status, f"did you mean `hydra.launcher.{right}`?" in ran.out), ran.out


def test_a_missing_extra_is_named(runner, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "submitit" else find(name, *more))
    assert "pip install 'yaml-experiment-runner[slurm]'" in runner("check", "-m", SLURM, "seed=0,1").out


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
    assert expected[0] == json.loads((here / "result.json").read_text())["weights_sha256"]
    assert expected[3] == (here / "metrics.jsonl").read_text()


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", [LOCAL, RAY])
def test_a_killed_controller_takes_its_jobs_along_and_the_same_line_goes_on(launcher, project, tmp_path):
    killed = start(project, *LONG, launcher)
    wait_for(lambda: any((sweep_of(project) / r.path / "checkpoints").is_dir() for r in rows(project)), 90)
    killed.kill()
    killed.wait()
    wait_for(lambda: not jobs_below(project), 60)
    assert run(project, *LONG, launcher) == 0, said(project)
    assert [("completed", "")] * 3 == [(row.status, row.cause) for row in rows(project)]

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    write(undisturbed)
    assert run(undisturbed, *LONG) == 0
    assert bits(undisturbed) == bits(project)


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", [LOCAL, RAY])
def test_a_signal_lets_jobs_save(launcher, project):
    process = start(project, *LONG, launcher)
    wait_for(lambda: any((sweep_of(project) / r.path / "checkpoints").is_dir() for r in rows(project)), 90)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert "interrupted" in {row.status for row in rows(project)}
    assert run(project, *LONG, launcher) == 0, said(project)


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
    wait_for(lambda: len(list(project.glob("outputs/*/*/queue/*/queued.json"))) == 3, 60)
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
    os.killpg(int((slurm / "100.group").read_text()), signal.SIGKILL)
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
    os.killpg(int((slurm / "100.group").read_text()), signal.SIGUSR2)
    assert process.wait() == 0
    assert 1 == len(list(slurm.glob("*.script")))
    assert (job / "result.1.json").exists()
    assert json.loads((job / "result.json").read_text())["status"] == "completed"
