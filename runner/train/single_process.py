"""How the tensors of a model and an optimizer lie: whole, where nothing shards them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Whole:
    """Every tensor is whole. Everything here does nothing; `runner.train.distributed.fsdp.Sharded` is the other one."""

    def whole(self, tree: Any) -> Any:
        """A state with every tensor whole."""
        return tree

    def here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What of the tensors lies in this process, sharing their memory."""
        return tensors

    def like(self, part: Tensor, whole: Tensor) -> Tensor:
        """Such a part of a tensor that lies as `whole` does, as that tensor."""
        return part

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer use what works on tensors that lie so."""

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state_dict as the module's `load_state_dict` takes it."""
        return saved

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state as the optimizer's `load_state_dict` takes it."""
        return saved


WHOLE = Whole()


class Alone:
    """One process. Everything here does nothing."""

    rank, world, local_rank = 0, 1, 0
    stream: tuple[int, ...] = ()  # what its random streams are named by, besides what they are for
    due: int | None = None  # the step at which to agree about signals next

    def tell(self, message: Mapping[str, Any]) -> None:
        """Give the others a message: plain data, in the order that they hear it."""

    def start(self, device: torch.device) -> None:
        """The collectives work from here on."""

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """What one process does before the others, for it may write files: a download."""
        yield

    def agree(self, step: int) -> None:
        """Let every process know of a signal that one of them got."""

    def outcomes(self, outcomes: Iterable[Mapping[str, Any]], split: Any) -> Iterable[Mapping[str, Any]]:
        """The outcomes of an evaluation's batches, of all processes, in the order of the batches."""
        return outcomes

    def same(self, value: Any) -> Any:
        """The value that rank 0 has (plain data)."""
        return value

    def union(self, names: list[str]) -> list[str]:
        """What any process has in its list."""
        return names

    def mean(self, values: list[float]) -> list[float]:
        """The means over the processes."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank: tensors in any nesting of lists, tuples and mappings, and plain data.

        Raises:
            RunError: something else is in it.
        """
        return [value]

    def level(self, module: nn.Module) -> None:
        """Give every process the buffers that rank 0 has."""

    def number(self, turn: int) -> int:
        """The number of the batch that this process evaluates in its turn `turn`."""
        return turn

    def every(self, value: Any) -> list[Any]:
        """What each process has (plain data), by rank."""
        return [value]

    def failed(self, error: BaseException) -> None:
        """Let the others know why this process ends; one that only lost another does not count."""

    def blame(self, error: BaseException) -> str:
        """Where a collective failed: which process was the first that failed, in words; else empty."""
        return ""

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost(culprit)` from a thread some seconds after another process failed, where this one still hangs."""

    def end(self) -> None:
        """No collective comes any more."""


ALONE = Alone()
