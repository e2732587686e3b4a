"""An output beside a target of another shape: torch spreads both, and every output meets every target.

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
def refusing() -> Iterator[None]:
    """Make an error of torch's warning that a loss broadcasts."""
    with warnings.catch_warnings():
        refuse()
        yield


def refuse() -> None:
    """The same until the end of the `catch_warnings` that is open."""
    warnings.filterwarnings("error", message=SPREADS)
    warnings.filterwarnings("ignore", message=_SPREADS_NOTHING)


class Spreading(TorchFunctionMode):
    """A context that follows an output and a target through torch's functions.

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
        """Call the function, and note of what its result was made."""
        named = dict(kwargs or {})
        made = func(*args, **named)
        tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        if isinstance(made, Tensor):
            if self._meet(tensors):
                self._look(func, args, named, made, tensors)
            self.sources[made] = frozenset().union(*(self.sources.get(one, frozenset()) for one in tensors))
        return made

    def _meet(self, tensors: list[Tensor]) -> bool:
        """Whether these are the output and the target alone, each in its own shape."""
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


def spread_by(call: Callable[[], Any], output: Any, target: Any) -> tuple[int, ...] | None:
    """The shape to which a call spreads an output and a target, as far as torch's functions or its warning show it."""
    with Spreading(output, target) as seen, warnings.catch_warnings():
        refuse()
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


def words(shape: tuple[int, ...], output: Tensor, target: Tensor) -> str:
    """What is done to both, as the rule of a mistake."""
    return (
        f"compares every output with every target: the output has the shape {list(output.shape)}, the target "
        f"{list(target.shape)}, and torch spreads both to {list(shape)}"
    )
