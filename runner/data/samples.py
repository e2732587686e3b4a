"""Samples: placement, transform pipeline, order of an epoch, keys of a split's random streams.

The stream of one sample is in `keyed_samples.py`.

Order and augmentation are drawn from keys (seed, epoch, index, transform name), so they depend neither on workers nor
on what ran before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.core import rng
from runner.core.copies import copy_owned
from runner.core.errors import RunError
from runner.core.layouts import is_strided
from runner.core.trees import map_tensors
from runner.data.interfaces import Indices, Place, iterate_members
from runner.data.timing import DataClock, tell_samplers


@dataclass(frozen=True)
class Placement:
    """Device of batches, and memory format of images (4-d floating point tensors)."""

    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    def put(self, batch: Any) -> Any:
        """Move a batch (tensors in nested tuples, lists and mappings) to the device; tuples become lists."""
        return map_tensors(self._move, batch)

    def _move(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device, non_blocking=True)
        images = moved.dim() == 4 and moved.is_floating_point() and is_strided(moved)
        return moved.contiguous(memory_format=self.memory_format) if images else moved


def draw_alternating(key: Callable[..., int], name: str, epochs: Any, indices: Indices, draws: int) -> Tensor:
    """Draw the uniforms [N, draws] of a transform that alternates: u in even epochs, 1 - u in odd ones.

    The key has no epoch, so a sample has the same u in all of them.
    """
    uniforms = rng.draw_uniforms(key(0, name), indices, draws)
    odd = torch.from_numpy(np.broadcast_to(np.asarray(epochs) % 2 == 1, indices.shape).copy())[:, None]
    return torch.where(odd, 1 - uniforms, uniforms)


@dataclass(frozen=True)
class Pipeline:
    """Named transforms of a split, in order, and the sample member they change (None: the whole sample).

    `timed` names those that change with the progress of training.
    """

    transforms: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    place: Place | None = 0
    timed: frozenset[str] = frozenset()

    def apply(
        self,
        sample: Any,
        keys: Callable[[str], int] | None = None,
        uniforms: Callable[[str, int], Tensor] | None = None,
    ) -> Any:
        """Return the transformed sample.

        Args:
            sample: as the dataset gives it.
            keys: the key of a transform's own stream, by its name.
            uniforms: `uniforms(name, draws)`, the numbers [1, draws] of a transform with `draws` and `batched`: those
                that it gets where whole batches are made, so both ways give the same.
        """
        if not self.transforms:
            return sample
        value, shared = sample if self.place is None else sample[self.place], True
        for name, transform in self.transforms.items():
            if shared and may_change(transform):
                value, shared = copy_owned(value), False
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


def may_change(transform: Any) -> bool:
    """Return whether a transform may change its input: all but torchvision's, unless `inplace`."""
    kind = type(transform)
    if not kind.__module__.startswith("torchvision.transforms.") or getattr(transform, "inplace", False):
        return True
    if kind.__name__ in ("Lambda", "LinearTransformation"):
        return True
    inner = getattr(transform, "transforms", ())
    return any(map(may_change, inner.values() if isinstance(inner, Mapping) else inner))


@dataclass(frozen=True)
class Stream:
    """Keys of a split's random streams: one per epoch in training, the same in every evaluation."""

    seed: int
    split: str
    clock: DataClock = field(default_factory=DataClock)

    def key(self, epoch: int, *names: str | int) -> int:
        """Derive the key of `(seed, epoch, *names)` in training, `(seed, split, *names)` elsewhere."""
        return rng.derive_key(self.seed, epoch if self.split == "train" else self.split, *names)


class EpochOrder:
    """Sample order of an epoch: sequential, shuffled by (seed, epoch), or given by a sampler."""

    def __init__(self, length: int, stream: Stream, *, shuffle: bool, sampler: Iterable[int] | None = None) -> None:
        self.length, self.stream, self.shuffle, self.sampler = length, stream, shuffle, sampler
        self.drawn: int | None = None  # samples or batches of the first epoch that a sampler was asked for
        self.kept: dict[int, Any] | None = None  # what was drawn, by epoch, while somebody keeps it: see OrderTrace

    @property
    def fixed(self) -> bool:
        """Return whether every epoch has the samples in their own order."""
        return not self.shuffle and self.sampler is None

    def __call__(self, epoch: int) -> Indices:
        """Return the epoch's positions in the split, int64."""
        if self.sampler is not None:
            return np.fromiter(self.draw(self.sampler, epoch), dtype=np.int64)
        if self.shuffle:
            drawn = rng.draw_permutation(self.stream.key(epoch, "order"), self.length)
            self._keep(epoch, drawn)
            return drawn
        return np.arange(self.length)

    def _keep(self, epoch: int, drawn: Any) -> None:
        if self.kept is not None:
            self.kept[epoch] = drawn

    def draw(self, sampler: Iterable[Any], epoch: int, key: str = "loader.sampler", unit: str = "samples") -> list[Any]:
        """Draw what a sampler or a batch sampler gives in an epoch.

        Raises:
            RunError: it is not as much as in the first epoch.
        """
        self.stream.clock.begin(self.stream.split, epoch)
        given = draw_sampler(sampler, self.stream, epoch)
        if self.drawn is None:
            self.drawn = len(given)
        if len(given) != self.drawn:
            raise RunError(
                f"{key} gives {len(given):,} {unit} in epoch {epoch}, and gave {self.drawn:,} at first: durations, "
                f"schedules and a resume count on epochs of one length. Let it give {self.drawn:,} each time (some "
                f"more than once, or not at all), or take a dataset that yields its samples (torch's IterableDataset)"
            )
        self._keep(epoch, given)
        return given


def draw_sampler(sampler: Iterable[Any], stream: Stream, epoch: int) -> list[Any]:
    """Draw all indices of a sampler for an epoch from the keyed stream of that epoch's order."""
    with rng.stream(stream.key(epoch, "order")):
        tell_samplers(sampler, epoch)
        return list(sampler)


def to_image(image: Any) -> Tensor:
    """Convert a PIL image to a tensor [C, H, W] of its own pixels: uint8, or the dtype of its mode."""
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1).contiguous()


def collect_shapes(sample: Any) -> tuple[tuple[Any, ...], ...]:
    """Return places and shapes of a sample's tensors and arrays, which one batch must share."""
    return tuple(
        (place, tuple(member.shape))
        for place, member in iterate_members(sample)
        if isinstance(member, Tensor | np.ndarray) and not getattr(member, "is_nested", False)
    )
