"""Batches through torch's DataLoader: sample by sample, any dataset, any number of workers."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info
from torch.utils.data._utils import signal_handling

from runner import rng
from runner.ahead import placed
from runner.errors import RunError, in_words
from runner.samples import (
    Fault,
    Faults,
    Indices,
    Order,
    Pipeline,
    Placement,
    Share,
    Stream,
    drawn,
    empty_batch,
    file_of,
    signature,
)
from runner.splitting import fingerprint

WATCH_SECONDS = 1.0  # between two looks of a worker whether its parent is alive
PROBED = 5  # samples whose most common shapes are those of the split


class KeyedSamples(Dataset[Any]):
    """Samples by (epoch, position), each transform and the dataset itself drawing from a stream of its own.

    A sample that cannot be had is a `Fault` in its place, which the process that trains reports.
    """

    def __init__(
        self, dataset: Any, indices: Indices, pipeline: Pipeline, stream: Stream, faults: Faults | None = None
    ) -> None:
        self.dataset, self.indices, self.pipeline, self.stream = dataset, indices, pipeline, stream
        self.faults = faults or Faults(stream.split)
        self.shapes: tuple[tuple[Any, ...], ...] | None = None  # of every sample; None: they may differ
        self.at: Tensor | None = None  # int64 [workers]: the sample that each worker is at, in shared memory

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, position = place
        index = int(self.indices[position])
        worker = get_worker_info()
        if worker is not None and self.at is not None:
            self.at[worker.id] = index

        def keys(name: str) -> int:
            return self.stream.key(epoch, index, name)

        def uniforms(name: str, draws: int) -> Tensor:
            return rng.uniforms(self.stream.key(epoch, name), np.array([index]), draws)

        try:
            rng.seed_all(self.stream.key(epoch, index, "dataset"))
            raw = self.dataset[index]
            wrong = self.faults.wrong(raw)  # a crop may leave a NaN out in one epoch, and not in the next
            sample = raw if wrong else self.pipeline.apply(raw, keys, uniforms)
        except Exception as error:  # noqa: BLE001  a user's dataset and transforms may raise anything
            return Fault(index, in_words(error), file_of(self.dataset, index))
        if not wrong and self.pipeline.transforms:
            wrong = self.faults.wrong(sample)
        if not wrong and self.shapes is not None and signature(sample) != self.shapes:
            wrong = f"its shapes are {_words(signature(sample))}, those of the others {_words(self.shapes)}"
        return Fault(index, wrong, file_of(self.dataset, index)) if wrong else sample

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Any]:
        """A batch's samples, leaving the global generators as they were."""
        with rng.isolated():
            return [self[place] for place in places]

    def probe(self) -> None:
        """Learn the shapes that samples of this split have, from the first few."""
        samples = self.__getitems__([(0, position) for position in range(min(PROBED, len(self)))])
        found = Counter(signature(sample) for sample in samples if not isinstance(sample, Fault))
        self.shapes = found.most_common(1)[0][0] if found else None


def _words(shapes: tuple[tuple[Any, ...], ...]) -> str:
    return ", ".join(f"{place}: {list(shape)}" for place, shape in shapes)


class _Batches:
    """The DataLoader's batch sampler: the positions set for the coming epoch, each with the epoch's number."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Collate:
    """A batch of the sound samples (None where there is none), and the faults."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self.collate_fn = collate_fn or default_collate

    def __call__(self, samples: list[Any]) -> tuple[Any, list[Fault]]:
        """Collate what is no fault."""
        faults = [sample for sample in samples if isinstance(sample, Fault)]
        good = [sample for sample in samples if not isinstance(sample, Fault)] if faults else samples
        return self.collate_fn(good) if good else None, faults


