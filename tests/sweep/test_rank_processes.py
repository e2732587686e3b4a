"""Jobs of several processes: they take several slots, and one that fails on any rank has failed."""

import json
import signal
import subprocess
import sys

import pytest

from tests.sweep.project import ENVIRONMENT, here, processes_below, result, rows, said, start, sweep_of, wait_for

DDP = ("experiment=quick", "device.parallel=ddp", "train.checkpoint_every=1st", "+model.rank=1")
NET = '''
import os

import parts


class Net(parts.Net):
    """Fails on one rank only."""

    def __init__(self, rank, **arguments):
        super().__init__(**arguments)
        self.rank = rank

    def end(self):
        if os.environ.get("RANK") == str(self.rank):
            super().end()
'''


@pytest.fixture
def project(project):
    (project / "ranked.py").write_text(NET)
    (project / "conf" / "model" / "net.yaml").write_text("{_target_: ranked.Net, fail: none, at: 3, pause: 0.0}")
    yield project
    sys.modules.pop("ranked", None)


def test_what_fails_on_one_rank_has_failed_and_the_others_are_done(project):
    line = ("-m", *DDP, "sweep.processes=2", "sweep.slots=2", "model.fail=exception,none,kill")
    assert here(project, *line) == 1, said(project)
    found = {row.values["model.fail"]: row for row in rows(project)}

    assert {name: row.cause for name, row in found.items()} == {"none": "", "exception": "exception", "kill": "killed"}
    assert "rank 1 failed: RuntimeError: on purpose" in found["exception"].error
    assert processes_below(project) == []
    assert max(row.slot for row in found.values()) == 0, "two slots are the two processes of one job"


def test_processes_and_what_they_are_for_go_together(project):
    assert here(project, "check", "-m", *DDP, "seed=0,1") == 2
    assert here(project, "check", "-m", "experiment=quick", "sweep.processes=2", "seed=0,1") == 2
    assert "`sweep.processes=2` gives each job two of them" in said(project)
    assert "which would train 2 copies" in said(project)


@pytest.mark.exhaustive
def test_a_job_of_two_ranks_has_the_bits_of_torchrun_also_after_ctrl_c(project):
    line = ("-m", *DDP, "sweep.processes=2", "seed=0,1", "train.duration=12ep", "model.pause=0.05")
    sweep = start(project, *line)
    wait_for(lambda: (project / "outputs").exists() and any(project.glob("outputs/*/*/*/checkpoints/step*")))
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    assert here(project, *line) == 0, said(project)
    first = next(row for row in rows(project) if row.values["seed"] == 0)
    record = json.loads((sweep_of(project) / first.path / "provenance.json").read_text())
    assert record["resumed"][0]["exact"]

    run = ["--standalone", "--nproc-per-node", "2", "-m", "runner", *DDP, "seed=0", "train.duration=12ep", "name=alone"]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *run], cwd=project, env=ENVIRONMENT, check=True)
    (alone,) = project.glob("outputs/alone/*/result.json")
    assert json.loads(alone.read_text())["weights_sha256"] == result(project, first)["weights_sha256"]


@pytest.mark.exhaustive
def test_a_rank_that_hangs_is_a_timeout_and_takes_the_others_along(project):
    line = ("-m", *DDP, "sweep.processes=2", "seed=0", "model.fail=hang", "sweep.timeout=15", "sweep.retry=none")
    assert here(project, *line) == 1, said(project)
    (row,) = rows(project)
    assert ("failed", "timeout") == (row.status, row.cause)
    assert processes_below(project) == []


@pytest.mark.exhaustive
def test_a_killed_controller_takes_all_ranks_along_and_the_same_line_goes_on(project):
    line = ("-m", *DDP, "sweep.processes=2", "seed=0", "train.duration=12ep", "model.pause=0.05")
    sweep = start(project, *line)
    wait_for(lambda: (project / "outputs").exists() and any(project.glob("outputs/*/*/*/checkpoints/step*")), 120)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not processes_below(project), 20)
    assert here(project, *line) == 0, said(project)
    (row,) = rows(project)
    record = json.loads((sweep_of(project) / row.path / "provenance.json").read_text())
    assert [True] == [one["exact"] for one in record["resumed"]]
    undisturbed = result(project, row)["weights_sha256"]
    assert here(project, *line, "sweep.id=again") == 0
    (again,) = project.glob("outputs/*/again/0_*/result.json")
    assert json.loads(again.read_text())["weights_sha256"] == undisturbed
