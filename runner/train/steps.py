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

from runner.core.trees import count_samples


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


def take_model_loss(
    batch: Any,
    model: nn.Module,
    _loss: Callable[..., Any] | None = None,
    input: int | str | Sequence[int | str] | Mapping[str, int | str] | None = None,  # noqa: A002  as above
    target: int | str | None = None,
    output: int | str | None = None,
    class_dim: int = 1,
    ignore_index: int = -100,
    shift: bool = False,
) -> dict[str, Any]:
    """Return the loss that the model computes by itself, with its output and target; for `loss=none`.

    The loss is the field `loss` of what the model returns (Hugging Face's `ModelOutput`), the first member of a tuple,
    the one number that it returns, or the sum of a mapping of numbers (torchvision's detectors), each of which is
    logged. A number has the shape [], or [1] while the model trains. An evaluation may have none.
    A loss of several targets a sample is weighted by those that count.

    Args:
        batch: a mapping (named arguments of the model), a list or tuple (positional ones), or one argument.
        model: called with the members of the batch.
        input: index or key of the only argument; a list of them gives positional, a mapping gives named arguments;
            without it the model gets the whole batch.
        target: index or key of what metrics compare the output with; `labels`, or 1, where the batch has that.
        output: index, key or field of what metrics get; `logits` where the model returns that, else all but the loss.
        class_dim: dimension of the classes in the output; metrics get it as dimension 1 (-1 for token classification).
        ignore_index: class of a target that does not count.
        shift: whether the model predicts the target after each position, as a causal language model does.

    Raises:
        ValueError: the model gives no loss while it trains.
    """
    made = _call_model(model, batch, input)
    value, parts, rest = _split_loss(made, training=model.training)
    if value is None and model.training:
        keys = f" with {', '.join(map(str, made))}" if isinstance(made, Mapping) else ""
        raise ValueError(
            f"the model gives no loss: it returns a {type(made).__name__}{keys}; it computes one where it gets the "
            "target, too (of Hugging Face's models: `labels`)"
        )
    place = output if output is not None or not isinstance(rest, Mapping) or "logits" not in rest else "logits"
    main = rest if place is None else get_output(rest, place)
    wanted, size = _find_target(batch, target), count_samples(batch)
    if isinstance(main, Tensor) and class_dim != 1:
        main = main.movedim(class_dim, 1)
    if shift and isinstance(main, Tensor) and isinstance(wanted, Tensor):
        main, wanted = main[..., :-1], wanted[..., 1:]
    made_of: dict[str, Any] = {"target": wanted, "size": size, **parts} | ({} if main is None else {"output": main})
    if isinstance(wanted, Tensor) and wanted.dim() > 1 and not wanted.is_floating_point():
        made_of |= {"size": (wanted != ignore_index).sum(), "loss_is": "mean"}
    return made_of if value is None else {"loss": value, **made_of}


def _call_model(model: nn.Module, batch: Any, place: Any) -> Any:
    """Call the model with the whole batch, or with the members that `place` names."""
    if isinstance(place, int | str):
        return model(batch[place])
    if isinstance(place, Mapping):
        return model(**{name: batch[member] for name, member in place.items()})
    if place is not None:
        return model(*[batch[member] for member in place])
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _split_loss(made: Any, *, training: bool) -> tuple[Any, dict[str, Tensor], Any]:
    """Return the loss in what a model gives (None without one), its named parts, and the rest."""
    if isinstance(made, Mapping):
        if made.get("loss") is not None:
            return made["loss"].mean(), {}, {name: part for name, part in made.items() if name != "loss"}
        if made and all(_is_loss(part, training=training) for part in made.values()):
            return sum(made.values()), {str(name): part.detach() for name, part in made.items()}, None
    elif isinstance(made, tuple) and made and _is_loss(made[0], training=training):
        return made[0].mean(), {}, made[1] if len(made) == 2 else made[1:]
    elif _is_loss(made, training=training):
        return made.mean(), {}, None
    return None, {}, made


def _is_loss(value: Any, *, training: bool) -> bool:
    """Return whether a value is one number; in an evaluation, [1] is the output of a batch of one sample."""
    is_number = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    return is_number and value.dim() <= int(training)


def _find_target(batch: Any, place: int | str | None) -> Any:
    """Return the target in a batch; None where it has none."""
    if place is not None:
        return batch[place]
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
