"""Whether torchrun started this process, as which of how many, and what a config must say then."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from runner.errors import Mistake

PROCESSES = ("ddp", "fsdp")  # the values of `device.parallel` that train with several processes


@dataclass(frozen=True)
class Place:
    """What torchrun tells a process: its number and their count, over all machines and on this one."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    machine: int


def place() -> Place | None:
    """The place of this process; None where torchrun did not start it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(name not in os.environ for name in names):
        return None
    return Place(*(int(os.environ[name]) for name in names))


def command() -> str:
    """What started this process, up to `-m runner`."""
    here = place()
    return "python" if here is None else f"torchrun --nproc-per-node {here.local_world}"


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
        return [Mistake("device.parallel", rule, parallel, remedy=remedy)]
    if parallel not in PROCESSES and here is not None:
        rule = f"must be ddp or fsdp under torchrun: its {here.world} processes would train {here.world} copies"
        remedy = f"`device.parallel=ddp`, or without torchrun: python -m runner {line}".rstrip()
        return [Mistake("device.parallel", rule, parallel, remedy=remedy, suggestion="ddp")]
    return []


def in_a_sweep(parallel: str, processes: int) -> list[Mistake]:
    """What `device.parallel` of a sweep's job and the number of its `processes` do not agree in."""
    if parallel in PROCESSES and processes == 1:
        rule = "needs jobs of several processes"
        return [Mistake("device.parallel", rule, parallel, remedy="`sweep.processes=2` gives each job two of them")]
    if parallel not in PROCESSES and processes > 1:
        rule = f"must be ddp or fsdp with sweep.processes={processes}, which would train {processes} copies"
        return [Mistake("device.parallel", rule, parallel, remedy="`device.parallel=ddp`", suggestion="ddp")]
    return []


def not_here(what: str, remedy: str) -> Mistake:
    """What to say of a command that is for one process."""
    here = place()
    count = 0 if here is None else here.world
    rule = f"is for one process, and torchrun has started {count}"
    return Mistake(what, rule, where=f"argument `{what}`", remedy=remedy)
