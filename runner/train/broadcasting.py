"""Detection of a loss that broadcasts output and target, so that every output meets every target.

`[N, 1] - [N]` is `[N, N]`: a loss that takes the mean of that is one of other numbers, and nothing fails.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from runner.core.trees import iterate_tensors

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


# Functions that reduce what they have spread, and take no other pairs of shapes.
_REDUCING = (torch.dist, torch.pairwise_distance, torch.cosine_similarity, torch.allclose, torch.isclose)
# Functions whose arguments say which dimension meets which.
_EXPLICIT = (torch.einsum, torch.tensordot, torch.cdist, torch.kron)
_LIKE = ("type_as", "expand_as", "view_as", "reshape_as", "to")  # methods that take no number of their argument


class BroadcastTracker(TorchFunctionMode):
    """Context that tracks an output and a target through torch's functions.

    Attributes:
        shape: to which a function spread two of them, in their own shapes, where that has more elements than both.
        output: the output that was spread.
        target: the target that was spread.
        error: with which the call that was followed ended.
    """

    def __init__(self, output: Any, target: Any) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None
        self.output: Tensor | None = None
        self.target: Tensor | None = None
        self.error: Exception | None = None
        self.sources: Any = WeakIdKeyDictionary()
        self.members: dict[tuple[str, int], Tensor] = {}
        for name, value in (("output", output), ("target", target)):
            self.follow(name, value)

    def follow(self, name: str, value: Any) -> None:
        """Follow the tensors in a value as outputs or as targets."""
        for member in iterate_tensors(value):
            source = (name, len(self.members))
            self.members[source] = member
            self.sources[member] = frozenset([source])

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
        tensors = list(iterate_tensors([*args, *named.values()]))
        if self.shape is None and func not in _EXPLICIT:
            for output, target in self._pairs(tensors):
                self._look(func, args, named, made, output, target)
        used = tensors[:1] if getattr(func, "__name__", "") in _LIKE else tensors
        sources = frozenset().union(*(self.sources.get(one, frozenset()) for one in used))
        for one in iterate_tensors(made) if sources else ():
            if one not in self.sources or isinstance(made, Tensor):
                self.sources[one] = sources
        return made

    def _pairs(self, tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs beside targets, each in its own shape; none where a tensor is made of both already."""
        of = [self.sources.get(one, frozenset()) for one in tensors]
        if any(len({name for name, _ in sources}) > 1 for sources in of):
            return
        own = [self.members[next(iter(sources))] if len(sources) == 1 else None for sources in of]
        whole = {
            next(iter(sources))[0]: member
            for one, sources, member in zip(tensors, of, own, strict=True)
            if member is not None and one.shape == member.shape
        }
        if len(whole) == 2 and whole["output"].shape != whole["target"].shape:
            yield whole["output"], whole["target"]

    def _look(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        made: Any,
        output: Tensor,
        target: Tensor,
    ) -> None:
        with suppress(Exception):  # what has no elements in common is no broadcasting
            spread = torch.broadcast_shapes(output.shape, target.shape)
            if named.get("reduction") in ("mean", "sum", "batchmean"):
                made = func(*args, **named | {"reduction": "none"})
            found = [one.shape for one in iterate_tensors(made)] if func not in _REDUCING else [spread]
            if spread in found and spread.numel() > max(output.numel(), target.numel()):
                self.shape, self.output, self.target = tuple(spread), output, target


def find_broadcast_shape(call: Callable[[], Any], output: Any, target: Any) -> BroadcastTracker:
    """Return the shape to which a call broadcasts output and target, by torch's calls or warning."""
    seen = BroadcastTracker(output, target)
    with seen, warnings.catch_warnings():
        filter_broadcast_warnings()
        try:
            call()
        except UserWarning as warning:
            if str(warning).startswith("Using a target size") and seen.shape is None:
                with suppress(RuntimeError, AttributeError):  # which torch refuses by itself
                    seen.shape = tuple(torch.broadcast_shapes(output.shape, target.shape))
                    seen.output, seen.target = output, target
        except Exception as error:  # noqa: BLE001  said by whoever calls it next
            seen.error = error
    return seen


@contextmanager
def watch_broadcasts(model: nn.Module, batch: Any) -> Iterator[BroadcastTracker]:
    """Follow the members of a batch and what the model makes of them, whatever a step does with both."""
    seen = BroadcastTracker(None, batch)
    handle = model.register_forward_hook(lambda _module, _given, made: seen.follow("output", made))
    try:
        with seen:
            yield seen
    finally:
        handle.remove()


def describe_broadcast(seen: BroadcastTracker) -> str:
    """Describe the broadcast of output and target, as the rule of a mistake."""
    assert seen.output is not None
    assert seen.target is not None
    return (
        f"compares every output with every target: the output has the shape {list(seen.output.shape)}, the target "
        f"{list(seen.target.shape)}, and torch spreads both to {list(seen.shape or ())}"
    )
