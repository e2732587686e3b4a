"""What the kernel is asked about memory."""

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from runner.sweep.executors import memory_limit


def mapped():
    """Memory of this process that is in use, and its address."""
    held = mmap.mmap(-1, 16 * memory_limit.HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held[:] = bytes(range(256)) * (16 * memory_limit.HUGE // 256)
    return held, ctypes.addressof(ctypes.c_char.from_buffer(held))


def huge_pages(address):
    """Of the mapping around an address, in KiB."""
    for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(text, 16) for text in area.partition(" ")[0].split("-"))
        if start <= address < end:
            return int(re.search(r"^AnonHugePages: +(\d+) kB", area, re.MULTILINE)[1])
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and MADV_COLLAPSE")
def test_memory_in_use_is_joined_into_huge_pages_and_holds_what_it_held():
    probe, place = mapped()
    first = -(-place // memory_limit.HUGE) * memory_limit.HUGE
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(memory_limit.HUGE), memory_limit.COLLAPSE):
        pytest.skip("this kernel joins no pages when asked")
    del probe
    held, place = mapped()
    memory_limit.join_pages()

    assert huge_pages(place) >= 8 * memory_limit.HUGE // 1024
    assert held[:] == bytes(range(256)) * (16 * memory_limit.HUGE // 256)
