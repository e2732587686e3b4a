"""From datasets to batches: splits, the keyed order of an epoch, transforms, and two ways of making a batch.

`Gathered` holds whole tensors on the device, takes one gather for many batches and runs batched transforms; `Loaded`
goes through torch's DataLoader, sample by sample. Both draw order and augmentation from keys (seed, epoch, index,
transform name), so a batch depends neither on workers nor on what ran before, and a resume skips straight to its batch.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from runner import rng
from runner.errors import RunError

Indices = npt.NDArray[np.int64]
Place = int | str

# torchvision.transforms.v2 classes that give on a batch what they give on each of its images, and draw nothing.
BATCHED_AS_THEY_ARE = frozenset({"Resize", "CenterCrop", "Normalize", "ToDtype", "Grayscale", "RGB", "Pad", "Identity"})
CHUNK_BYTES = 256 * 2**20  # gathered and transformed at once: an epoch of a small dataset, some batches of a large one


class Split(Protocol):
    """Batches of one split, on the device."""

    @property
    def size(self) -> int:
        """Samples of an epoch; 0 where the dataset does not know."""
        ...

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None where the dataset does not know."""
        ...

    @property
    def plan(self) -> str:
        """How its batches are made, in words."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the data; empty where only reading all of it would tell."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where batches go: the device, and the memory format of images (4-d floating point tensors)."""

    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    def put(self, batch: Any) -> Any:
        """The batch (tensors in any nesting of tuples, lists and mappings) on the device."""
        if isinstance(batch, Tensor):
            moved = batch.to(self.device, non_blocking=True)
            images = moved.dim() == 4 and moved.is_floating_point()
            return moved.contiguous(memory_format=self.memory_format) if images else moved
        if isinstance(batch, Mapping):
            return {name: self.put(value) for name, value in batch.items()}
        if isinstance(batch, tuple | list):
            return [self.put(value) for value in batch]
        return batch


@dataclass(frozen=True)
class Pipeline:
    """The named transforms of a split, in order, and the member of a sample that they change (None: all of it)."""

    transforms: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    place: Place | None = 0

    def apply(self, sample: Any, keys: Callable[[str], int] | None = None) -> Any:
        """The transformed sample; `keys` gives each transform the key of its own stream, by its name."""
        value = sample if self.place is None else sample[self.place]
        for name, transform in self.transforms.items():
            if keys is not None:
                rng.seed_all(keys(name))
            value = transform(value)
        if self.place is None or not self.transforms:
            return value if self.place is None else sample
        if isinstance(sample, Mapping):
            return {**sample, self.place: value}
        return tuple(value if i == self.place else member for i, member in enumerate(sample))


@dataclass(frozen=True)
class Stream:
    """Names the random streams of a split. Training has one an epoch; an evaluation is the same every time."""

    seed: int
    split: str

    def key(self, epoch: int, *names: str | int) -> int:
        """The key of `(seed, epoch, *names)` in training, `(seed, split, *names)` elsewhere."""
        return rng.key(self.seed, epoch if self.split == "train" else self.split, *names)


class Order:
    """Which samples an epoch has, in which order: shuffled by (seed, epoch), or as a sampler says."""

    def __init__(self, length: int, stream: Stream, *, shuffle: bool, sampler: Iterable[int] | None = None) -> None:
        self.length, self.stream, self.shuffle, self.sampler = length, stream, shuffle, sampler

    @property
    def fixed(self) -> bool:
        """Whether every epoch has the samples in their own order."""
        return not self.shuffle and self.sampler is None

    def __call__(self, epoch: int) -> Indices:
        """Positions in the split, int64."""
        if self.sampler is not None:
            return np.fromiter(drawn(self.sampler, self.stream, epoch), dtype=np.int64)
        if self.shuffle:
            return rng.permutation(self.stream.key(epoch, "order"), self.length)
        return np.arange(self.length)


def drawn(sampler: Iterable[Any], stream: Stream, epoch: int) -> list[Any]:
    """All that a sampler gives for an epoch, drawn from the keyed stream of that epoch's order."""
    with rng.stream(stream.key(epoch, "order")):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        return list(sampler)


def split_indices(
    length: int,
    fractions: Mapping[str, float],
    seed: int,
    labels: Sequence[int] | Tensor | None = None,
) -> dict[str, Indices]:
    """Split range(length) into `fractions` by name and the rest, `train`, by a keyed shuffle of each class.

    Raises:
        ValueError: a split would be empty.
    """
    classes = np.zeros(length, np.int64) if labels is None else np.asarray(labels)
    parts: dict[str, list[Indices]] = {name: [] for name in ("train", *fractions)}
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        members = members[rng.permutation(rng.key(seed, "split", int(label)), len(members))]
        taken = 0
        for name, fraction in fractions.items():
            count = round(fraction * len(members))
            parts[name].append(members[taken : taken + count])
            taken += count
        parts["train"].append(members[taken:])
    split = {name: np.sort(np.concatenate(members)) for name, members in parts.items()}
    for name, indices in split.items():
        if not len(indices):
            message = f"the {name} split is empty: {length} samples, fractions {dict(fractions)}"
            raise ValueError(message)
    return split


