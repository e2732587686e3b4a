"""Interpretation of a model's outputs: classes with probabilities, or values, as loss and metrics say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.check.imports import TargetError, import_object
from runner.config.component_settings import list_components
from runner.config.schema import Config
from runner.experiment.builders.instantiate import Trust

Kind = Literal["classes", "labels", "values"]  # one class a sample; any number of labels; numbers


@dataclass(frozen=True)
class Interpretation:
    """Interpretation of an output [N, ...].

    Attributes:
        kind: `classes` (one of several, along dimension 1), `labels` (yes or no, each by itself) or `values`.
        activate: makes probabilities of an output; None where it has none.
        reason: the part of the config that says so.
    """

    kind: Kind
    activate: Callable[[Tensor], Tensor] | None = None
    reason: str = ""

    def explain(self, output: Any) -> dict[str, Tensor]:
        """Return `class` and `probability` of an output, or nothing for values.

        `class` is int64 [N, ...] for classes, bool [N, ...] for labels; `probability` has the output's shape.
        """
        if self.kind == "values" or not isinstance(output, Tensor) or not output.is_floating_point():
            return {}
        if self.kind == "classes" and (output.dim() < 2 or output.size(1) < 2):
            return {}
        probability = None if self.activate is None else self.activate(output.float())
        found = {} if probability is None else {"probability": probability}
        if self.kind == "classes":
            return {"class": output.argmax(1), **found}
        return {"class": (output.float() if probability is None else probability) > 0.5, **found}


def apply_softmax(output: Tensor) -> Tensor:
    """Return the shares of the classes along dimension 1."""
    return F.softmax(output, dim=1)


def scale_to_shares(output: Tensor) -> Tensor:
    """Return softmax of logits; an output whose rows are shares of one already is returned as it is."""
    sums = output.sum(1)
    are_shares = bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    return output if are_shares else apply_softmax(output)


LOSSES: tuple[tuple[tuple[Any, ...], Kind, Callable[[Tensor], Tensor] | None], ...] = (
    ((nn.CrossEntropyLoss, F.cross_entropy), "classes", apply_softmax),
    ((nn.NLLLoss, F.nll_loss), "classes", torch.exp),
    ((nn.MultiMarginLoss, F.multi_margin_loss), "classes", None),
    (
        (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, nn.MultiLabelSoftMarginLoss),
        "labels",
        torch.sigmoid,
    ),
    ((nn.BCELoss, F.binary_cross_entropy), "labels", torch.clone),
    ((nn.MSELoss, F.mse_loss, nn.L1Loss, F.l1_loss, nn.SmoothL1Loss, F.smooth_l1_loss, nn.HuberLoss), "values", None),
)


def interpret(config: Config, trust: Trust = ()) -> Interpretation:
    """Find what the outputs mean: from the loss, else from a metric of classes, else they are values."""
    if config.loss is not None:
        loss = import_object(config.loss["_target_"], trust)
        for known, kind, activate in LOSSES:
            kinds = tuple(one for one in known if isinstance(one, type))
            if loss in known or (isinstance(loss, type) and issubclass(loss, kinds)):
                return Interpretation(kind, activate, f"loss: {config.loss['_target_']}")
    for name, node in list_components(config.metrics).items():
        try:
            metric = import_object(node["_target_"], trust)
        except TargetError:
            continue
        called, task = getattr(metric, "__name__", ""), node.get("task", "")
        reason = f"metrics.{name}: {node['_target_']}"
        if called.startswith(("Binary", "Multilabel")) or task in ("binary", "multilabel"):
            return Interpretation("labels", scale_to_chances, reason)
        if "Accuracy" in called or called.startswith("Multiclass") or task == "multiclass":
            return Interpretation("classes", scale_to_shares, reason)
    if config.dataset.classes is not None and config.loss is not None:
        return Interpretation("classes", scale_to_shares, "dataset.classes")
    return Interpretation("values")


def scale_to_chances(output: Tensor) -> Tensor:
    """Return the sigmoid of logits; an output within [0, 1] is returned as it is."""
    return output if bool(((output >= 0) & (output <= 1)).all()) else torch.sigmoid(output)
