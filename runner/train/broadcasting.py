"""Detection of a loss that broadcasts output and target, so that every output meets every target.

`[N, 1] - [N]` is `[N, N]`: a loss that takes the mean of that is one of other numbers, and nothing fails.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

# What torch's functional losses warn of; sizes that are one but for ones in front spread nothing.
SPREADS = r"Using a target size \(torch\.Size\("
_ONES = r"\[(?:1(?:, |(?=\])))*"
_BESIDE = r"(.*?)\]\)\) that is different to the input size \(torch\.Size\("
_SPREADS_NOTHING = SPREADS + _ONES + _BESIDE + _ONES + r"\1\]"


@contextmanager
def refuse_broadcasting() -> Iterator[None]:
    """Turn torch's warning about a loss that broadcasts into an error."""
    with warnings.catch_warnings():
        filter_broadcast_warnings()
        yield


def filter_broadcast_warnings() -> None:
    """Turn torch's broadcast warning into an error until the enclosing `catch_warnings` ends."""
    warnings.filterwarnings("error", message=SPREADS)
    warnings.filterwarnings("ignore", message=_SPREADS_NOTHING)


class BroadcastTracker(TorchFunctionMode):
    """Context that tracks an output and a target through torch's functions.

    Attributes:
        shape: to which a function spread the two, in their own shapes, where that has more elements than both.
    """

    def __init__(self, output: Any, target: Any) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None
        self.sources: Any = WeakIdKeyDictionary()
        self.shapes = {"output": getattr(output, "shape", None), "target": getattr(target, "shape", None)}
        for name, member in (("output", output), ("target", target)):
            if isinstance(member, Tensor):
                self.sources[member] = frozenset([name])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function and record the sources of its result."""
        named = dict(kwargs or {})
        made = func(*args, **named)
        tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        if isinstance(made, Tensor):
            if self._meet(tensors):
                self._look(func, args, named, made, tensors)
            self.sources[made] = frozenset().union(*(self.sources.get(one, frozenset()) for one in tensors))
        return made

    def _meet(self, tensors: list[Tensor]) -> bool:
        """Return whether two tensors are the output and the target alone, unchanged, of unequal shapes."""
        if len(tensors) != 2 or self.shapes["output"] == self.shapes["target"]:
            return False
        found = {name: one.shape for one in tensors for name in self.sources.get(one, ())}
        alone = all(len(self.sources.get(one, ())) == 1 for one in tensors)
        return alone and found == self.shapes

    def _look(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], made: Tensor, two: list[Tensor]
    ) -> None:
        with suppress(Exception):  # what has no elements in common is no broadcasting
            spread = torch.broadcast_shapes(*(one.shape for one in two))
            if named.get("reduction") in ("mean", "sum"):
                made = func(*args, **named | {"reduction": "none"})
            if made.shape == spread and made.numel() > max(one.numel() for one in two):
                self.shape = tuple(spread)


def find_broadcast_shape(call: Callable[[], Any], output: Any, target: Any) -> tuple[int, ...] | None:
    """Return the shape to which a call broadcasts output and target, by torch's calls or warning."""
    with BroadcastTracker(output, target) as seen, warnings.catch_warnings():
        filter_broadcast_warnings()
        try:
            call()
        except UserWarning as warning:
            if str(warning).startswith("Using a target size") and seen.shape is None:
                with suppress(RuntimeError):  # which torch refuses by itself
                    seen.shape = tuple(torch.broadcast_shapes(output.shape, target.shape))
        except Exception:  # noqa: BLE001, S110  said by whoever calls it next
            pass
    found: tuple[int, ...] | None = seen.shape
    return found


def describe_broadcast(shape: tuple[int, ...], output: Tensor, target: Tensor) -> str:
    """Describe the broadcast of output and target, as the rule of a mistake."""
    return (
        f"compares every output with every target: the output has the shape {list(output.shape)}, the target "
        f"{list(target.shape)}, and torch spreads both to {list(shape)}"
    )
