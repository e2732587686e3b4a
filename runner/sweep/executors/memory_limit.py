"""How much memory processes hold, how much is left, and whether the kernel has killed for want of it. Linux's /proc.

Elsewhere nothing is known, and so nothing is killed for its memory.
"""

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


PROC = Path("/proc")


HUGE, COLLAPSE = 2 << 20, 25  # the size of a huge page; MADV_COLLAPSE of Linux 6.1 and later


def known() -> bool:
    """Whether this system says how much memory a process holds."""
    return (PROC / "self" / "statm").exists()


def groups() -> dict[int, list[int]]:
    """The processes of each process group; about 10 µs a process of the machine."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir(PROC) if known() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
                found.setdefault(int(fields[2]), []).append(int(entry.name))
    return found


def join_pages() -> None:
    """Put what this process has allocated into huge pages, where the kernel does that when asked.

    Of 380 MB, 95,000 pages, a fork copies the table and the end of the child frees it: 15 of the 115 ms of processor
    time of a job of noop, 4 with huge pages; and each page that the child writes to costs it a third less. Takes 0.3 s.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):
        for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", (PROC / "self" / "smaps").read_text()):
            start, end = (int(text, 16) for text in area.partition(" ")[0].split("-"))
            start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
            held = re.search(r"^Anonymous: +(\d+) kB", area, re.MULTILINE)
            if start < end and held and int(held[1]) * 1024 > (end - start) // 2:  # no stacks, which are mostly empty
                advise(start, end - start, COLLAPSE)


def resident(leader: int, others: list[int]) -> int:
    """Bytes that a job holds: all of its first process, of the others what they do not share with a file or with it."""
    total = 0
    for pid in (leader, *others):
        with contextlib.suppress(OSError, ValueError):
            _, pages, shared, *_ = map(int, (PROC / str(pid) / "statm").read_text().split())
            total += (pages if pid == leader else pages - shared) * PAGE
    return total


def left() -> tuple[int, int] | None:
    """Bytes that are available, and that there are: of the machine, or of the control group where that has less."""
    try:
        lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        facts = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        smallest = (facts["MemAvailable"], facts["MemTotal"])
    except (OSError, KeyError, ValueError):
        return None
    for folder in _control_groups():
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file "),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        ):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                most = int((folder / limit).read_text())  # `max` is no number: no limit
                stat = (folder / "memory.stat").read_text().splitlines()
                free = next(int(line.removeprefix(cache)) for line in stat if line.startswith(cache))
                smallest = min(smallest, (most - int((folder / used).read_text()) + free, most))
    return smallest


def kills() -> int:
    """How many processes the kernel has killed for memory so far, on this machine or in this control group."""
    most = 0
    files = [(folder / name) for folder in _control_groups() for name in ("memory.events", "memory.oom_control")]
    for file in (PROC / "vmstat", *files):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            most = max(
                most, next(int(x.split()[1]) for x in file.read_text().splitlines() if x.startswith("oom_kill "))
            )
    return most


def _control_groups() -> list[Path]:
    """The folders of this process's control group with something to say about memory, version 2 and version 1."""
    root, found = Path("/sys/fs/cgroup"), [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                found.append(root / controllers / path.lstrip("/"))
    return [folder for folder in dict.fromkeys(found) if (folder / "memory.stat").exists()]


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, or its control group's quota where that is less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        count = min(count, -(-int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            count = min(count, -(-quota_us // int((root / "cpu" / "cpu.cfs_period_us").read_text())))
    return max(count, 1)
