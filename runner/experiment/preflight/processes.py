"""Preflight of several processes: `device.parallel` compared with torchrun and `sweep.processes`."""

import shlex
from collections.abc import Sequence

from runner.config.schema import PROCESSES
from runner.core.errors import Mistake
from runner.train.distributed.environment import read_place


def check_processes(parallel: str, argv: Sequence[str]) -> list[Mistake]:
    """Check that `device.parallel` agrees with the way this process was started.

    Args:
        parallel: the value of `device.parallel`.
        argv: the command line, for the line to type.
    """
    here, line = read_place(), shlex.join(argv)
    if parallel in PROCESSES and here is None:
        remedy = f"torchrun --nproc-per-node 2 -m runner {line}".rstrip()
        rule = "needs processes that torchrun starts"
        return [Mistake("device.parallel", rule, parallel, remedy=remedy, kind="missing")]
    if parallel not in PROCESSES and here is not None:
        rule = f"must be ddp or fsdp under torchrun: its {here.world} processes would train {here.world} copies"
        remedy = f"`device.parallel=ddp`, or without torchrun: python -m runner {line}".rstrip()
        return [Mistake("device.parallel", rule, parallel, remedy=remedy, suggestion="ddp", kind="conflict")]
    return []


def check_sweep_processes(parallel: str, processes: int) -> list[Mistake]:
    """Check that `device.parallel` of a sweep's job agrees with its number of `processes`."""
    if parallel in PROCESSES and processes == 1:
        rule = "needs jobs of several processes"
        return [
            Mistake(
                "device.parallel",
                rule,
                parallel,
                remedy="`sweep.processes=2` gives each job two of them",
                kind="missing",
            )
        ]
    if parallel not in PROCESSES and processes > 1:
        rule = f"must be ddp or fsdp with sweep.processes={processes}, which would train {processes} copies"
        return [
            Mistake(
                "device.parallel", rule, parallel, remedy="`device.parallel=ddp`", suggestion="ddp", kind="conflict"
            )
        ]
    return []


def make_torchrun_mistake(what: str, remedy: str) -> Mistake:
    """Make the mistake of a single-process command that torchrun has started."""
    here = read_place()
    count = 0 if here is None else here.world
    rule = f"is for one process, and torchrun has started {count}"
    return Mistake(what, rule, where=f"argument `{what}`", remedy=remedy, kind="conflict")
