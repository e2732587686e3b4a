"""The device of a run: which one, its threads, its determinism."""

import torch


def choose(name: str, local_rank: int = 0) -> torch.device:
    """The device that `cpu`, `cuda`, `cuda:N`, `mps` or `auto` (a GPU where there is one) names.

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


def set_up(device: torch.device, threads: int, deterministic: str) -> None:
    """Apply threads and determinism to this process.

    `strict` makes an operator without a deterministic kernel an error, `warn` a warning, `off` leaves torch's defaults.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic != "off", warn_only=deterministic == "warn")
    # Filling every fresh tensor with NaN helps to find reads of uninitialised memory; it is no part of determinism.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made by a setter
    torch.backends.cudnn.benchmark = deterministic == "off"
    torch.backends.cudnn.deterministic = deterministic != "off"
    if device.type == "cuda":
        torch.cuda.set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until everything given to the device is done (for clocks only)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> dict[str, str]:
    """The kind of a device, which its numbers depend on: its type, and the model of a GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"type": device.type, "name": name}
