"""Windows, simulated: every module is imported, and a check works, without what only POSIX has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
POSIX = ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "syslog")
WITHOUT = """
import os, signal, sys
import hydra, multiprocessing, subprocess, torch, torchvision
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "termios"):
            raise ImportError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refusing())
for name in ("fcntl", "resource", "termios"):
    sys.modules.pop(name, None)
if sys.argv[1] == "all":
    names = "register_at_fork O_NOFOLLOW O_NONBLOCK O_CLOEXEC pread pwrite sched_getaffinity sysconf nice killpg"
    for name in names.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in ("SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "setitimer"):
        delattr(signal, name)
import importlib, pkgutil, runner
for module in pkgutil.walk_packages(runner.__path__, "runner."):
    if not module.name.endswith("__main__") and ".shipped" not in module.name:
        importlib.import_module(module.name)
from runner.__main__ import main
print(main(["check"]), main(["train.duration=1st", "log=quiet", "model=mlp"]))
"""


def test_no_module_needs_posix_to_be_imported():
    """They are imported in the functions that use them."""
    found = re.compile(rf"^(?:import|from) ({'|'.join(POSIX)})\b", re.MULTILINE)
    files = [path for folder in ("runner", "models", "datasets") for path in (ROOT / folder).rglob("*.py")]
    assert [(path.name, names) for path in files if (names := found.findall(path.read_text()))] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("lacks", "expected"), [("modules", "0 0"), ("all", "0 2")])
def test_a_check_works_without_posix(lacks, expected, tmp_path):
    """Without `flock` a run is locked by filelock; where files cannot be written at places, a run is refused."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, lacks]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert (done.stdout.splitlines()[-1:], done.stderr if done.returncode else "") == ([expected], "")
