"""Throughput and resource use: rates, share of the device's peak (MFU), memory, wait for data."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

GIB = 2**30


# Dense peak in 1e12 FLOP/s (no sparsity), by the longest part of the device's name that is here: fp32, tf32, bf16, fp16
# with sums in fp32. From NVIDIA's data sheets and architecture white papers (Volta to Blackwell, GA102, AD102); 0 where
# the device has no such mode.
PEAKS: dict[str, tuple[float, float, float, float]] = {
    "V100": (15.7, 0, 0, 125),
    "T4": (8.1, 0, 0, 65),
    "A100": (19.5, 156, 312, 312),
    "A30": (10.3, 82, 165, 165),
    "A10": (31.2, 62.5, 125, 125),
    "A40": (37.4, 74.8, 149.7, 149.7),
    "RTX A6000": (38.7, 77.4, 154.8, 154.8),
    "RTX 3090": (35.6, 35.6, 71, 71),
    "RTX 4090": (82.6, 82.6, 165.2, 165.2),
    "L4": (30.3, 60, 121, 121),
    "L40": (90.5, 90.5, 181, 181),
    "L40S": (91.6, 183, 362, 362),
    "H100": (67, 494, 989, 989),
    "H100 PCIe": (51, 378, 756, 756),
    "H100 NVL": (60, 418, 835, 835),
    "H200": (67, 494, 989, 989),
    "B200": (75, 1125, 2250, 2250),
}


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def find_peak_flops(name: str, precision: str) -> float | None:
    """Return the dense peak in FLOP/s of a device by name (`NVIDIA H100 80GB HBM3`); None if unknown."""
    words = name.replace("-", " ").split()
    known = [part for part in PEAKS if any(words[i : i + len(part.split())] == part.split() for i in range(len(words)))]
    return PEAKS[max(known, key=len)][PRECISIONS.index(precision)] * 1e12 or None if known else None


def count_flops(call: Callable[[], Mapping[str, Any]]) -> tuple[int, int]:
    """Return the FLOPs of `call` by `torch.utils.flop_counter`, and its step output's sample count.

    A multiply-accumulate is two FLOPs; elementwise operators count as none.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, 0.1 s

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outcome = call()
    return counter.get_total_flops(), int(outcome.get("size", 1))


class DataWaitTimer:
    """Timer of the seconds that the loop waits for batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on and time the wait for them."""
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - begun
            yield batch


def measure_memory(device: torch.device) -> dict[str, float]:
    """Return peak memory in GiB: since the last call on a GPU, else the whole process's."""
    if device.type == "cuda":
        peaks = {
            "memory/allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "memory/reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
        torch.cuda.reset_peak_memory_stats(device)
        return peaks
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    import resource  # not on Windows

    used = {"memory/resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    if device.type == "mps":
        used["memory/allocated_gib"] = torch.mps.driver_allocated_memory() / GIB
    return used


def compute_rates(steps: int, samples: float, seconds: float) -> dict[str, float]:
    """Compute the optimizer steps and samples per second of training."""
    return {"throughput/steps_per_second": steps / seconds, "throughput/samples_per_second": samples / seconds}
