"""A process that has imported everything, and forks the ranks of a command as torchrun would start them.

Reads JSON lines `{"argv": [...], "world": 2, "log": path}`; says the ranks' exit statuses as a JSON list. `log`, with
the rank's number after it, gets what the rank prints. A world of 0 is one process without torchrun. With `"kill":
[rank, step, signal]` that rank sends itself that signal in that step, and the ranks agree about signals in each.
"""

import itertools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import tensorboardX
import torch
from torch.distributed import TCPStore
from torch.nn.parallel import DistributedDataParallel

from runner.__main__ import main
from runner.experiment import examine, worker_rank
from runner.experiment.record import provenance
from runner.train.distributed import process_group
from tests.support import say

WARM = (tensorboardX, examine, worker_rank, DistributedDataParallel)  # imported for the children


def rank_of(number, world, port, argv, log, kill):
    handle = os.open(f"{log}{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.path.insert(0, str(Path.cwd()))
    if world:
        os.environ |= {
            "RANK": str(number),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "fleet",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    if kill:
        process_group.AGREE_SECONDS = 0
        kill_in_step(*kill[1:], number == kill[0])
    return main(argv)


def kill_in_step(step, name, mine):
    original, done = torch.optim.AdamW.step, itertools.count(1)

    def counted(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if next(done) == step and mine:
            os.kill(os.getpid(), getattr(signal, name))
        return result

    torch.optim.AdamW.step = counted


def forked(*arguments):
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = rank_of(*arguments)
    except BaseException:  # noqa: BLE001  said to whoever reads the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def statuses_of(pids):
    """As torchrun waits: where one ends badly, the others get SIGTERM."""
    ended = {}
    while len(ended) < len(pids):
        pid, status = os.waitpid(-1, 0)
        ended[pid] = os.waitstatus_to_exitcode(status)
        if ended[pid]:
            time.sleep(0.1)
            for other in pids:
                if other not in ended:
                    os.kill(other, signal.SIGTERM)
    return [ended[pid] for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    torch.optim.AdamW([parameter]).step()  # imports torch._dynamo, a second
    provenance.hash_modules(Path.cwd())  # their hashes now: somebody may edit them while we serve
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        os.chdir(order["folder"])
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun holds it, not a rank
        ranks, rest = range(max(1, order["world"])), [order[name] for name in ("argv", "log", "kill")]
        say(json.dumps(statuses_of([forked(rank, order["world"], store.port, *rest) for rank in ranks])))
