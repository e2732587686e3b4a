"""A sample's way to a batch: where batches go, the transforms, the random streams, the order of an epoch, the faults.

Order and augmentation are drawn from keys (seed, epoch, index, transform name), so they depend neither on workers nor
on what ran before.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runner import rng
from runner.errors import RunError

Indices = npt.NDArray[np.int64]
Place = int | str
LISTED = "bad_samples.jsonl"  # in the run directory


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

    def apply(
        self,
        sample: Any,
        keys: Callable[[str], int] | None = None,
        uniforms: Callable[[str, int], Tensor] | None = None,
    ) -> Any:
        """The transformed sample.

        Args:
            sample: as the dataset gives it.
            keys: the key of a transform's own stream, by its name.
            uniforms: `uniforms(name, draws)`, the numbers [1, draws] of a transform with `draws` and `batched`: those
                that it gets where whole batches are made, so both ways give the same.
        """
        if not self.transforms:
            return sample
        value = sample if self.place is None else sample[self.place]
        for name, transform in self.transforms.items():
            batched = getattr(transform, "batched", None)
            if uniforms is not None and batched is not None and isinstance(value, Tensor):
                value = batched(value[None], uniforms(name, getattr(transform, "draws", 0)))[0]
                continue
            if keys is not None:
                rng.seed_all(keys(name))
            value = transform(value)
        if self.place is None:
            return value
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


@dataclass(frozen=True)
class Share:
    """What one process of several has of each batch: all, for it is alone.

    Attributes:
        rank: the number of this process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        """What it has of the batches of an epoch, each a row of positions, in order."""
        return list(rows)

    def positions(self, order: Indices, batch_size: int) -> Indices:
        """The same in one piece, of an epoch's positions in batches of `batch_size`."""
        return order

    def size(self, batch_size: int) -> int:
        """Its samples of a whole batch."""
        return batch_size

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        """Of its batch `number`: how many of the samples count, and how many the batch has for all processes together.

        `sizes(k)` is the number of samples of batch k, 0 beyond the last.
        """
        return sizes(number), sizes(number)


class _OneOfMany(Share):
    def positions(self, order: Indices, batch_size: int) -> Indices:
        rows = self.rows([order[first : first + batch_size] for first in range(0, len(order), batch_size)])
        return np.concatenate(rows) if rows else order[:0]


class Part(_OneOfMany):
    """An even part of every batch, one sample more for the first ranks where it does not divide: for training.

    Where there are fewer samples than processes, those without get some that do not count: all of them take part in
    every step.
    """

    def part(self, length: int) -> slice:
        """Where in a batch of that length its samples lie; maybe nowhere."""
        base, more = divmod(length, self.world)
        start = self.rank * base + min(self.rank, more)
        return slice(start, start + base + (self.rank < more))

    def taken(self, row: Any) -> Any:
        """Its part of a row, or what stands in for it."""
        own = row[self.part(len(row))]
        return own if len(own) else row[:1]

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        return [self.taken(row) for row in rows]

    def size(self, batch_size: int) -> int:
        return batch_size // self.world

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        whole = sizes(number)
        part = self.part(whole)
        return part.stop - part.start, whole


class Turn(_OneOfMany):
    """Whole batches, in turn: for evaluation, which then computes on the very batches of a single process.

    In the last turn, those for whom none is left do the last one too, and it does not count.
    """

    def rows(self, rows: Sequence[Any]) -> list[Any]:
        own = list(rows[self.rank :: self.world])
        return own if len(own) * self.world >= len(rows) else [*own, rows[-1]]

    def counts(self, number: int, sizes: Callable[[int], int]) -> tuple[int, int]:
        size = sizes(number * self.world + self.rank)
        return size, size


@dataclass(frozen=True)
class Fault:
    """A sample that cannot be had.

    Attributes:
        index: its number in the dataset; of an iterable one, how many came before it (from the same worker).
        error: what is wrong.
        file: its file, where that is known.
        worker: the worker that counted, where an iterable dataset's samples come from several.
        final: nothing comes after it, so it cannot be left out.
    """

    index: int
    error: str
    file: str = ""
    worker: int | None = None
    final: bool = False


