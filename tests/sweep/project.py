"""A user's project whose model ends its process in many ways, and what a sweep of it leaves."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from runner.sweep.ledger import Ledger
from tests.support import read_result, write_files

ROOT = Path(__file__).parents[2]
PARTS = '''
import ctypes
import os
import signal
import sys
import time

import torch
from torch import nn


class Net(nn.Module):
    """Fails as `fail` says in training step `at`; with `pause` it takes so many seconds a step."""

    def __init__(self, fail="none", at=3, pause=0.0, once=""):
        super().__init__()
        self.fc, self.dropout = nn.Linear(64, 10), nn.Dropout(0.2)
        self.fail, self.at, self.pause, self.once, self.count = fail, at, pause, once, 0

    def forward(self, x):
        if self.training and x.device.type != "meta":
            self.count += 1
            time.sleep(self.pause)
            if self.count == self.at:
                self.end()
        return self.fc(self.dropout(x.flatten(1)))

    def end(self):
        if self.once:
            if os.path.exists(self.once):
                return
            open(self.once, "w").close()
        how = self.fail
        if how == "exception":
            raise RuntimeError("on purpose")
        if how == "exit":
            sys.exit(3)
        if how == "exit0":
            os._exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "crash":
            ctypes.string_at(0)
        if how == "fault":
            with torch.no_grad():
                self.fc.weight.fill_(float("nan"))
        if how == "hang":
            while True:
                time.sleep(1)
        if how == "memory":
            held = []
            while True:
                held.append(b"x" * (50 << 20))


class Late(nn.Module):
    """Imports another module of the project in its first training step, and not before."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        if self.training and x.device.type != "meta":
            import late

            return self.fc(x.flatten(1)) * late.FACTOR
        return self.fc(x.flatten(1))
'''
FILES = {
    "parts.py": PARTS,
    "late.py": "FACTOR = 1.0\n",
    "conf/model/net.yaml": "{_target_: parts.Net, fail: none, at: 3, pause: 0.0, once: ''}",
    "conf/model/late.yaml": "{_target_: parts.Late}",
    "conf/experiment/quick.yaml": """
# @package _global_
defaults:
  - override /dataset: digits
  - override /model: net
  - override /device: cpu
  - override /log: quiet
name: quick
dataset: {val_fraction: 0.2, limit: 200}
train: {duration: 2ep, checkpoint_every: 1st, objective: val/loss, mode: min}
optimizer: {lr: 0.1}
""",
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def write(folder):
    """Put the project's files into a folder."""
    write_files(folder, FILES)


def start(folder, *argv, **more):
    """`python -m runner …` in a process of its own; its output goes to `said.txt`."""
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *argv], cwd=folder, env=ENVIRONMENT, stdout=said, stderr=said, **more
        )


def run(folder, *argv):
    """The exit status of the whole command."""
    return start(folder, *argv).wait()


def here(folder, *argv, stdout=None):
    """The same in this process, which has imported torch already; what it says goes to `said.txt`, or to `stdout`."""
    from runner.__main__ import main

    before = Path.cwd(), list(sys.path)
    os.chdir(folder)
    try:
        with (folder / "said.txt").open("a") as said, redirect_stdout(stdout or said), redirect_stderr(said):
            return main(list(argv))
    finally:
        os.chdir(before[0])
        sys.path[:] = before[1]
        for name in ("parts", "late"):
            sys.modules.pop(name, None)


def said(folder):
    """All that commands have said here."""
    return (folder / "said.txt").read_text()


def sweep_of(folder):
    """The folder of the only sweep."""
    (sweep,) = (path for path in folder.glob("outputs/*/*") if (path / "ledger.sqlite").exists())
    return sweep


def rows(folder):
    """The rows of the only sweep; none before there is a ledger."""
    try:
        with Ledger(sweep_of(folder), read_only=True) as ledger:
            return ledger.jobs()
    except (ValueError, sqlite3.OperationalError):  # no table in it yet
        return []


def wait_for(condition, seconds=60):
    """Until it holds; the value that it then has."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)
    return value


def result(folder, row):
    """A job's `result.json`."""
    return read_result(sweep_of(folder) / row.path)


def bits(folder):
    """What may not differ between two sweeps, by point: the weights' hash, the metrics, the log lines."""
    found = {}
    for row in rows(folder):
        job = sweep_of(folder) / row.path
        ended = result(folder, row)
        lines = (job / "metrics.jsonl").read_text()
        found[tuple(row.overrides)] = (ended["weights_sha256"], ended["metrics"], ended["objective"], lines)
    return found


def processes_below(folder):
    """The processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cwd").readlink() == folder:
                    found.append(int(process.name))
            except OSError:
                continue
    return found