class WorkerStart:
    """What a worker does first: the user's `worker_init_fn`; and it ends when the process that trains does.

    torch's workers look for their parent between two batches only, so one that hangs would outlive it.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker: int) -> None:
        """Start the watch, and go on as the user wants it."""
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


class Loaded:
    """Batches through torch's DataLoader: any dataset with `__len__` and `__getitem__`, any collate, any workers."""

    def __init__(
        self,
        samples: KeyedSamples,
        order: Order,
        placement: Placement,
        *,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        reason: str = "",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        share: Share | None = None,
        **settings: Any,
    ) -> None:
        self.share = share or Share()
        self.order, self.placement, self.batch_size, self.drop_last = order, placement, batch_size, drop_last
        self.batch_sampler, self.samples = batch_sampler, samples
        self.size = len(samples)
        self.fingerprint = fingerprint(samples.dataset, samples.indices)
        self.rows = _Batches()
        if collate_fn is None and batch_size > 1:
            samples.probe()
        if num_workers:
            samples.at = torch.full((num_workers,), -1, dtype=torch.int64).share_memory_()
        # A generator of its own: every iter(DataLoader) draws a seed, from the global one unless told.
        self.loader = DataLoader(
            samples,
            batch_sampler=self.rows,
            generator=torch.Generator(),
            collate_fn=Collate(collate_fn),
            num_workers=num_workers,
            worker_init_fn=WorkerStart(worker_init_fn) if num_workers else None,
            **settings,
        )
        self.num_batches = len(self._positions(0))
        self.sizes: list[int] = []  # of the batches of the epoch under way, of all processes together
        where = f"by {num_workers} worker{'s' * (num_workers != 1)}" if num_workers else "in this process"
        self.plan = f"sample by sample, {where}" + (f" ({reason})" if reason else "")

    def _positions(self, epoch: int) -> list[list[int]]:
        if self.batch_sampler is not None:
            return [list(batch) for batch in drawn(self.batch_sampler, self.order.stream, epoch)]
        order = self.order(epoch).tolist()
        rows = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        return rows[:-1] if self.drop_last and rows and len(rows[-1]) < self.batch_size else rows

    def whole(self, number: int) -> int:
        """Samples that all processes together have of batch `number` of the epoch under way."""
        return self.sizes[number] if number < len(self.sizes) else 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on, as collated; what is skipped is not read.

        Raises:
            RunError: a sample cannot be had (and is not to be skipped), a worker died or hangs.
        """
        positions = self._positions(epoch)
        self.sizes = [len(row) for row in positions]
        self.rows.rows = [[(epoch, position) for position in row] for row in self.share.rows(positions)[start:]]
        yield from placed(sound_batches(self.loader, self.samples), self.placement)


def sound_batches(loader: DataLoader[Any], samples: "KeyedSamples | KeyedStream") -> Iterator[Any]:
    """What a loader gives, without the samples that are left out."""
    for batch, faults in watched(loader, samples):
        for fault in faults:
            samples.faults.note(fault)
        if batch is None:
            raise empty_batch(samples.stream.split)
        yield batch


def watched(loader: DataLoader[Any], samples: "KeyedSamples | KeyedStream") -> Iterator[Any]:
    """What a loader gives; a worker that died or hangs is an error that names it and its sample, and none is left.

    Raises:
        RunError: see above.
    """
    iterator = iter(loader)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            workers = getattr(iterator, "_workers", [])
            if not workers:
                raise
            message = _about_workers(workers, samples, loader.timeout) or str(error).strip()
            _end(iterator, workers)
            loader._iterator = None  # noqa: SLF001  where a persistent one is kept: the next epoch begins anew
            with contextlib.suppress(Exception):
                iterator._shutdown_workers()  # type: ignore[attr-defined]  # noqa: SLF001  its threads and queues
            raise RunError(message) from error
        yield item


def _end(iterator: Any, workers: Sequence[Any]) -> None:
    """Kill the workers, also those that ignore SIGTERM."""
    if getattr(iterator, "_worker_pids_set", False):  # else torch's handler of SIGCHLD raises at whatever runs next
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]  # noqa: SLF001
        iterator._worker_pids_set = False  # noqa: SLF001
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _about_workers(workers: Sequence[Any], samples: "KeyedSamples | KeyedStream", timeout: float) -> str:
    """Which worker ended, or which hang, and at which sample each was."""
    split, at = samples.stream.split, [-1] * len(workers) if samples.at is None else samples.at.tolist()

    def place(number: int) -> str:
        if at[number] < 0:
            return "before its first sample"
        file = file_of(samples.dataset, at[number])
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


class KeyedStream(IterableDataset[Any]):
    """An iterable dataset's samples, each drawn under a key (epoch, worker, number of the sample).

    One that cannot be had is a `Fault` in its place; where the dataset itself raised, nothing comes after that.
    """

    def __init__(
        self, dataset: Any, pipeline: Pipeline, stream: Stream, limit: int | None, faults: Faults | None = None
    ) -> None:
        self.dataset, self.pipeline, self.stream, self.limit = dataset, pipeline, stream, limit
        self.faults = faults or Faults(stream.split)
        self.of_one_shape = False  # whether all samples of a worker must have the shapes of its first
        self.epoch = torch.zeros((), dtype=torch.int64)  # in shared memory, where persistent workers see it change
        self.at: Tensor | None = None  # int64 [workers]: the sample that each worker is at

    def __iter__(self) -> Iterator[Any]:
        info, epoch = get_worker_info(), int(self.epoch)
        worker = None if info is None else info.id
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        source: Iterator[Any] | None = None
        shapes: tuple[tuple[Any, ...], ...] | None = None
        for count in itertools.count() if self.limit is None else range(self.limit):
            if worker is not None and self.at is not None:
                self.at[worker] = count
            keys = partial(self.stream.key, epoch, worker or 0, count)
            with rng.isolated():
                rng.seed_all(keys("dataset"))
                try:
                    source = iter(self.dataset) if source is None else source
                    raw = next(source)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001  a user's dataset may raise anything
                    yield Fault(count, in_words(error), worker=worker, final=True)
                    return
                try:
                    wrong = self.faults.wrong(raw)
                    sample = raw if wrong else self.pipeline.apply(raw, keys)
                    wrong = wrong or self.faults.wrong(sample)
                except Exception as error:  # noqa: BLE001  a user's transforms, too
                    sample, wrong = None, in_words(error)
            if not wrong and self.of_one_shape:
                shapes = shapes or signature(sample)
                if signature(sample) != shapes:
                    wrong = f"its shapes are {_words(signature(sample))}, those of the others {_words(shapes)}"
            yield Fault(count, wrong, worker=worker) if wrong else sample


class Streamed:
    """Batches of an iterable dataset, which owns its order: a resume within an epoch reads what it skips."""

    def __init__(
        self,
        samples: KeyedStream,
        placement: Placement,
        *,
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> None:
        self.samples, self.placement = samples, placement
        samples.of_one_shape = collate_fn is None and batch_size > 1
        if num_workers:
            samples.epoch.share_memory_()
            samples.at = torch.full((num_workers,), -1, dtype=torch.int64).share_memory_()
        self.loader = DataLoader(
            samples,
            batch_size=batch_size,
            generator=torch.Generator(),
            collate_fn=Collate(collate_fn),
            num_workers=num_workers,
            worker_init_fn=WorkerStart(worker_init_fn) if num_workers else None,
            **settings,
        )
        self.size = len(samples.dataset) if hasattr(samples.dataset, "__len__") else 0
        self.num_batches = None
        self.fingerprint = ""  # only reading all of it would tell
        where = f", by {num_workers} worker{'s' * (num_workers != 1)}" if num_workers else ""
        self.plan = f"streamed in the dataset's own order{where}"

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch; the first `start` of them are read and dropped.

        Raises:
            RunError: a sample cannot be had (and cannot or is not to be skipped), a worker died or hangs.
        """
        self.samples.epoch.fill_(epoch)
        coming = sound_batches(self.loader, self.samples)
        yield from placed(itertools.islice(coming, start, None), self.placement)
