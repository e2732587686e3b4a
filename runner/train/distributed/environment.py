"""Whether torchrun started this process, as which of how many, and what a config must say then."""

import os
from dataclasses import dataclass


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
