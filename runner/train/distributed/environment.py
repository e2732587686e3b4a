"""Environment of torchrun: rank and world size of this process, over all machines and on this one."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class RankPlace:
    """Rank and world size from torchrun, over all machines and on this one."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    machine: int


def read_place() -> RankPlace | None:
    """Read the place of this process; return None if torchrun did not start it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(name not in os.environ for name in names):
        return None
    return RankPlace(*(int(os.environ[name]) for name in names))


def describe_command() -> str:
    """Return the command that starts such a process, up to `-m runner`."""
    here = read_place()
    return "python" if here is None else f"torchrun --nproc-per-node {here.local_world}"
