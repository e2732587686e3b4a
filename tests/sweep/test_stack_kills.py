"""A vectorized sweep that is killed at any instant: nothing is lost, nothing happens twice."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import read_result
from tests.sweep import project

KILLS = int(os.environ.get("TEST_KILLS", "50"))
LINE = (
    "-m",
    "experiment=digits_mlp",
    "log=quiet",
    "device.type=cpu",
    "dataset.limit=300",
    "train.duration=60ep",
    "train.evaluate_every=2ep",
    "train.checkpoint_every=1ep",
    "optimizer.lr=0.02,0.1",
    "seed=0,1,2",
    "sweep.vectorize=on",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, which nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert project.run(folder, *LINE) == 0, project.said(folder)
    return folder


def read_stacks(job: Path) -> list[tuple[int, list[str]]]:
    """Where each stack of a job began, and with which jobs; none where it trained alone."""
    stacks = json.loads((job / "provenance.json").read_text()).get("stacks", [])
    return [(stack["step"], sorted(stack["jobs"])) for stack in stacks]


def read_weights(job: Path) -> dict[str, torch.Tensor]:
    """The final weights of a job."""
    saved: dict[str, Any] = torch.load(job / "checkpoints" / "last.pt", weights_only=True)
    return dict(saved["model"])


def kill_something(process: Any, folder: Path, draw: random.Random) -> None:
    """Kill the controller, one of its processes, or all at once."""
    others = [pid for pid in project.processes_below(folder) if pid != process.pid]
    match draw.choice(("controller", "other", "all")):
        case "controller":
            targets = [process.pid]
        case "other":
            targets = draw.sample(others, min(1, len(others))) or [process.pid]
        case _:
            targets = [process.pid, *others]
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def run_with_kills(folder: Path, draw: random.Random, kills: int) -> int:
    """Run the line again and again until the sweep is done; return how often something was killed."""
    done = 0
    for _ in range(100):
        process = project.start(folder, *LINE)
        ends = time.monotonic() + draw.uniform(1, 12)
        while process.poll() is None and (done >= kills or time.monotonic() < ends):
            time.sleep(0.02)
        if process.poll() is None:
            kill_something(process, folder, draw)
            done += 1
        if process.wait() == 0:
            break
        project.wait_for(lambda: not project.processes_below(folder))
    return done


@pytest.mark.exhaustive
def test_a_vectorized_sweep_that_is_killed_ends_as_one_that_never_was(
    undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    """Each job has each log line once, its weights agree to 1e-4, and to the bit where its stacks were the same."""
    draw, left, same = random.Random(seed), KILLS, 0
    rows = {tuple(row.overrides): row for row in project.rows(undisturbed)}
    while left > 0:
        folder = tmp_path / str(left)
        folder.mkdir()
        left -= max(1, run_with_kills(folder, draw, min(left, 6)))
        ended = {tuple(row.overrides): row for row in project.rows(folder)}
        assert ended.keys() == rows.keys()
        assert {row.status for row in ended.values()} == {"completed"}, project.said(folder)
        for point, row in ended.items():
            job, whole = project.sweep_of(folder) / row.path, project.sweep_of(undisturbed) / rows[point].path
            logged = [json.loads(line)["step"] for line in (job / "metrics.jsonl").read_text().splitlines()]
            expected = [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
            assert logged == expected, (point, job)
            ours, theirs = read_weights(job), read_weights(whole)
            for name, weight in ours.items():
                torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-4, msg=f"{job}: {name}")
            if read_stacks(job) and all(jobs == read_stacks(whole)[0][1] for _, jobs in read_stacks(job)):
                same += 1
                assert read_result(job)["weights_sha256"] == read_result(whole)["weights_sha256"], job
    assert same > 0, "no job went on in the stack that it began in"
