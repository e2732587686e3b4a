#!/usr/bin/env python
"""A SLURM of one machine: sbatch, srun, squeue, sacct, scancel, scontrol, each by its own name, as 22.05 behaves.

The folder `FAKE_SLURM` has for each job its script, its process group, its state: PENDING, RUNNING, how it ended.
A file `held` there keeps new jobs waiting. Signals reach every process of a step, as without cgroups.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
SHELL = 'bash "$1" && state=COMPLETED || state=FAILED; [ "$(cat "$2.state")" = RUNNING ] && echo $state > "$2.state"'
KILL_WAIT = 10.0


def begin(number):
    """Run a batch script in a session of its own, which outlives whoever asked for it."""
    names = ("JOB_ID", "NTASKS", "JOB_NUM_NODES", "NODEID", "PROCID", "LOCALID")
    environment = {f"SLURM_{name}": value for name, value in zip(names, (number, *"11000"), strict=True)}
    environment["SLURM_JOB_NODELIST"] = socket.gethostname()
    job = STATE / number
    say(number, "RUNNING")
    with (STATE / f"{number}.out").open("a") as out:
        process = subprocess.Popen(
            ["sh", "-c", SHELL, "sh", (STATE / f"{number}.script").read_text(), str(job)],
            env=os.environ | environment,
            start_new_session=True,
            stdout=out,
            stderr=out,
        )
    (STATE / f"{number}.group").write_text(str(process.pid))


def say(number, state):
    """Note a state, whole."""
    new = STATE / f"{number}.{os.getpid()}.new"
    new.write_text(state)
    new.replace(STATE / f"{number}.state")


def state(number):
    """The state of a job; empty for one that is not known."""
    file = STATE / f"{number}.state"
    return file.read_text().strip() if file.exists() else ""


def step(number):
    """The processes of a job but its batch script."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            mine = f"SLURM_JOB_ID={number}".encode() in (process / "environ").read_bytes().split(b"\0")
            if process.name.isdigit() and mine and (process / "comm").read_text().strip() not in ("sh", "bash"):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def send(number, name):
    """Signal a job."""
    for pid in step(number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, f"SIG{name.removeprefix('SIG')}"))


def end(number, then):
    """In the background: end a job, with KILL_WAIT seconds to save."""
    asked = step(number)
    if os.fork():
        return
    os.setsid()
    for pid in asked:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + KILL_WAIT
    while step(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    group = STATE / f"{number}.group"
    if group.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group.read_text()), signal.SIGKILL)
    while step(number):
        send(number, "KILL")
    then()


def sbatch(script):
    number = str(100 + len(list(STATE.glob("*.script"))))
    (STATE / f"{number}.script").write_text(script)
    if (STATE / "held").exists():
        say(number, "PENDING")
    else:
        begin(number)
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


def squeue(*argv):
    (jobs,) = (word.removeprefix("--jobs=").split(",") for word in argv if word.startswith("--jobs="))
    known = {number: state(number).partition(" ")[0] for number in jobs if state(number)}
    if len(jobs) == 1 and not known:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    sys.stdout.writelines(f"{number} {told}\n" for number, told in known.items())


def sacct(*argv):
    (number,) = (word.removeprefix("--jobs=") for word in argv if word.startswith("--jobs="))
    sys.stdout.write(f"{state(number)}\n" if state(number) else "")


def scancel(*argv):
    *options, number = argv
    for option in options:
        if option.startswith("--signal="):
            send(number, option.removeprefix("--signal="))
            return
    if "--state=PENDING" in options and state(number) != "PENDING":
        return
    waited = state(number) == "PENDING"
    say(number, "CANCELLED by 0")
    if not waited:
        end(number, lambda: None)


def scontrol(what, number):
    if what == "requeue":
        say(number, "PENDING")
        end(number, lambda: begin(number))
    elif what == "release":
        begin(number)


if __name__ == "__main__":
    globals()[Path(sys.argv[0]).name](*sys.argv[1:])
