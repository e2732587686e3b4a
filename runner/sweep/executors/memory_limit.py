"""Memory that processes hold, memory left, and the kernel's OOM kills, from Linux's /proc.

Elsewhere nothing is known, and so nothing is killed for its memory.
"""

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


PROC = Path("/proc")


HUGE, COLLAPSE = 2 << 20, 25  # the size of a huge page; MADV_COLLAPSE of Linux 6.1 and later


def is_memory_known() -> bool:
    """Return whether this system says how much memory a process holds."""
    return (PROC / "self" / "statm").exists()


def list_process_groups() -> dict[int, list[int]]:
    """Map each process group to its processes; takes about 10 µs per process of the machine."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir(PROC) if is_memory_known() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
                found.setdefault(int(fields[2]), []).append(int(entry.name))
    return found


def join_pages() -> None:
    """Collapse this process's allocated memory into huge pages where the kernel supports it.

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


def measure_resident(leader: int, others: list[int]) -> int:
    """Return the bytes a job holds: all pages of its leader, the unshared pages of the others."""
    total = 0
    for pid in (leader, *others):
        with contextlib.suppress(OSError, ValueError):
            _, pages, shared, *_ = map(int, (PROC / str(pid) / "statm").read_text().split())
            total += (pages if pid == leader else pages - shared) * PAGE
    return total


def measure_available() -> tuple[int, int] | None:
    """Return available and total bytes of the machine or the tightest control group; else None."""
    try:
        lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        facts = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        smallest = (facts["MemAvailable"], facts["MemTotal"])
    except (OSError, KeyError, ValueError):
        return None
    for folder in _find_control_groups():
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


def count_oom_kills() -> int:
    """Count the kernel's OOM kills so far, on this machine or in this control group."""
    most = 0
    files = [(folder / name) for folder in _find_control_groups() for name in ("memory.events", "memory.oom_control")]
    for file in (PROC / "vmstat", *files):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            most = max(
                most, next(int(x.split()[1]) for x in file.read_text().splitlines() if x.startswith("oom_kill "))
            )
    return most


def _find_control_groups() -> list[Path]:
    """Find the folders of this process's memory control group, version 2 and version 1."""
    root, found = Path("/sys/fs/cgroup"), [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                found.append(root / controllers / path.lstrip("/"))
    return [folder for folder in dict.fromkeys(found) if (folder / "memory.stat").exists()]


def count_cores() -> int:
    """Count the CPU cores of this process: its affinity, or its control group's quota if lower."""
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
