"""Batches from memory: one gather for many batches, batched transforms, no work per sample."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.core import rng
from runner.core.copies import copy_owned
from runner.data.bad_samples import BadSample, BadSamples, make_empty_batch_error
from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.per_image import PerImageError
from runner.data.fingerprint import compute_fingerprint
from runner.data.interfaces import DataPlan, Indices, Place, PlanKind
from runner.data.samples import EpochOrder, Pipeline, Placement, draw_alternating
from runner.data.sharding import Shard
from runner.data.whole_dataset import DatasetTensors

# Gathered and transformed at once. On a CPU what stays in its cache: 128 images of 3x32x32 as float32 take 1.5 MB, and
# four such batches at once took 1.1 times as long, eight 1.2. On a GPU fewer, larger kernels.
CHUNK_BYTES = {"cpu": 2 * 2**20}


GPU_CHUNK_BYTES = 64 * 2**20


LOT = 2048  # samples whose random numbers are drawn in one go: hashing has a cost of its own for each call


EPOCHS_AHEAD = 8  # of a small dataset, made in one go: the calls cost more than their work


Part = tuple[dict[Place, Tensor], Indices]  # members of many samples [N, ...], and their positions in the split


class JoinedBatches:
    """Iterator over batches that lie one after the other in memory, many in a part.

    A stack of jobs takes many of them at once, and needs no batch by itself: to cut a part takes 3 µs a tensor.

    Args:
        parts: members of whole batches; the last batch may be smaller.
        cut: cuts a part into its batches.
        size: samples of a batch.
    """

    def __init__(self, parts: Iterator[Part], cut: Callable[..., list[Any]], size: int) -> None:
        self.parts, self.cut, self.size = parts, cut, size
        self._part: Part | None = None
        self._batches: Iterator[Any] = iter(())
        self._left = 0  # of the batches that are cut

    def __iter__(self) -> "JoinedBatches":
        return self

    def __next__(self) -> Any:
        if not self._left:
            part, self._part = self.peek(), None
            if part is None:
                raise StopIteration
            batches = self.cut(*part)
            self._batches, self._left = iter(batches), len(batches)
        self._left -= 1
        return next(self._batches)

    def peek(self) -> Part | None:
        """Return the part that comes next, or its rest; None at the end, and within a part that is cut."""
        if self._part is None and not self._left:
            self._part = next(self.parts, None)
        return self._part

    def skip(self, batches: int) -> None:
        """Go on after so many batches of the part that `peek` has returned."""
        assert self._part is not None
        members, positions = self._part
        start = batches * self.size
        rest = {place: member[start:] for place, member in members.items()}
        self._part = (rest, positions[start:]) if start < len(positions) else None


class InMemoryBatches:
    """Batches of tensors [N, ...] on the device: one index row for many batches, then views.

    Args:
        whole: all samples of the dataset.
        indices: those of the split.
        pipeline: its transforms, each with a batched form.
        chain: those forms; None where there are no transforms.
        order: the order of each epoch.
        placement: the device.
        batch_size: samples of a batch, of all processes together.
        drop_last: leave out an incomplete last batch.
        limit: bytes; what draws nothing is done once to all samples where the result takes no more.
        faults: what is done about NaN and labels out of range.
        share: what this process has of each batch.
    """

    def __init__(
        self,
        whole: DatasetTensors,
        indices: Indices,
        pipeline: Pipeline,
        chain: BatchedTransforms | None,
        order: EpochOrder,
        placement: Placement,
        *,
        batch_size: int,
        drop_last: bool = False,
        limit: int = 4 * 2**30,
        faults: BadSamples | None = None,
        share: Shard | None = None,
    ) -> None:
        self.share = share or Shard()
        self.order, self.placement, self.place = order, placement, pipeline.place
        self.sampler = order.sampler
        self.fingerprint = compute_fingerprint(whole, indices)
        faults = faults or BadSamples(order.stream.split)
        self.sound = find_sound_samples(whole, indices, faults)
        self.indices, self.batch_size = indices, batch_size
        rows = torch.from_numpy(indices)
        homes = dict.fromkeys(whole.tensors, placement.device)
        if chain is not None and chain.looped and pipeline.place is not None:
            homes[pipeline.place] = torch.device("cpu")  # where single images are transformed
        self.tensors = {place: tensor[rows].to(homes[place]) for place, tensor in whole.tensors.items()}
        self.as_mapping = any(isinstance(place, str) for place in whole.tensors)
        self.clock, self.pipeline, self.pil = order.stream.clock, pipeline, pipeline.place in whole.pil
        self.timed = chain is not None and bool(pipeline.timed)
        self.alternating = {name for name, one in pipeline.transforms.items() if getattr(one, "alternates", False)}
        self.chain = chain if self.timed else self._once(chain, limit)
        self.size = len(indices) if self.sound is None else int(self.sound.sum())
        length = len(indices) if order.sampler is None else len(order(0))
        self.num_batches = length // batch_size if drop_last else math.ceil(length / batch_size)
        self.kept = min(length, self.num_batches * batch_size)  # of an epoch, by all processes
        self.length = len(self.share.positions(np.arange(self.kept), batch_size))  # by this one
        self.own_size = self.share.size(batch_size)
        sample_bytes = sum(self._bytes(place) for place in self.tensors)
        budget = CHUNK_BYTES.get(placement.device.type, GPU_CHUNK_BYTES)
        self.chunk = self.own_size * max(1, budget // max(1, sample_bytes * self.own_size))
        self.ahead = max(1, min(EPOCHS_AHEAD, budget // max(1, sample_bytes * self.length)))
        if order.sampler is not None or order.fixed or (self.chain is not None and self.chain.looped) or self.timed:
            self.ahead = 1
        self.file, self.faults = whole.file, faults
        kind = PlanKind.IN_MEMORY
        self.plan = DataPlan(kind, f"{kind} on {placement.device}{describe_batching(pipeline.transforms, chain)}")
        self.ready: dict[int, Part] = {}
        self.unchanging = self._fixed() if order.fixed and self.chain is None else None

    def whole(self, number: int) -> int:
        """Count the samples of batch `number` of an epoch, over all processes."""
        return max(0, min(self.batch_size, self.kept - number * self.batch_size))

    def _fixed(self) -> list[Any]:
        """Build the batches of every epoch; for a fixed order without transforms per batch."""
        if self.share.world == 1:
            return self._views(self.tensors, np.arange(len(self.indices)))[: self.num_batches]
        positions = self._own(0)
        return self._views(self._made(positions, []), positions)

    def _own(self, epoch: int) -> Indices:
        """Return this process's positions of an epoch."""
        return self.share.positions(self.order(epoch)[: self.kept], self.batch_size)

    def _once(self, chain: BatchedTransforms | None, limit: int) -> BatchedTransforms | None:
        """Apply the leading deterministic transforms to the whole dataset; return the remaining ones."""
        if chain is None:
            return None
        assert self.place is not None
        first, rest = chain.split()
        tensor = self.tensors[self.place]
        if first.stages and len(tensor):
            probe = first.alone(tensor[:1].clone())  # a transform may change what it gets
            if probe.nbytes * len(tensor) > limit:
                return chain
            step = max(1, GPU_CHUNK_BYTES // max(1, probe.nbytes))
            self.tensors[self.place] = torch.cat([first.alone(part) for part in tensor.split(step)])
        return rest if rest.stages else None

    def _bytes(self, place: Place) -> int:
        """Count the bytes of a transformed sample's member."""
        member = self.tensors[place][:1]
        if place == self.place and self.chain is not None and len(member):
            member = self.chain.alone(member.clone())
        return member.nbytes

    def _views(self, members: dict[Place, Tensor], positions: Indices) -> list[Any]:
        """Split gathered samples into batches, in the order of `positions`, without skipped samples."""
        parts = [self.placement.put(member).split(self.own_size) for member in members.values()]
        rows = list(zip(*parts, strict=True))
        if self.sound is not None:
            kept = [mask.nonzero()[:, 0] for mask in self.sound[torch.from_numpy(positions)].split(self.own_size)]
            if not all(map(len, kept)):
                raise make_empty_batch_error(self.order.stream.split)
            places = [which.to(self.placement.device) for which in kept]
            rows = [tuple(m.index_select(0, at) for m in row) for row, at in zip(rows, places, strict=True)]
        return [dict(zip(members, row, strict=True)) for row in rows] if self.as_mapping else rows

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over an epoch's batches from `start` on: tuples (or mappings) of tensors [batch, ...]."""
        if self.timed or self.unchanging is not None:
            return self._iterate_alone(epoch, start)
        return JoinedBatches(self._iterate_parts(epoch, start), self._views, self.own_size)

    def _iterate_alone(self, epoch: int, start: int) -> Iterator[Any]:
        first_step = self.clock.begin(self.order.stream.split, epoch, start)
        if self.timed:
            yield from self._iterate_timed(epoch, start, first_step)
        elif self.unchanging is not None:
            yield from map(copy_owned, self.unchanging[start:])  # a step, or a ReLU in place, may change its batch

    def _iterate_parts(self, epoch: int, start: int) -> Iterator[Part]:
        """Yield the samples of an epoch, from a batch on, in parts of whole batches."""
        self.clock.begin(self.order.stream.split, epoch, start)
        first = start * self.own_size
        if self.ahead > 1:
            if epoch not in self.ready:
                self._prepare(epoch)
            # Given once: a step may change its batches, and a fault may go back to this epoch.
            members, positions = self.ready.pop(epoch)
            if first < len(positions):
                yield {place: member[first:] for place, member in members.items()}, positions[first:]
            return
        order = self._own(epoch)[first:]
        lot = self.chunk * max(1, LOT // self.chunk)
        for first in range(0, len(order), lot):
            positions = order[first : first + lot]
            prepared = self._numbers(positions, [epoch])
            for begin in range(0, len(positions), self.chunk):
                part = slice(begin, begin + self.chunk)
                some = [tuple(member[part] for member in needs) for needs in prepared]
                yield self._made(positions[part], some), positions[part]

    def _iterate_timed(self, epoch: int, start: int, first_step: int) -> Iterator[Any]:
        """Make one batch after another, each with the transforms as they are at its step."""
        assert self.place is not None
        sample = self.tensors[self.place][0].cpu()
        rows = np.split(order := self._own(epoch), range(self.own_size, len(order), self.own_size))
        for number, positions in enumerate(rows[start:], start):
            self.clock.set(self.clock.when(self.order.stream.split, epoch, first_step, number))
            self.chain = BatchedTransforms(self.pipeline.transforms, sample, pil=self.pil)
            yield from self._views(self._made(positions, self._numbers(positions, [epoch])), positions)

    def sample_indices(self, epoch: int, batch: int) -> list[int]:
        """Give the dataset's indices of a batch of all processes."""
        row = self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return [int(index) for index in self.indices[row]]

    def _prepare(self, epoch: int) -> None:
        """Make the batches of this epoch and some later ones, each drawn under its own epoch."""
        length = self.length
        epochs = range(epoch, epoch + self.ahead)
        positions = np.concatenate([self._own(number) for number in epochs])
        members = self._made(positions, self._numbers(positions, epochs))
        parts = {place: member.split(length) for place, member in members.items()}
        self.ready = {
            number: ({place: part[i] for place, part in parts.items()}, positions[i * length :][:length])
            for i, number in enumerate(epochs)
        }

    def _numbers(self, positions: Indices, epochs: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Draw the transforms' random numbers for these samples, equally many from each epoch."""
        if self.chain is None:
            return []
        indices, key = self.indices[positions], self.order.stream.key
        each = len(positions) // len(epochs)

        def keys(name: str) -> Any:
            found = [key(epoch, name) for epoch in epochs]
            return found[0] if len(found) == 1 else np.repeat(np.array(found, np.uint64), each)

        numbers = {name: rng.draw_uniforms(keys(name), indices, draws) for name, draws in self.chain.draws.items()}
        for name in self.alternating & numbers.keys():
            which = np.repeat(np.array(epochs), each)
            numbers[name] = draw_alternating(key, name, which, indices, self.chain.draws[name])
        for name in self.chain.looped:  # the seeds that these samples have one by one
            seeds = [key(epochs[at // each], index, name) for at, index in enumerate(indices.tolist())]
            numbers[name] = torch.tensor(seeds)
        return self.chain.prepare(numbers, len(positions))

    def _made(self, positions: Indices, numbers: list[tuple[Tensor, ...]]) -> dict[Place, Tensor]:
        """Gather the samples at these positions and transform them with these numbers."""
        rows = torch.from_numpy(positions)
        members = {place: tensor.index_select(0, rows.to(tensor.device)) for place, tensor in self.tensors.items()}
        if self.chain is not None:
            assert self.place is not None
            try:
                members[self.place] = self.chain(members[self.place], numbers, self.placement.device)
            except PerImageError as error:
                index = int(self.indices[positions[error.row]])
                self.faults.note(BadSample(index, error.error, self.file(index)))
                raise  # unless it is skipped, which goes sample by sample
        return members


def describe_batching(transforms: Mapping[str, Any], chain: BatchedTransforms | None) -> str:
    """Describe which transforms run on whole batches, which on single images, and why."""
    looped = {} if chain is None else chain.looped
    whole = ", ".join(name for name in transforms if name not in looped)
    single = ", ".join(f"{name} ({reason})" for name, reason in looped.items())
    return (f", batched: {whole}" if whole else "") + (f", one by one: {single}" if single else "")


def find_sound_samples(whole: DatasetTensors, indices: Indices, faults: BadSamples) -> Tensor | None:
    """Return a mask, bool [len(indices)], of samples with finite numbers and labels in range; None: all.

    Raises:
        RunError: one has not, and `faults` does not skip; or too many.
        ValueError: none has.
    """
    rows = torch.from_numpy(indices)
    suspect = torch.zeros(len(indices), dtype=torch.bool)
    for place, tensor in whole.tensors.items():
        if tensor.is_floating_point():
            sums = tensor.flatten(1).sum(1) if tensor.dim() > 1 else tensor  # finite unless a member is not, or huge
            suspect |= ~torch.isfinite(sums[rows])
        elif place == faults.target and faults.classes is not None and tensor.dim() == 1:
            suspect |= (tensor[rows] < 0) | (tensor[rows] >= faults.classes)
    good = torch.tensor([index not in whole.bad for index in indices.tolist()]) if whole.bad else ~suspect
    for position in suspect.nonzero()[:, 0].tolist():
        index = int(indices[position])
        if index in whole.bad:
            continue
        text = faults.wrong({place: tensor[index] for place, tensor in whole.tensors.items()})
        good[position] = not text
        if text:
            faults.note(BadSample(index, text, whole.file(index)))
    if not good.any():
        message = f"the {faults.split} split has no sound sample"
        raise ValueError(message)
    return None if good.all() else good
