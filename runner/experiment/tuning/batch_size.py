"""Batch size search: the largest batch that fits, by trials like those of the LR range test.

Both build a run of their own in a temporary folder and throw it away.
"""

import dataclasses
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from runner.config.schema import Config
from runner.core import device as devices
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.paths import PACKAGE
from runner.experiment.builders.instantiate import Trust
from runner.experiment.tuning.trial_run import iterate_batches, open_trial_run
from runner.train.oom import is_out_of_memory


@dataclasses.dataclass
class Trial:
    """Result of two steps with one batch size."""

    batch_size: int
    fits: bool
    peak: int | None = None  # bytes
    seconds: float | None = None  # of the second step
    problem: str = ""
    samples: int = 0  # of the training split; 0: not known


@dataclasses.dataclass
class BatchSearch:
    """Result of a batch size search: the largest that fits, the least that does not, the trials."""

    batch_size: int | None  # the largest that fits; None: not even one sample does
    too_large: int | None  # the least that does not, of those tried; None: every one that there are samples for fits
    limit: int | None  # bytes; None: that of the GPU, found by running into it
    measured: str
    trials: list[Trial]


def search_largest(fits: Callable[[int], bool], start: int, most: Callable[[], int]) -> tuple[int, int | None]:
    """Search the largest number that fits (0: none) and the least that does not (None: `most` fits).

    By doubling from `start`, then by halving the gap to a 32nd of the number; below 64 it is found exactly.
    """
    low, size = 0, min(start, most())
    while fits(size):
        low = size
        if size >= most():
            return low, None
        size = min(2 * size, most())
    while size - low > max(1, low // 32):
        middle = (low + size) // 2
        if fits(middle):
            low = middle
        else:
            size = middle
    return low, size


def search_batch_size(
    config: Config,
    limit: int | None,
    most: int | None,
    trust: Trust = (),
    say: Callable[[Trial], None] = lambda _: None,
) -> BatchSearch:
    """Search the largest batch size that fits, by trials of two real optimizer steps each.

    Args:
        config: the checked config.
        limit: bytes, for a CPU; null: nine tenths of the memory that is available now. A GPU has its own.
        most: the largest size to be tried; no more than there are training samples.
        trust: patterns of names trusted on the command line.
        say: is told of each trial.

    Raises:
        RunError: the data cannot be had, or a step fails for another reason than memory.
    """
    if config.dataset.steps_per_epoch is not None:
        raise RunError("loader.batch_size: there is no data to make batches of")
    if config.loader.batch_size is None:
        rule = "must be a number for a search: with null the dataset makes the batches"
        raise ConfigError([Mistake("loader.batch_size", rule, kind="conflict")])
    device = devices.choose(config.device.type)
    on_cpu = device.type == "cpu"
    limit = (limit or measure_available_memory() * 9 // 10) if on_cpu else None
    trials: list[Trial] = []

    def fits(size: int) -> bool:
        trial = try_on_gpu(config, size, device, trust) if limit is None else try_in_child(config, size, limit, trust)
        trials.append(trial)
        say(trial)
        return trial.fits

    def end() -> int:
        return min(most or 2**20, trials[0].samples or 2**20) if trials else most or 2**20

    low, high = search_largest(fits, config.loader.batch_size, end)
    what = "peak resident memory of a process of its own" if on_cpu else f"peak memory that torch allocated on {device}"
    return BatchSearch(min(low, end()) or None, high, limit, what, trials)


def _replace_batch_size(config: Config, size: int) -> Any:
    return dataclasses.replace(config.loader, batch_size=size)


def run_two_steps(config: Config, size: int, trust: Trust) -> Trial:
    """Run two optimizer steps with batches of this size; the first creates the optimizer's state."""
    with open_trial_run(dataclasses.replace(config, loader=_replace_batch_size(config, size)), 2, trust) as run:
        began = 0.0
        for batch in islice(iterate_batches(run), 2):
            began = time.perf_counter()
            run.update(batch)
            devices.synchronize(run.device)
        return Trial(size, fits=True, seconds=time.perf_counter() - began, samples=run.splits["train"].size)


def try_on_gpu(config: Config, size: int, device: torch.device, trust: Trust) -> Trial:
    """Try a batch size on a GPU, in this process."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trial = run_two_steps(config, size, trust)
        trial.peak = torch.cuda.max_memory_allocated(device) if cuda else torch.mps.driver_allocated_memory()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        trial = Trial(size, fits=False, problem="out of memory")
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    else:
        torch.mps.empty_cache()
    return trial


def try_in_child(config: Config, size: int, limit: int, trust: Trust) -> Trial:
    """Try a batch size on the CPU in a child process: its peak is known, its crash harms nothing."""
    context = multiprocessing.get_context("forkserver")  # a fork of this process could inherit locked threads
    start_server()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_try, args=(config, size, limit, trust, theirs))
    child.start()
    theirs.close()
    try:
        trial: Trial | str = ours.recv()
    except EOFError:
        trial = Trial(size, fits=False, problem="the process was killed")
    child.join()
    if isinstance(trial, str):
        raise RunError(f"a batch of {size}: {trial}")
    return trial


def start_server() -> None:
    """Start the fork server of the trials, unless it runs: it imports torch once for all of them."""
    forkserver.set_forkserver_preload(["runner.experiment.tuning.batch_size"])
    names = ("PYTHONPATH", "PYTHONSAFEPATH")
    before, path = {name: os.environ.pop(name, None) for name in names}, sys.path.copy()
    sys.path.insert(0, str(PACKAGE.parent))  # a project may have a `runner.py`
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # Python 3.11 does not hand its path on
    os.environ["PYTHONSAFEPATH"] = "1"  # nor is the working directory before it
    try:
        forkserver.ensure_running()
    finally:
        sys.path[:] = path
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _try(config: Config, size: int, limit: int, trust: Trust, answer: Any) -> None:
    try:
        _limit_memory(limit)
        trial = run_two_steps(config, size, trust)
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        trial.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if trial.peak > limit:
            trial.fits, trial.problem = False, "over the limit"
        answer.send(trial)
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent says it
        if is_out_of_memory(error):
            answer.send(Trial(size, fits=False, problem="out of memory"))
        else:
            answer.send(f"{type(error).__name__}: {error}")


def _limit_memory(limit: int) -> None:
    """Limit this process's data memory, so that a trial of twice the right size fails early."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return
    import resource

    facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    data, resident = (int(facts[name].split()[0]) * 1024 for name in ("VmData", "VmRSS"))
    room = data + max(0, limit - resident) * 5 // 4 + 2**28
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))


def measure_available_memory() -> int:
    """Measure the bytes of memory that can be used now without swapping."""
    facts = Path("/proc/meminfo")
    if facts.is_file():
        return next(int(line.split()[1]) * 1024 for line in facts.read_text().splitlines() if "MemAvailable" in line)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
