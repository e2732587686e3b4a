"""Datasets whose samples draw under a key of (seed, epoch, index), in any process."""

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from runner.core import rng
from runner.core.errors import describe_error
from runner.data.bad_samples import BadSample, BadSamples, find_file, find_none
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Indices
from runner.data.samples import Pipeline, Stream, collect_shapes, draw_alternating

PROBED = 5  # samples whose most common shapes are those of the split


class KeyedSamples(Dataset[Any]):
    """Map-style dataset by (epoch, position); dataset and transforms draw from keyed streams.

    A sample that cannot be had is a `BadSample` in its place, which the process that trains reports.
    """

    def __init__(
        self, dataset: Any, indices: Indices, pipeline: Pipeline, stream: Stream, faults: BadSamples | None = None
    ) -> None:
        self.dataset, self.indices, self.pipeline, self.stream = dataset, indices, pipeline, stream
        self.faults = faults or BadSamples(stream.split)
        self.shapes: tuple[tuple[Any, ...], ...] | None = None  # of every sample; None: they may differ
        self.takes_none = True  # a collate_fn of the user's own may leave samples out that are None
        self.at: Tensor | None = None  # int64 [workers]: the sample that each worker is at, in shared memory
        self.clock = stream.clock

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: tuple[Any, ...]) -> Any:
        epoch, position, *when = place
        index = int(self.indices[position])
        worker = get_worker_info()
        if worker is not None and self.at is not None:
            self.at[worker.id] = index

        def keys(name: str) -> int:
            return self.stream.key(epoch, index, name)

        def uniforms(name: str, draws: int) -> Tensor:
            if getattr(self.pipeline.transforms[name], "alternates", False):
                return draw_alternating(self.stream.key, name, epoch, np.array([index]), draws)
            return rng.draw_uniforms(self.stream.key(epoch, name), np.array([index]), draws)

        try:
            if when:
                self.clock.set(*when)
            rng.seed_all(self.stream.key(epoch, index, "dataset"))
            with watch_reading():  # the transforms too: Pillow reads an image when it is first used
                raw = self.dataset[index]
                wrong = ("" if self.takes_none else find_none(raw)) or self.faults.wrong(
                    raw
                )  # a crop may leave a NaN out in one epoch, and not in the next
                sample = raw if wrong else self.pipeline.apply(raw, keys, uniforms)
        except Exception as error:  # noqa: BLE001  a user's dataset and transforms may raise anything
            return BadSample(index, describe_error(error), find_file(self.dataset, index))
        if not wrong and self.pipeline.transforms:
            wrong = self.faults.wrong(sample)
        if not wrong and self.shapes is not None and collect_shapes(sample) != self.shapes:
            wrong = _describe_difference(collect_shapes(sample), self.shapes)
        return BadSample(index, wrong, find_file(self.dataset, index)) if wrong else sample

    def __getitems__(self, places: list[tuple[Any, ...]]) -> list[Any]:
        """Return a batch's samples; restore the global random generators."""
        with rng.fork_rng():
            samples = [self[place] for place in places]
        if self.clock.active and not self.takes_none:  # their shape may change with time, but not within a batch
            self._compare_shapes(samples, places)
        return samples

    def _compare_shapes(self, samples: list[Any], places: list[tuple[Any, ...]]) -> None:
        """Replace samples of another shape than most of the batch."""
        shapes = [None if isinstance(sample, BadSample) else collect_shapes(sample) for sample in samples]
        counts = Counter(shape for shape in shapes if shape is not None)
        if len(counts) < 2:
            return
        common = counts.most_common(1)[0][0]
        for number, shape in enumerate(shapes):
            if shape is not None and shape != common:
                index = int(self.indices[places[number][1]])
                samples[number] = BadSample(index, _describe_difference(shape, common), find_file(self.dataset, index))

    def probe(self) -> None:
        """Find the most common shapes among the first few samples of the split."""
        samples = self.__getitems__([(0, position) for position in range(min(PROBED, len(self)))])
        found = Counter(collect_shapes(sample) for sample in samples if not isinstance(sample, BadSample))
        self.shapes = found.most_common(1)[0][0] if found else None


def _format_shapes(shapes: tuple[tuple[Any, ...], ...]) -> str:
    return ", ".join(f"{place}: {list(shape)}" for place, shape in shapes)


def _describe_difference(shapes: tuple[tuple[Any, ...], ...], others: tuple[tuple[Any, ...], ...]) -> str:
    return f"its shapes are {_format_shapes(shapes)}, those of the others {_format_shapes(others)}"


class KeyedStream(IterableDataset[Any]):
    """Iterable dataset whose samples draw under a key (epoch, worker, number of the sample).

    One that cannot be had is a `BadSample` in its place; where the dataset itself raised, nothing comes after that.
    """

    def __init__(
        self, dataset: Any, pipeline: Pipeline, stream: Stream, limit: int | None, faults: BadSamples | None = None
    ) -> None:
        self.dataset, self.pipeline, self.stream, self.limit = dataset, pipeline, stream, limit
        self.faults = faults or BadSamples(stream.split)
        self.takes_none = True  # as above
        self.of_one_shape = False  # whether all samples of a worker must have the shapes of its first
        self.epoch = torch.zeros((), dtype=torch.int64)  # in shared memory, where persistent workers see it change
        self.at: Tensor | None = None  # int64 [workers]: the sample that each worker is at
        self.clock = stream.clock
        self.first = torch.zeros(2, dtype=torch.int64)  # epoch and step of the first batch, in shared memory
        self.batch_size = 1

    def _find_when(self, count: int, worker: int, workers: int) -> tuple[int, int]:
        """Return epoch and step of sample `count` of a worker: the workers make whole batches in turn."""
        epoch, step = self.first.tolist()
        batch = count // self.batch_size * workers + worker
        return epoch, step + (batch // self.clock.accumulate if self.stream.split == "train" else 0)

    def __iter__(self) -> Iterator[Any]:
        info, epoch = get_worker_info(), int(self.epoch)
        worker = None if info is None else info.id
        workers = 1 if info is None else info.num_workers
        self.clock.told = None  # a dataset that owns its order begins anew
        source: Iterator[Any] | None = None
        shapes: tuple[tuple[Any, ...], ...] | None = None
        for count in itertools.count() if self.limit is None else range(self.limit):
            if worker is not None and self.at is not None:
                self.at[worker] = count
            keys = partial(self.stream.key, epoch, worker or 0, count)
            with rng.fork_rng():
                rng.seed_all(keys("dataset"))
                try:
                    if self.clock.active:
                        self.clock.set(self._find_when(count, worker or 0, workers))
                    with watch_reading():
                        source = iter(self.dataset) if source is None else source
                        raw = next(source)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001  a user's dataset may raise anything
                    yield BadSample(count, describe_error(error), worker=worker, final=True)
                    return
                try:
                    with watch_reading():
                        wrong = ("" if self.takes_none else find_none(raw)) or self.faults.wrong(raw)
                        sample = raw if wrong else self.pipeline.apply(raw, keys)
                    wrong = wrong or self.faults.wrong(sample)
                except Exception as error:  # noqa: BLE001  a user's transforms, too
                    sample, wrong = None, describe_error(error)
            if self.clock.active and count % self.batch_size == 0:
                shapes = None  # they may change with time, but not within a batch
            if not wrong and self.of_one_shape:
                shapes = shapes or collect_shapes(sample)
                if collect_shapes(sample) != shapes:
                    wrong = _describe_difference(collect_shapes(sample), shapes)
            yield BadSample(count, wrong, worker=worker) if wrong else sample
