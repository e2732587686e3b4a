"""The loop's one seam: how a batch becomes a call of model, loss and metrics.

A step is any callable `step(batch, model, loss)` that returns a mapping with `loss` (a scalar tensor to call `backward`
on) and, as it likes, `output` and `target` (what the metrics get) and `size` (the samples in the batch: the weight of
its loss in a mean; 1 where it is absent).

A step with an argument `optimizer` does its own backward and its own update, as a GAN does (`models.gan.adversarial`);
in an evaluation it gets None there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn


def supervised(
    batch: Any,
    model: nn.Module,
    loss: Callable[..., Any],
    input: int | str | Sequence[int | str] | Mapping[str, int | str] = 0,  # noqa: A002  the config's own word
    target: int | str = 1,
) -> dict[str, Any]:
    """`loss(model(batch[input]), batch[target])`.

    Args:
        batch: a tuple or a mapping of tensors.
        model: called with the input or inputs.
        loss: called with the model's output and the target.
        input: index or key of the model's argument; a list of them gives positional, a mapping gives named arguments.
        target: index or key of the target.
    """
    if isinstance(input, int | str):
        output = model(batch[input])
    elif isinstance(input, Mapping):
        output = model(**{name: batch[place] for name, place in input.items()})
    else:
        output = model(*[batch[place] for place in input])
    wanted = batch[target]
    return {"loss": loss(output, wanted), "output": output, "target": wanted, "size": len(wanted)}


def minimise(_batch: Any, model: nn.Module, _loss: Callable[..., Any] | None) -> dict[str, Any]:
    """The model's own value is what is minimised: there is neither data nor loss (`dataset=none`, `loss=none`)."""
    return {"loss": model()}
