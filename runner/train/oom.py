"""Out of memory: detection and remedies."""

import sys

import torch

GIB = 2**30


# torch has a class for CUDA alone: the CPU's allocator, MPS and cuBLAS (`CUBLAS_STATUS_ALLOC_FAILED`) say it in words.
_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it comes from, says that memory has run out."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS):
            return True
        error = error.__cause__
    return False


def describe_peak(device: torch.device) -> str:
    """Describe the peak memory so far."""
    if device.type == "cuda":
        most, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"the peak was {most / GIB:.2f} of the {whole / GIB:.2f} GiB of {device}"
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"the peak of this process was {most / GIB:.2f} GiB"


def suggest_remedies(batch_size: int, accumulate: int, precision: str, *, evaluating: bool, splits: bool) -> str:
    """Suggest settings under which a batch fits into memory."""
    if evaluating:
        return f"an evaluation needs smaller batches: loader.eval.batch_size={max(1, batch_size // 2)}"
    ways = []
    if batch_size > 1:
        half, twice = (batch_size + 1) // 2, accumulate * 2
        ways.append(f"loader.batch_size={half} train.accumulate={twice} makes the same steps of smaller batches")
        if not splits:
            ways.append("train.split_on_oom=true computes a batch in parts where it has to")
    if precision in ("fp32", "tf32"):
        ways.append("device.precision=bf16 halves most of what a batch needs")
    return "; ".join(ways) or "one sample is too much: a smaller model, or another device"
