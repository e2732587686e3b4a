"""Interfaces of the data wing: a split, its loader settings, indices and the place of a sample."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


Place = int | str


MOST_NAMED = 4  # parts of the data that are named one by one


@dataclass(frozen=True)
class Fingerprint:
    """Hash of a split's data.

    Attributes:
        sha256: of the samples; empty where only reading all of them would tell.
        left_out: what of them is no part of it, and why.
    """

    sha256: str = ""
    left_out: tuple[str, ...] = ()

    def describe(self) -> str:
        """Describe what the hash leaves out; empty if it is nothing."""
        named = "; ".join(self.left_out[:MOST_NAMED]) + f"; {len(self.left_out) - MOST_NAMED} more" * (
            len(self.left_out) > MOST_NAMED
        )
        return f"the fingerprint leaves out: {named}; a resume cannot see whether it changed" if named else ""

    def as_json(self) -> dict[str, Any]:
        """Return the hash for the provenance, with what it leaves out if it does."""
        return {"sha256": self.sha256} | ({"left_out": list(self.left_out)} if self.left_out else {})


STREAMED_FINGERPRINT = Fingerprint(
    left_out=("all samples, because only reading an iterable dataset to its end would tell",)
)


class PlanKind(StrEnum):
    """Ways to make batches; provenance records the one that was taken, and a resume keeps it."""

    IN_MEMORY = "gathered from memory"
    PER_SAMPLE = "sample by sample"
    WHOLE_BATCHES = "batch by batch, as the dataset gives them"
    STREAMED = "streamed in the dataset's own order"
    NO_DATA = "no data"


@dataclass(frozen=True)
class DataPlan:
    """Plan of a split's batches: the kind, and a text for people that no code reads."""

    kind: PlanKind
    text: str

    def __str__(self) -> str:
        return self.text

    def extend(self, text: str) -> "DataPlan":
        """Return the same plan with more said about it."""
        return DataPlan(self.kind, f"{self.text}; {text}")


class Split(Protocol):
    """Batches of one split, on the device."""

    @property
    def size(self) -> int:
        """Return the number of samples of an epoch; 0 where the dataset does not know."""
        ...

    @property
    def num_batches(self) -> int | None:
        """Return the number of batches of an epoch; None where the dataset does not know."""
        ...

    @property
    def plan(self) -> DataPlan:
        """Describe how the batches are made."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Return a hash of the data, and what it leaves out."""
        ...

    @property
    def sampler(self) -> Any:
        """The user's sampler; None where there is none."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch from number `start` on."""
        ...

    def sample_indices(self, epoch: int, batch: int) -> list[int] | None:
        """Give the dataset's indices of a batch of all processes; None where the dataset owns its order."""
        ...


@dataclass(frozen=True)
class LoaderSettings:
    """Loader settings of one split, as the config gives them."""

    batch_size: int | None  # of all processes together; None: a sample is a whole batch
    shuffle: bool
    drop_last: bool = False
    num_workers: int = 0
    in_memory: bool | str = "auto"
    in_memory_limit: int = 4 * 2**30  # bytes
    sampler: Iterable[int] | None = None
    batch_sampler: Iterable[Sequence[int]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # DataLoader's own: collate_fn, pin_memory, timeout, …
    timed: bool = False  # whether the dataset looks at the progress of training


def iterate_members(sample: Any) -> Iterable[tuple[Any, Any]]:
    """Iterate over a sample's members with their keys or positions."""
    if isinstance(sample, Mapping):
        return sample.items()
    return enumerate(sample) if isinstance(sample, tuple | list) else [(0, sample)]
