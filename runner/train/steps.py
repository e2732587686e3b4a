"""User steps, the loop's one seam: from a batch to a call of model, loss and metrics.

A step is any callable `step(batch, model, loss)` that returns a mapping with `loss` (a scalar tensor to call `backward`
on) and, as it likes, `output` and `target` (what the metrics get) and `size` (the samples in the batch: the weight of
its loss in a mean; 1 where it is absent).

A step with an argument `update` says itself which optimizer steps, and by which loss: `update("generator", loss)`, as
a GAN does (`models.gan.adversarial`). Clipping, mixed precision, accumulation and several processes are the recipe's.
`update(loss)` steps all optimizers. In an evaluation it does nothing, and is false.

A step with an argument `optimizer` does its own backward and its own update, and no recipe applies; in an evaluation it
gets None there.

A step may have an attribute `needs`, the names of its arguments that name members of a batch. One with `("input",
"target")` sends `batch[input]` through the model and its output with `batch[target]` to the loss, as `supervised` does,
and is checked before training as that is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def supervised(
    batch: Any,
    model: nn.Module,
    loss: Callable[..., Any],
    input: int | str | Sequence[int | str] | Mapping[str, int | str] = 0,  # noqa: A002  the config's own word
    target: int | str = 1,
    output: int | str | None = None,
    auxiliary: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return `loss(model(batch[input]), batch[target])` with its output and target.

    Args:
        batch: a tuple or a mapping of tensors.
        model: called with the input or inputs.
        loss: called with the model's output and the target.
        input: index or key of the model's argument; a list of them gives positional, a mapping gives named arguments.
        target: index or key of the target.
        output: index, key or field of the model's output that loss and metrics get, where the model returns several;
            a model that returns one tensor (in an evaluation, for instance) gives that.
        auxiliary: further outputs by key or field, each with the weight that its own loss has in the sum; one that
            the model does not return counts nothing in an evaluation, and is an error while it trains.
    """
    if isinstance(input, int | str):
        made = model(batch[input])
    elif isinstance(input, Mapping):
        made = model(**{name: batch[place] for name, place in input.items()})
    else:
        made = model(*[batch[place] for place in input])
    wanted = batch[target]
    main = made if output is None or isinstance(made, Tensor) else get_output(made, output)
    value = loss(main, wanted)
    if auxiliary and (model.training or not isinstance(made, Tensor)):
        absent = _REQUIRED if model.training else None
        parts = ((get_output(made, name, absent), weight) for name, weight in auxiliary.items())
        value = value + sum(weight * loss(part, wanted) for part, weight in parts if part is not None)
    return {"loss": value, "output": main, "target": wanted, "size": len(wanted)}


supervised.needs = ("input", "target")  # type: ignore[attr-defined]


def needs_input_and_target(step: Any) -> bool:
    """Return whether a step needs an input for the model and a target for the loss, as its `needs` says."""
    return {"input", "target"} <= {*getattr(getattr(step, "func", step), "needs", ())}


_REQUIRED: Any = object()


def get_output(made: Any, place: int | str, default: Any = _REQUIRED) -> Any:
    """Return one of a model's outputs by index, by mapping key, or by named-tuple field.

    Raises:
        LookupError: the output has no such part, and there is no default.
    """
    found = default
    if isinstance(made, Mapping):
        found = made.get(place, default)
    elif isinstance(made, list | tuple) and isinstance(place, int):
        found = made[place] if place < len(made) else default
    elif isinstance(made, tuple) and place in getattr(made, "_fields", ()):
        found = getattr(made, str(place))
    if found is _REQUIRED:
        message = f"the model's output has no part {place!r}"
        raise LookupError(message)
    return found


def minimise(_batch: Any, model: nn.Module, _loss: Callable[..., Any] | None) -> dict[str, Any]:
    """Return the model's own value as the loss, for `dataset=none` and `loss=none`."""
    return {"loss": model()}
