"""A process that has imported everything, and forks a child for each command: a run without seconds of start-up.

Reads JSON lines `{"argv": [...], "log": path, "flag": path}`; says the child's id, then its exit status. The child sets
the byte of the file `flag` to 1 when its training begins, and to 2 while a checkpoint is being written.
"""

import json
import mmap
import os
import sys
import traceback
from pathlib import Path

import tensorboardX
import torch

from runner.__main__ import main
from runner.experiment import examine, run
from runner.experiment.record import provenance
from runner.train import loop
from runner.train.checkpoint import Checkpoints
from tests.support import say

WARM = (tensorboardX, examine, run)  # imported for the children


def child(argv, log, flag):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    with Path(flag).open("r+b") as file:
        state = mmap.mmap(file.fileno(), 1)
    write, train = Checkpoints._write, loop.fit

    def watched_write(self, *args):
        state[0] = 2
        write(self, *args)
        state[0] = 1

    def watched_fit(run):
        state[0] = 1
        train(run)

    Checkpoints._write, loop.fit = watched_write, watched_fit
    return main(argv)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()  # imports torch._dynamo, a second
    provenance.hash_modules(Path.cwd())  # their hashes now: somebody may edit them while we serve
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        Path(order["flag"]).write_bytes(b"\0")
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                status = child(**order)
            except BaseException:  # noqa: BLE001  said to whoever reads the log
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        say(pid)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))
