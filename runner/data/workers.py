"""Worker processes of a DataLoader: their start, their supervision and their end."""

import contextlib
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from runner.core.errors import RunError
from runner.data.bad_samples import find_file, make_empty_batch_error
from runner.data.keyed_samples import KeyedSamples, KeyedStream

WATCH_SECONDS = 1.0  # between two looks of a worker whether its parent is alive


class WorkerEnded(RunError):
    """Error: a worker process ended or hung.

    Attributes:
        exit_code: of the worker, minus the signal's number where a signal ended it; None of one that hangs.
    """

    def __init__(self, message: str, exit_code: int | None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class WorkerInit:
    """Worker init function: watch the parent process, then call the user's `worker_init_fn`.

    torch's workers look for their parent between two batches only, so one that hangs would outlive it.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker: int) -> None:
        """Start a thread that ends the worker with its parent; call the user's function."""
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def iterate_sound_batches(loader: DataLoader[Any], samples: "KeyedSamples | KeyedStream") -> Iterator[Any]:
    """Iterate over a loader's batches; record the bad samples that were left out of them."""
    for batch, faults in watch_workers(loader, samples):
        for fault in faults:
            samples.faults.note(fault)
        if batch is None:
            raise make_empty_batch_error(samples.stream.split)
        yield batch


def watch_workers(loader: DataLoader[Any], samples: "KeyedSamples | KeyedStream") -> Iterator[Any]:
    """Iterate over a loader; if a worker died or hangs, name it and its sample and kill all workers.

    Raises:
        RunError: see above.
    """
    iterator = _start_workers(loader, samples)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            workers = getattr(iterator, "_workers", [])
            if not workers:
                raise
            message = _describe_workers(workers, samples, loader.timeout) or str(error).strip()
            code = next((worker.exitcode for worker in workers if worker.exitcode), None)
            _kill_workers(iterator, workers)
            loader._iterator = None  # noqa: SLF001  where a persistent one is kept: the next epoch begins anew
            with contextlib.suppress(Exception):
                iterator._shutdown_workers()  # type: ignore[attr-defined]  # noqa: SLF001  its threads and queues
            raise WorkerEnded(message, code) from error
        yield item


def _start_workers(loader: DataLoader[Any], samples: "KeyedSamples | KeyedStream") -> Iterator[Any]:
    """Start the workers; those that are not forked receive everything by pickle.

    Raises:
        RunError: something cannot be pickled; the message names it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got pickle error", UserWarning)  # said below, with the member's name
        try:
            return iter(loader)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            sent = {
                "dataset": samples.dataset,
                "loader.collate_fn": getattr(loader.collate_fn, "collate_fn", None),
                "loader.worker_init_fn": getattr(loader.worker_init_fn, "worker_init_fn", None),
            }
            sent |= {f"transform {name}": transform for name, transform in samples.pipeline.transforms.items()}
            found = next((member for name, value in sent.items() if (member := _find_unpicklable(name, value))), "")
            if not loader.num_workers or not found:
                raise
            raise RunError(
                f"loader.multiprocessing_context sends the {samples.stream.split} split to each worker by pickle, and "
                f"{found} cannot be pickled ({error}): define it at the top of a module (a function in place of a "
                "lambda, a file opened in the worker), or take `loader.multiprocessing_context=fork` or "
                "`loader.num_workers=0`"
            ) from error


def _find_unpicklable(name: str, value: Any, depth: int = 5) -> str:
    """Find the innermost member that cannot be pickled; empty where the value can be."""
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  a user's `__reduce__` may raise anything
        if isinstance(value, Mapping):
            members = {f"{name}[{key!r}]": member for key, member in value.items()}
        elif isinstance(value, list | tuple):
            members = {f"{name}[{place}]": member for place, member in enumerate(value)}
        else:
            members = {f"{name}.{key}": member for key, member in getattr(value, "__dict__", {}).items()}
        deeper = (found for key, member in members.items() if (found := _find_unpicklable(key, member, depth - 1)))
        return next(deeper, f"`{name}` ({type(value).__name__})") if depth else f"`{name}`"
    return ""


def _kill_workers(iterator: Any, workers: Sequence[Any]) -> None:
    """Kill the workers, also those that ignore SIGTERM."""
    if getattr(iterator, "_worker_pids_set", False):  # else torch's handler of SIGCHLD raises at whatever runs next
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]  # noqa: SLF001
        iterator._worker_pids_set = False  # noqa: SLF001
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _describe_workers(workers: Sequence[Any], samples: "KeyedSamples | KeyedStream", timeout: float) -> str:
    """Describe which worker ended or which ones hang, and the sample each was at; empty if neither."""
    split, at = samples.stream.split, [-1] * len(workers) if samples.at is None else samples.at.tolist()

    def place(number: int) -> str:
        if at[number] < 0:
            return "before its first sample"
        file = find_file(samples.dataset, at[number])
        return f"at {split} sample {at[number]}" + (f" ({file})" if file else "")

    for worker in workers:
        worker.join(0.2)
    ended = [(number, worker.exitcode) for number, worker in enumerate(workers) if worker.exitcode]
    if ended:
        number, code = ended[0]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        memory = " (often for want of memory: fewer workers, or a smaller loader.prefetch_factor)" if code == -9 else ""
        return f"worker {number} {how} {place(number)}{memory}"
    if timeout:
        places = "; ".join(f"worker {number} is {place(number)}" for number in range(len(workers)))
        return f"no batch came within loader.timeout ({timeout:g} s): {places}"
    return ""
