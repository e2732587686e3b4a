"""Real processes killed at random instants: whatever they had committed is there, and they end as if never killed."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.experiment.crash.project import HARD, differences, ending, write
from tests.support import read_result

ROOT = Path(__file__).parents[3]
OFTEN = (HARD, "train.checkpoint_every=1st", "train.duration=20ep")  # 80 steps, each saved

SECONDS = 0.4  # at most, from the beginning of training to the kill


class Warm:
    """Commands served by forks of one warm process."""

    def __init__(self, folder):
        self.folder, self.flag, self.log = folder, folder / "flag", folder / "child.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.experiment.crash.warm"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *argv):
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(self.log), "flag": str(self.flag)}) + "\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())

    def status(self):
        return int(self.process.stdout.readline())

    def wait_for_training(self):
        while self.state() == 0 and Path(f"/proc/{self.child}").exists():
            time.sleep(0.001)

    def state(self):
        return self.flag.read_bytes()[0]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    write(folder)
    served = Warm(folder)
    yield served
    served.close()


@pytest.fixture(scope="module")
def whole(warm):
    """The run that nobody killed."""
    folder = warm.folder / "outputs" / "hard" / "whole"
    folder.mkdir(parents=True)
    warm.start(*OFTEN, f"run={folder}")
    assert warm.status() == 0, warm.log.read_text()
    return folder


def check_committed(folder):
    """What stands in the manifest is whole, and nobody's temporary file is taken for it."""
    from runner.train.checkpoint import Checkpoints

    told = []
    checkpoints = Checkpoints(folder / "checkpoints", warn=told.append)
    if not checkpoints.entries():
        return 0
    step = checkpoints.load()["progress"]["step"]
    assert checkpoints.newest().step == step
    assert all("never committed" in text or "manifest.json is missing" in text for text in told)
    return step


def killed(warm, whole, count, seed):
    """Kill runs until `count` are killed; how many of them while they saved."""
    draw, expected = random.Random(seed), whole
    done = saving = number = 0
    while done < count:
        folder = warm.folder / "outputs" / "hard" / f"killed{number}"
        folder.mkdir()
        number += 1
        steps = [0]
        while True:
            warm.start(*([*OFTEN, f"run={folder}"] if len(steps) == 1 else ["resume", str(folder)]))
            if draw.random() < 0.9:
                warm.wait_for_training()
            time.sleep(draw.uniform(0, SECONDS))
            if draw.random() < 0.3:  # an instant inside a save
                deadline = time.monotonic() + 1
                while warm.state() != 2 and time.monotonic() < deadline:
                    pass
                time.sleep(draw.uniform(0, 0.002))
            if done < count:
                with contextlib.suppress(ProcessLookupError):  # it was done before
                    os.kill(warm.child, signal.SIGKILL)
            status = warm.status()
            if status == -signal.SIGKILL:
                done += 1
                saving += warm.state() == 2
                steps.append(check_committed(folder))
                assert steps[-1] >= steps[-2], "nothing committed is lost"
            else:
                assert status == 0, warm.log.read_text()[-2000:]
                break
            if not (folder / "config.yaml").exists():
                steps = [0]
        different = differences(ending(expected), ending(folder))
        assert different == [], f"{folder}, kill {done}: killed when it had committed steps {steps[1:]}: {different}"
        shutil.rmtree(folder)
    return saving


def test_killed_runs_end_as_if_never_killed(warm, whole, seed):
    """Twelve kills, some of them inside a save."""
    assert killed(warm, whole, 12, seed) >= 1


@pytest.mark.exhaustive
def test_a_thousand_killed_runs_end_as_if_never_killed(warm, whole, seed):
    saving = killed(warm, whole, 1000, seed)

    sys.stdout.write(f"kills inside a save: {saving}\n")
    assert saving >= 300


def asked_to_stop(warm, count, seed):
    draw, slowest = random.Random(seed), 0.0
    for number in range(count):
        folder = warm.folder / "outputs" / "hard" / f"stopped{number}"
        folder.mkdir()
        warm.start(HARD, "train.duration=100ep", f"run={folder}")  # no rhythm saves each step
        warm.wait_for_training()
        time.sleep(draw.uniform(0, SECONDS))
        before = time.monotonic()
        os.kill(warm.child, signal.SIGTERM)
        assert warm.status() == 75, warm.log.read_text()[-2000:]
        slowest = max(slowest, time.monotonic() - before)
        result = read_result(folder)
        saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True) if result["steps"] else None
        assert saved is None or saved["progress"]["step"] == result["steps"]
        shutil.rmtree(folder)
    return slowest


def test_asked_to_stop_it_saves_and_ends_at_once(warm, seed):
    """SIGTERM at random instants of training: a checkpoint of the very step, exit 75, within 5 seconds."""
    assert asked_to_stop(warm, 5, seed) < 5


@pytest.mark.exhaustive
def test_asked_to_stop_at_200_instants_it_saves_and_ends_at_once(warm, seed):
    slowest = asked_to_stop(warm, 200, seed)

    sys.stdout.write(f"slowest: {slowest:.2f} s\n")
    assert slowest < 5


def test_a_second_ctrl_c_leaves_at_once_and_loses_nothing_committed(warm):
    folder = warm.folder / "outputs" / "hard" / "twice"
    folder.mkdir(parents=True)
    warm.start(*OFTEN, "train.duration=1000ep", f"run={folder}")
    while not (folder / "checkpoints" / "manifest.json").exists():
        time.sleep(0.01)
    os.kill(warm.child, signal.SIGINT)
    os.kill(warm.child, signal.SIGINT)

    assert warm.status() == 130
    assert check_committed(folder) > 0


def test_a_second_process_on_a_run_is_refused(warm):
    folder = warm.folder / "outputs" / "hard" / "shared"
    folder.mkdir(parents=True)
    other = Warm(warm.folder)  # takes seconds, in which the run would end
    warm.start(*OFTEN, "train.duration=1000ep", f"run={folder}")
    warm.wait_for_training()
    other.start("resume", str(folder))
    status = other.status()
    other.close()
    os.kill(warm.child, signal.SIGKILL)
    warm.status()

    assert status == 2
    assert "must not be in progress" in warm.log.read_text()
