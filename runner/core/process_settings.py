"""Settings of the process that a run changes, and their restoration for a notebook or a script."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runner.core import rng
from runner.core.device import keep_precision_flags
from runner.core.without_dynamo import set_deterministic


@contextmanager
def keep_process_settings() -> Iterator[None]:
    """Put back torch's settings, random generators, environment, `sys.path` and directory."""
    directory, environment, path = os.open(".", os.O_RDONLY), dict(os.environ), list(sys.path)
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # made by a setter
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        with rng.fork_rng(), keep_precision_flags():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        set_deterministic(on=deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        if device is not None:
            torch.cuda.set_device(device)
        _restore_environment(environment)
        sys.path[:] = path
        os.fchdir(directory)
        os.close(directory)


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
