"""Single-process defaults: full tensors instead of shards, and collectives that are no-ops."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FullTensors:
    """Layout of full tensors: every method is a no-op; `ShardedTensors` is the layout under FSDP."""

    def whole(self, tree: Any) -> Any:
        """Return a state with every tensor full."""
        return tree

    def here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the local part of each tensor, sharing its memory."""
        return tensors

    def like(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return a local part as a tensor with the layout of `whole`."""
        return part

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn off fused kernels that do not support this layout."""

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a saved state_dict for the module's `load_state_dict`."""
        return saved

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a saved state for the optimizer's `load_state_dict`."""
        return saved


FULL_TENSORS = FullTensors()


class SingleProcess:
    """Process group of one process: every method is a no-op."""

    rank, world, local_rank = 0, 1, 0
    stream: tuple[int, ...] = ()  # what its random streams are named by, besides what they are for
    due: int | None = None  # the step at which to agree about signals next

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send the other processes a message of plain data; they receive messages in order."""

    def start(self, device: torch.device) -> None:
        """Initialize the collectives."""

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Run the block in rank 0 before the other processes: it may write files, such as a download."""
        yield

    def agree(self, step: int) -> None:
        """Share received signals between the processes."""

    def outcomes(
        self, outcomes: Iterable[Mapping[str, Any]], split: Any, fields: frozenset[str] = frozenset()
    ) -> Iterable[Mapping[str, Any]]:
        """Yield an evaluation's step outputs of all processes, in batch order: numbers and `fields`."""
        return outcomes

    def same(self, value: Any) -> Any:
        """Broadcast rank 0's value (plain data)."""
        return value

    def union(self, names: list[str]) -> list[str]:
        """Return the union of all processes' lists."""
        return names

    def mean(self, values: list[float]) -> list[float]:
        """Return the means over the processes."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """Gather each process's value by rank: plain data and tensors in lists, tuples and mappings.

        Raises:
            RunError: something else is in it.
        """
        return [value]

    def level(self, module: nn.Module) -> None:
        """Broadcast rank 0's buffers."""

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, on its device and without waiting for it."""
        return tensor

    def number(self, turn: int) -> int:
        """Return the number of the batch that this process evaluates at turn `turn`."""
        return turn

    def every(self, value: Any) -> list[Any]:
        """Gather each process's value (plain data), by rank."""
        return [value]

    def failed(self, error: BaseException) -> None:
        """Tell the other processes why this one ends, unless it only lost another process."""

    def blame(self, error: BaseException) -> str:
        """Describe the process that failed first, after a failed collective; else return ""."""
        return ""

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost(culprit)` from a thread if this process hangs after another process failed."""

    def end(self) -> None: ...


SINGLE_PROCESS = SingleProcess()