@dataclass
class Faults:
    """What is done about bad samples of a split: the first ends the run, or they are listed and left out.

    Attributes:
        split: its name, for messages.
        skip: whether to leave bad samples out.
        limit: how many may be left out.
        folder: the run directory, where `bad_samples.jsonl` lists them.
        classes: a class index at `target` must be below it; None: nothing is known.
        target: the place of the class index.
    """

    split: str = "train"
    skip: bool = False
    limit: int = 100
    folder: Path | None = None
    classes: int | None = None
    target: Place | None = None
    found: set[int | tuple[int, int]] = field(default_factory=set)  # indices, with the worker where that counts

    def __post_init__(self) -> None:
        """What the run listed before it was resumed is neither listed nor counted again."""
        listed = None if self.folder is None else self.folder / LISTED
        if listed is not None and listed.exists():
            for line in map(json.loads, listed.read_text().splitlines()):
                if line["split"] == self.split:
                    self.found.add(line["index"] if "worker" not in line else (line["worker"], line["index"]))

    def note(self, fault: Fault) -> None:
        """Take a fault.

        Raises:
            RunError: faults are errors here, or there are too many of them.
        """
        where = f" ({fault.file})" if fault.file else ""
        who = "" if fault.worker is None else f" of worker {fault.worker}"
        message = f"{self.split} sample {fault.index}{who}{where}: {fault.error}"
        if fault.final and self.skip:
            message += "; an iterable dataset that raised has no next sample, so this one cannot be skipped"
        if not self.skip or fault.final:
            raise RunError(message)
        key = fault.index if fault.worker is None else (fault.worker, fault.index)
        if key in self.found:
            return
        self.found.add(key)
        if self.folder is not None:
            line: dict[str, Any] = {"split": self.split, "index": fault.index, "file": fault.file, "error": fault.error}
            if fault.worker is not None:
                line["worker"] = fault.worker
            with (self.folder / LISTED).open("a") as file:
                file.write(json.dumps(line) + "\n")
        if len(self.found) > self.limit:
            text = f"more than {self.limit} bad samples (loader.bad_samples_limit); the last: {message}"
            raise RunError(text)

    def wrong(self, sample: Any) -> str:
        """What is wrong with a sample's numbers, in words; empty where nothing is."""
        for place, member in _members(sample):
            if isinstance(member, Tensor) and member.is_floating_point() and not bool(torch.isfinite(member).all()):
                return f"member {place!r} has NaN or infinite numbers"
            if place == self.target and self.classes is not None:
                label = _as_class(member)
                if label is not None and not 0 <= label < self.classes:
                    return f"the label {label} is out of range: dataset.classes is {self.classes}"
        return ""


def empty_batch(split: str) -> RunError:
    """What is wrong with a batch of which every sample was left out."""
    text = f"a batch of the {split} split has no sound sample: with `loader.bad_samples: skip`, make batches larger"
    return RunError(text)


def to_image(image: Any) -> Tensor:
    """A PIL image as it is stored, [C, H, W]: uint8, or what its mode has."""
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1).contiguous()


def _members(sample: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(sample, Mapping):
        return sample.items()
    return enumerate(sample) if isinstance(sample, tuple | list) else [(0, sample)]


def _as_class(member: Any) -> int | None:
    if isinstance(member, Tensor):
        return int(member) if member.numel() == 1 and not member.is_floating_point() else None
    return int(member) if isinstance(member, int | np.integer) else None


def signature(sample: Any) -> tuple[tuple[Any, ...], ...]:
    """Places and shapes of a sample's tensors and arrays: samples of one batch must agree in them."""
    return tuple(
        (place, tuple(member.shape)) for place, member in _members(sample) if isinstance(member, Tensor | np.ndarray)
    )


def file_of(dataset: Any, index: int) -> str:
    """The file that a sample comes from, where the dataset lists them (`samples`, `files` or `paths`); else empty."""
    inner, rows = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and isinstance(rows, list | tuple) and index < len(rows):  # a Subset
        return file_of(inner, int(rows[index]))
    for name in ("samples", "files", "paths"):
        entries = getattr(dataset, name, None)
        if isinstance(entries, list | tuple) and index < len(entries):
            entry = entries[index]
            entry = entry[0] if isinstance(entry, tuple | list) and entry else entry
            if isinstance(entry, str | os.PathLike):
                return os.fspath(entry)
    return ""