def labels_of(dataset: Any, place: Place = 1) -> Tensor:
    """The class of every sample, int64: from `targets`, from whole tensors, or sample by sample."""
    if hasattr(dataset, "targets"):
        return torch.as_tensor(dataset.targets)
    tensors = whole_tensors(dataset)
    if tensors is not None and isinstance(place, int):
        return tensors[place]
    return torch.tensor([int(dataset[i][place]) for i in range(len(dataset))])


def whole_tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """The tensors behind a TensorDataset, or a Subset of one, whose samples are just their rows; else None."""
    if isinstance(dataset, Subset):
        inner = whole_tensors(dataset.dataset)
        return None if inner is None else tuple(tensor[torch.as_tensor(dataset.indices)] for tensor in inner)
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        return dataset.tensors
    return None


def fingerprint(source: Any, indices: Indices) -> str:
    """SHA-256 of the data behind a split and of which samples it has.

    All bytes of tensors in memory (of more than 256 MB, rows at equal distances); eight raw samples of anything else.
    """
    digest = hashlib.sha256(indices.tobytes())
    if isinstance(source, Mapping):
        for tensor in source.values():
            rows = tensor[:: max(1, math.ceil(tensor.nbytes / CHUNK_BYTES))]
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
    digest.update(f"{type(source).__qualname__} {len(source)}".encode())
    with rng.stream(rng.key(0, "fingerprint")):
        for index in indices[:: max(1, len(indices) // 8)][:8].tolist():
            _update(digest, source[index])
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, tuple | list):
        for member in value:
            _update(digest, member)
    elif isinstance(value, Tensor):
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif hasattr(value, "tobytes"):  # arrays, images
        digest.update(value.tobytes())
    else:
        digest.update(repr(value).encode())


def batched_form(transform: Any) -> tuple[int, Callable[[Tensor, Tensor], Tensor]] | None:
    """How many uniforms a sample needs, and the function on a batch and those; None where it takes one sample only."""
    if hasattr(transform, "draws") and hasattr(transform, "batched"):
        return transform.draws, transform.batched
    kind = type(transform)
    if kind.__module__.startswith("torchvision.transforms.v2.") and kind.__name__ in BATCHED_AS_THEY_ARE:
        return 0, lambda batch, _: transform(batch)
    return None


class Gathered:
    """Batches from tensors [N, ...] held on the device: an index row for many batches, then views of the result."""

    def __init__(
        self,
        tensors: Mapping[Place, Tensor],
        indices: Indices,
        pipeline: Pipeline,
        order: Order,
        placement: Placement,
        *,
        batch_size: int,
        drop_last: bool = False,
    ) -> None:
        self.order, self.placement, self.pipeline, self.indices = order, placement, pipeline, indices
        self.batch_size, self.drop_last = batch_size, drop_last
        rows = torch.from_numpy(indices)
        self.tensors = {place: tensor[rows].to(placement.device) for place, tensor in tensors.items()}
        self.as_mapping = any(isinstance(place, str) for place in tensors)
        self.steps: list[tuple[str, int, Callable[[Tensor, Tensor], Tensor]]] = []
        for name, transform in pipeline.transforms.items():
            form = batched_form(transform)
            assert form is not None, name
            if form[0] == 0 and not self.steps:  # draws nothing, nothing random before it: once is enough
                assert pipeline.place is not None
                self.tensors[pipeline.place] = form[1](self.tensors[pipeline.place], torch.empty(0))
            else:
                self.steps.append((name, *form))
        self.size = len(indices)
        self.fingerprint = fingerprint(tensors, indices)
        length = self.size if order.sampler is None else len(order(0))
        self.num_batches = length // batch_size if drop_last else math.ceil(length / batch_size)
        sample_bytes = sum(tensor[:1].nbytes for tensor in self.tensors.values())
        self.chunk = batch_size * max(1, CHUNK_BYTES // max(1, sample_bytes * batch_size))
        random = [name for name, draws, _ in self.steps if draws]
        self.plan = f"gathered from memory on {placement.device}" + (
            f", batched: {', '.join(pipeline.transforms)}" if pipeline.transforms else ""
        )
        self.ready = self._views(self.tensors) if order.fixed and not random and not self.steps else None

    def _views(self, members: Mapping[Place, Tensor]) -> list[Any]:
        parts = [self.placement.put(member).split(self.batch_size) for member in members.values()]
        rows = list(zip(*parts, strict=True))
        return [dict(zip(members, row, strict=True)) for row in rows] if self.as_mapping else rows

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on: tuples (or mappings) of tensors [batch, ...]."""
        if self.ready is not None:
            yield from self.ready[start : self.num_batches]
            return
        order = self.order(epoch)[: self.num_batches * self.batch_size][start * self.batch_size :]
        for first in range(0, len(order), self.chunk):
            positions = order[first : first + self.chunk]
            rows = torch.from_numpy(positions).to(self.placement.device)
            members = {place: tensor.index_select(0, rows) for place, tensor in self.tensors.items()}
            for name, draws, batched in self.steps:
                key = self.order.stream.key(epoch, name)
                numbers = rng.uniforms(key, self.indices[positions], draws).to(self.placement.device)
                assert self.pipeline.place is not None
                members[self.pipeline.place] = batched(members[self.pipeline.place], numbers)
            yield from self._views(members)


class KeyedSamples(Dataset[Any]):
    """Samples by (epoch, position), each transform and the dataset itself drawing from a stream of its own."""

    def __init__(self, dataset: Any, indices: Indices, pipeline: Pipeline, stream: Stream) -> None:
        self.dataset, self.indices, self.pipeline, self.stream = dataset, indices, pipeline, stream

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, position = place
        index = int(self.indices[position])

        def keys(name: str) -> int:
            return self.stream.key(epoch, index, name)

        try:
            rng.seed_all(self.stream.key(epoch, index, "dataset"))
            return self.pipeline.apply(self.dataset[index], keys)
        except Exception as error:
            message = f"{self.stream.split} sample {index}: {type(error).__name__}: {error}"
            raise RunError(message) from error

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Any]:
        """A batch's samples, leaving the global generators as they were."""
        with rng.isolated():
            return [self[place] for place in places]


class _Batches:
    """The DataLoader's batch sampler: the positions set for the coming epoch, each with the epoch's number."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


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
        **settings: Any,
    ) -> None:
        self.order, self.placement, self.batch_size, self.drop_last = order, placement, batch_size, drop_last
        self.batch_sampler = batch_sampler
        self.size = len(samples)
        self.fingerprint = fingerprint(samples.dataset, samples.indices)
        self.rows = _Batches()
        # A generator of its own: every iter(DataLoader) draws a seed, from the global one unless told.
        self.loader = DataLoader(samples, batch_sampler=self.rows, generator=torch.Generator(), **settings)
        self.num_batches = len(self._positions(0))
        workers = settings.get("num_workers", 0)
        where = f"by {workers} worker{'s' * (workers != 1)}" if workers else "in this process"
        self.plan = f"sample by sample, {where}" + (f" ({reason})" if reason else "")

    def _positions(self, epoch: int) -> list[list[int]]:
        if self.batch_sampler is not None:
            return [list(batch) for batch in drawn(self.batch_sampler, self.order.stream, epoch)]
        order = self.order(epoch).tolist()
        rows = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        return rows[:-1] if self.drop_last and rows and len(rows[-1]) < self.batch_size else rows

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on, as collated; what is skipped is not read."""
        self.rows.rows = [[(epoch, position) for position in row] for row in self._positions(epoch)[start:]]
        for batch in self.loader:
            yield self.placement.put(batch)


class KeyedStream(IterableDataset[Any]):
    """An iterable dataset's samples, each drawn under a key (epoch, worker, number of the sample)."""

    def __init__(self, dataset: Any, pipeline: Pipeline, stream: Stream, limit: int | None) -> None:
        self.dataset, self.pipeline, self.stream, self.limit, self.epoch = dataset, pipeline, stream, limit, 0

    def _key(self, worker: int, count: int, name: str) -> int:
        return self.stream.key(self.epoch, worker, count, name)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        source = iter(self.dataset)
        count = 0
        while self.limit is None or count < self.limit:
            keys = partial(self._key, worker.id if worker else 0, count)
            with rng.isolated():
                rng.seed_all(keys("dataset"))
                try:
                    sample = self.pipeline.apply(next(source), keys)
                except StopIteration:
                    return
            yield sample
            count += 1


class Streamed:
    """Batches of an iterable dataset, which owns its order: a resume within an epoch reads what it skips."""

    def __init__(self, samples: KeyedStream, placement: Placement, *, batch_size: int, **settings: Any) -> None:
        self.samples, self.placement = samples, placement
        self.loader = DataLoader(samples, batch_size=batch_size, generator=torch.Generator(), **settings)
        self.size = len(samples.dataset) if hasattr(samples.dataset, "__len__") else 0
        self.num_batches = None
        self.fingerprint = ""  # only reading all of it would tell
        self.plan = "streamed in the dataset's own order"

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch; the first `start` of them are read and dropped."""
        self.samples.epoch = epoch
        if hasattr(self.samples.dataset, "set_epoch"):
            self.samples.dataset.set_epoch(epoch)
        for number, batch in enumerate(self.loader):
            if number >= start:
                yield self.placement.put(batch)


@dataclass(frozen=True)
class LoaderSettings:
    """What the config says about making batches of one split."""

    batch_size: int
    shuffle: bool
    drop_last: bool = False
    num_workers: int = 0
    in_memory: bool | str = "auto"
    in_memory_limit: int = 4 * 2**30  # bytes
    sampler: Iterable[int] | None = None
    batch_sampler: Iterable[Sequence[int]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # DataLoader's own: collate_fn, pin_memory, timeout, …


def make_split(
    dataset: Any,
    indices: Indices | None,
    pipeline: Pipeline,
    stream: Stream,
    placement: Placement,
    settings: LoaderSettings,
    *,
    limit: int | None = None,
) -> Split:
    """Batches of a dataset's samples `indices` (None: all), gathered from memory where that is possible and allowed.

    Raises:
        ValueError: `in_memory: true` cannot be had, or the split is empty.
    """
    options = dict(settings.options)
    if isinstance(dataset, IterableDataset):
        samples = KeyedStream(dataset, pipeline, stream, limit)
        return Streamed(
            samples,
            placement,
            batch_size=settings.batch_size,
            drop_last=settings.drop_last,
            num_workers=settings.num_workers,
            **options,
        )
    indices = np.arange(len(dataset)) if indices is None else indices
    if limit is not None and limit < len(indices):
        indices = np.sort(indices[rng.permutation(rng.key(0, "limit", stream.split), len(indices))[:limit]])
    if not len(indices):
        message = f"the {stream.split} split is empty"
        raise ValueError(message)
    order = Order(len(indices), stream, shuffle=settings.shuffle, sampler=settings.sampler)
    tensors, reason = _tensors_for_gathering(dataset, pipeline, settings)
    if tensors is not None:
        return Gathered(
            tensors,
            indices,
            pipeline,
            order,
            placement,
            batch_size=settings.batch_size,
            drop_last=settings.drop_last,
        )
    return Loaded(
        KeyedSamples(dataset, indices, pipeline, stream),
        order,
        placement,
        batch_size=settings.batch_size,
        drop_last=settings.drop_last,
        batch_sampler=settings.batch_sampler,
        reason=reason,
        num_workers=settings.num_workers,
        **options,
    )


def _tensors_for_gathering(
    dataset: Any,
    pipeline: Pipeline,
    settings: LoaderSettings,
) -> tuple[Mapping[Place, Tensor] | None, str]:
    """The whole data as tensors by place where batches can be gathered from them, else the reason why not."""
    reason = _why_single(pipeline, settings)
    tensors = whole_tensors(dataset) if not reason else None
    if tensors is None and not reason and settings.in_memory is True:
        tensors = _stacked(dataset)
    if tensors is None and not reason:
        reason = "the dataset is no plain TensorDataset"
    if tensors is not None and settings.in_memory == "auto":
        size = sum(tensor.nbytes for tensor in tensors)
        if size > settings.in_memory_limit:
            tensors, reason = None, f"{size / 2**30:.1f} GiB are over loader.in_memory_limit"
    if tensors is None and settings.in_memory is True:
        message = f"loader.in_memory: true cannot be had: {reason}"
        raise ValueError(message)
    return (None if tensors is None else dict(enumerate(tensors))), reason


def _why_single(pipeline: Pipeline, settings: LoaderSettings) -> str:
    """Why samples have to be made one by one; empty where nothing in the settings or the transforms says so."""
    single = [name for name, transform in pipeline.transforms.items() if batched_form(transform) is None]
    reasons = {
        "loader.in_memory is false": settings.in_memory is False,
        "workers are asked for": settings.num_workers > 0,
        "loader.batch_sampler is given": settings.batch_sampler is not None,
        "loader.collate_fn is given": settings.options.get("collate_fn") is not None,
        f"no batched form of {', '.join(single)}": bool(single),
        "transforms change whole samples": bool(pipeline.transforms) and pipeline.place is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _stacked(dataset: Any) -> tuple[Tensor, ...]:
    """Every sample of a dataset of equal tuples, read once and stacked."""
    with rng.stream(rng.key(0, "in_memory")):
        samples = [dataset[index] for index in range(len(dataset))]
    return tuple(torch.stack([torch.as_tensor(member) for member in members]) for members in zip(*samples, strict=True))
