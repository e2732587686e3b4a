"""Settings of glibc's allocator for a process that trains a stack."""

import ctypes
import sys

# From malloc.h: what `mallopt` calls them.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step; return whether it was there to be told.

    Without it the activations of a stack, 17 MB for 32 small networks, go back to the system after each step and are
    mapped, and filled with zeros by the kernel, in the next: a step took 54 ms instead of 37. The setting is one of the
    process, so only a process that does nothing else makes it.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: LARGEST // 16}
    accepted = [bool(mallopt(name, value)) for name, value in settings.items()]
    return all(accepted)
