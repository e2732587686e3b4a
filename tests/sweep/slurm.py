#!/usr/bin/env python
"""A SLURM of one machine, as far as submitit speaks to one: sbatch, srun, sacct, scancel, scontrol by its own name.

The folder `FAKE_SLURM` has a file for each job: its process group, and its state once it has ended.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
SHELL = 'bash "$1" && state=COMPLETED || state=FAILED; [ -e "$2.state" ] || echo $state > "$2.state"'


def begin(number, script):
    """Run a batch script in a session of its own, which outlives whoever asked for it."""
    names = ("JOB_ID", "NTASKS", "JOB_NUM_NODES", "NODEID", "PROCID", "LOCALID")
    environment = {f"SLURM_{name}": value for name, value in zip(names, (str(number), *"11000"), strict=True)}
    environment["SLURM_JOB_NODELIST"] = socket.gethostname()
    job = STATE / str(number)
    with (STATE / f"{number}.out").open("a") as out:
        process = subprocess.Popen(
            ["sh", "-c", SHELL, "sh", script, str(job)],
            env=os.environ | environment,
            start_new_session=True,
            stdout=out,
            stderr=out,
        )
    (STATE / f"{number}.group").write_text(str(process.pid))
    (STATE / f"{number}.script").write_text(script)


def sbatch(script):
    number = 100 + len(list(STATE.glob("*.script")))
    begin(number, script)
    sys.stdout.write(f"Submitted batch job {number}\n")


def srun(*argv):
    words, files = list(argv), {}
    while words[0].startswith("-"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            files[option] = words.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    for handle, name in ((1, "--output"), (2, "--error")):
        os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
    os.execvp(words[0], words)


def sacct(*argv):
    sys.stdout.write("JobID|State|NodeList\n")
    for number in (argv[i + 1] for i, word in enumerate(argv) if word == "-j"):
        ended = STATE / f"{number}.state"
        state = ended.read_text().strip() if ended.exists() else "RUNNING"
        sys.stdout.write(f"{number}|{state}|here\n")


def scancel(number, *argv):
    group = int((STATE / f"{number}.group").read_text())
    if argv:
        os.killpg(group, getattr(signal, f"SIG{argv[-1].removeprefix('SIG')}"))
        return
    (STATE / f"{number}.state").write_text("CANCELLED by 0")
    os.killpg(group, signal.SIGKILL)


def scontrol(_requeue, number):
    begin(number, (STATE / f"{number}.script").read_text())


if __name__ == "__main__":
    globals()[Path(sys.argv[0]).name](*sys.argv[1:])
