"""Device of a run: choice, threads, precision and determinism."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runner.core.without_dynamo import set_deterministic


def choose(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that `cpu`, `cuda`, `cuda:N`, `mps` or `auto` (a GPU if there is one) names.

    Of several processes on this machine that train together each gets the GPU of its `local_rank`.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if name == "cuda" else device.index
        if index >= count:
            seen = f"torch sees {count} CUDA device{'s' * (count != 1)} here" + (
                "" if torch.backends.cuda.is_built() else " (this build of torch has no CUDA)"
            )
            raise ValueError(seen)
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        message = "torch sees no Apple GPU here"
        raise ValueError(message)
    return device


def set_up(device: torch.device, threads: int, deterministic: str, precision: str = "fp32") -> None:
    """Apply threads, determinism and precision to this process.

    `strict` makes an operator without a deterministic kernel an error, `warn` a warning, `off` leaves torch's defaults.
    """
    torch.set_num_threads(threads)
    set_deterministic(on=deterministic != "off", warn_only=deterministic == "warn")
    # Filling every fresh tensor with NaN helps to find reads of uninitialised memory; it is no part of determinism.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made by a setter
    # torch lets cuDNN use TensorFloat-32 unless told otherwise; fp32 is fp32 here.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = deterministic == "off"
    torch.backends.cudnn.deterministic = deterministic != "off"
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def keep_precision_flags() -> Iterator[None]:
    """Restore the process's TF32 flags on exit."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def explain_cannot_compute(device: torch.device, precision: str) -> str:
    """Explain why a device cannot compute in a precision; empty where it can."""
    cuda = device.type == "cuda"
    if precision == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        return "TensorFloat-32 is of NVIDIA's GPUs from Ampere (compute capability 8.0) on"
    if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16 is of NVIDIA's GPUs from Ampere (compute capability 8.0) on"
    if precision in ("bf16", "fp16") and not torch.amp.is_autocast_available(device.type):
        return f"torch has no autocast on {device.type}"
    return ""


def explain_cannot_compile(device: torch.device) -> str:
    """Explain why `torch.compile` is not available here; empty where it is."""
    try:
        torch.compile(len)  # refuses a Python that is too new; compiles nothing before the first call
    except RuntimeError as error:
        return str(error)
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "there is no triton"
    default = "clang++" if sys.platform == "darwin" else "g++" if device.type == "cpu" else "gcc"
    compiler = os.environ.get("CXX" if device.type == "cpu" else "CC", default)
    if shutil.which(compiler) is None:
        return f"there is no compiler `{compiler}` (the environment variable CXX, or CC for a GPU, names another)"
    return ""


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work (for clocks only)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> dict[str, str]:
    """Return the type of a device and the model of a GPU, on which numeric results depend."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"type": device.type, "name": name}


def read_compile_seconds() -> float:
    """Read the seconds that `torch.compile` has taken in this process, forward and backward."""
    utils = sys.modules.get("torch._dynamo.utils")  # where nothing was compiled it may not be there
    spent = {} if utils is None else utils.calculate_time_spent()
    return float(spent.get("total_wall_time", 0.0))
