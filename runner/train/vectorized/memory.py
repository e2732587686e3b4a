"""Memory of a stack, estimated before it is built: the state of a job, and the most of its step."""

import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runner.core import rng
from runner.core.copies import copy_owned
from runner.core.trees import iterate_tensors
from runner.data.in_memory import InMemoryBatches
from runner.train.state import Run
from runner.train.vectorized.optimizers import KINDS
from runner.train.vectorized.stack import StepModule, choose_step, get_tensors
from runner.train.vectorized.trial import ApartError, read_first_batch

# What kernels hold beside the tensors, as a factor: a stack of 16 small CNNs grew the process by 2.1 times the bytes of
# its tensors (oneDNN lays images out anew), of 16 MLPs by 1.3, of 8 ResNet-18 by 0.8.
SPARE = 1.5
GIB = 2**30

Room = Callable[[torch.device], "int | None"]  # measures the bytes that a stack may take; None where nobody knows


class TooLargeError(ApartError):
    """More jobs than the memory holds; so many of them fit."""

    def __init__(self, message: str, fits: int) -> None:
        super().__init__(message)
        self.fits = fits


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of tensors that are made on a CPU: of those still there, and the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and count the storages of what it makes."""
        made = func(*args, **(kwargs or {}))
        for tensor in [made] if isinstance(made, Tensor) else iterate_tensors(made):
            self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  two Python objects may stand for one storage
        if key in self._seen:
            return

        def forget(_: Any) -> None:
            del self._seen[key]
            self.live -= size

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.most = max(self.most, self.live)


def measure_step(run: Run, batch: Any) -> int:
    """Measure the most bytes that a forward and a backward of a job hold, with a copy of its weights."""
    with rng.fork_rng():
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
            before: int = torch.cuda.memory_allocated(run.device)
            torch.cuda.reset_peak_memory_stats(run.device)
            compute_step(run, batch)
            most: int = torch.cuda.max_memory_allocated(run.device)
            return most - before
        with LiveBytes() as live:
            compute_step(run, batch)
        return int(live.most)


def compute_step(run: Run, batch: Any) -> None:
    """Compute the gradients of a batch on copies of a job's model and loss."""
    module = StepModule(deepcopy(run.model), deepcopy(run.loss), choose_step(run))
    module(copy_owned(batch))["loss"].backward()


def count_state(run: Run) -> int:
    """Count the bytes of a job's weights, buffers, gradients and the optimizer's state."""
    parameters, buffers = get_tensors(run)
    kept = sum(parameter.nbytes for parameter in parameters.values())
    trained = sum(parameter.nbytes for parameter in parameters.values() if parameter.requires_grad)
    states = len(KINDS[type(run.optimizer)].tensors)
    return kept + sum(buffer.nbytes for buffer in buffers.values()) + trained * (1 + states)


def refuse_large(run: Run, jobs: int, room: Room) -> None:
    """Refuse as many jobs like one run as the memory does not hold, before the others are built.

    The step is measured where the first batch can be had without taking it from anything that counts; else the state
    alone is counted, and `refuse_large_step` measures the rest.

    Raises:
        TooLargeError: they do not fit.
    """
    state = count_state(run)
    if (batch := read_first_batch(run)) is not None:
        state += measure_step(run, batch)
    _compare(jobs, int(SPARE * state), room(run.device))


def refuse_large_step(run: Run, batch: Any, jobs: int, room: Room) -> None:
    """Refuse jobs whose states are there, where the memory does not hold a step of all of them.

    Raises:
        TooLargeError: they do not fit.
    """
    if not isinstance(run.splits["train"], InMemoryBatches):  # of which it is known already, from a batch alike
        _compare(jobs, int(SPARE * measure_step(run, batch)), room(run.device))


def _compare(jobs: int, each: int, free: int | None) -> None:
    if free is not None and jobs * each > free:
        fits = max(1, free // each)
        takes, there = (_format_bytes(size) for size in (jobs * each, max(0, free)))
        message = f"memory: {jobs} jobs would hold about {takes}, and {there} are free for them"
        raise TooLargeError(message, fits)


def _format_bytes(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"
