"""Weights of losses in a mean over batches, micro-batches or processes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.errors import RunError

KINDS = ("mean", "sum")


def is_summed(loss: Callable[..., Any]) -> bool:
    """Return whether a loss sums over samples, by its `reduction` (attribute or bound argument)."""
    reduction = getattr(loss, "reduction", (getattr(loss, "keywords", None) or {}).get("reduction"))
    return isinstance(reduction, str) and reduction == "sum"


def read_kind(outcome: Mapping[str, Any], *, sums: bool) -> bool:
    """Return whether the loss of an outcome is a sum: as its `loss_is` says, else `sums`.

    Raises:
        RunError: `loss_is` is neither `mean` nor `sum`.
    """
    kind = outcome.get("loss_is")
    if kind is None:
        return sums
    if kind not in KINDS:
        raise RunError(f"step: `loss_is` of what it returns must be mean or sum, but is {kind!r}")
    return bool(kind == "sum")


def compute_divisor(loss: Any, target: Any) -> Tensor | None:
    """Return the divisor of cross entropy with class indices; None if it is the number of samples.

    That is so unless classes have weights, or an index is ignored, which is looked for where it is set or a sample has
    several targets.
    """
    function = getattr(loss, "func", loss)
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and function not in (F.cross_entropy, F.nll_loss):
        return None
    settings = getattr(loss, "keywords", None) or vars(loss)
    weight, ignored = getattr(loss, "weight", settings.get("weight")), settings.get("ignore_index", -100)
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if weight is None and ignored < 0 and target.dim() < 2:
        return None
    kept = target != ignored
    mass: Tensor = kept.float() if weight is None else weight[target.where(kept, 0)] * kept
    return mass.sum()
