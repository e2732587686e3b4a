"""Preflight of several processes: mistakes that only torchrun shows."""

import shlex
from collections.abc import Sequence

from runner.config.schema import PROCESSES
from runner.core.errors import Mistake
from runner.train.distributed.environment import place


def mistakes(parallel: str, argv: Sequence[str]) -> list[Mistake]:
    """What `device.parallel` and the way this process was started do not agree in.

    Args:
        parallel: the value of `device.parallel`.
        argv: the command line, for the line to type.
    """
    here, line = place(), shlex.join(argv)
    if parallel in PROCESSES and here is None:
        remedy = f"torchrun --nproc-per-node 2 -m runner {line}".rstrip()
        rule = "needs processes that torchrun starts"
        return [Mistake("device.parallel", rule, parallel, remedy=remedy, kind="missing")]
    if parallel not in PROCESSES and here is not None:
        rule = f"must be ddp or fsdp under torchrun: its {here.world} processes would train {here.world} copies"
        remedy = f"`device.parallel=ddp`, or without torchrun: python -m runner {line}".rstrip()
        return [Mistake("device.parallel", rule, parallel, remedy=remedy, suggestion="ddp", kind="conflict")]
    return []


def in_a_sweep(parallel: str, processes: int) -> list[Mistake]:
    """What `device.parallel` of a sweep's job and the number of its `processes` do not agree in."""
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


def not_here(what: str, remedy: str) -> Mistake:
    """What to say of a command that is for one process."""
    here = place()
    count = 0 if here is None else here.world
    rule = f"is for one process, and torchrun has started {count}"
    return Mistake(what, rule, where=f"argument `{what}`", remedy=remedy, kind="conflict")
