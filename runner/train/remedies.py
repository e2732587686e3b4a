"""What to change where model, loss or step refuse a batch: the same words for a made-up sample and for a real one."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

INPUT_NAMES = (
    "input",
    "inputs",
    "image",
    "images",
    "img",
    "x",
    "pixel_values",
    "input_ids",
    "data",
    "features",
    "text",
)


TARGET_NAMES = ("target", "targets", "label", "labels", "y", "class", "mask", "output")


TO_FLOAT = "{_target_: torchvision.transforms.v2.ToDtype, dtype: torch.float32, scale: true}"


def contents(batch: Any) -> str:
    """What a batch holds, in words: `0: [64, 1, 8, 8] float32, 1: [64] int64`."""
    if isinstance(batch, Tensor):
        return f"one tensor {spell(batch)}"
    if isinstance(batch, Mapping | list | tuple):
        members = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        return ", ".join(f"{place}: {spell(member)}" for place, member in members) or "nothing"
    return "no data" if batch is None else spell(batch)


def spell(value: Any) -> str:
    """A member of a batch, or an output of a model: shape and dtype, or kind and length."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {spell(member)}' for name, member in value.items())}}}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(member, str) for member in value):
            return f"{len(value)} texts ({value[0]!r}, …)"
        names = getattr(value, "_fields", None)
        if names:
            return f"({', '.join(f'{name}: {spell(member)}' for name, member in zip(names, value, strict=True))})"
        return f"({', '.join(map(spell, value[:4]))}{', …' * (len(value) > 4)})"
    return type(value).__name__


def values(tensor: Any) -> str:
    """The range of a tensor's numbers, where it has any: ` from 0 to 9`."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel() or tensor.is_complex():
        return ""
    low, high = (f"{float(bound):g}" for bound in tensor.detach().float().aminmax())
    return f" from {low} to {high}"


def for_members(batch: Any) -> str:
    """Which `step.input` and `step.target` a batch has, where the step asks for members that it lacks."""
    if isinstance(batch, Tensor):
        return "a sample of the dataset is one tensor: return `(input, target)`, or write a step of your own"
    if not isinstance(batch, Mapping):
        return f"a batch has the members 0 to {len(batch) - 1}" if isinstance(batch, list | tuple) and batch else ""
    names = [name for name in batch if isinstance(name, str)]
    given = _named(names, INPUT_NAMES) or next(iter(names), "")
    rest = [name for name in names if name != given]
    wanted = _named(rest, TARGET_NAMES) or (rest[-1] if rest else "")
    return f"write `step.input={given} step.target={wanted}`" if wanted else f"a batch has {', '.join(map(str, batch))}"


def _named(names: Sequence[str], known: Sequence[str]) -> str:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), "")


def for_model(model: nn.Module, inputs: Any, batch: Any, error: BaseException) -> str:
    """What to change where a model refuses its input."""
    given = list(inputs.values()) if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list) else [inputs]
    strange = [value for value in given if not isinstance(value, Tensor)]
    if strange:
        return f"the input is {spell(strange[0])}: a transform or `loader.collate_fn` must make a tensor of it"
    if isinstance(error, TypeError) and (said := _for_arguments(model, batch)):
        return said
    if said := _for_dtype(model, given, str(error)):
        return said
    if found := re.search(r"to have (\d+) channels, but got (\d+)", str(error)):
        wanted, had = map(int, found.groups())
        image = given[0]
        if image.dim() == 4 and image.shape[-1] == wanted:
            return "the channels come last: give [N, C, H, W] (`x.permute(2, 0, 1)` in the dataset)"
        return f"the model takes {wanted} channels, and the data has {had}: change one of them"
    return ""


def _for_arguments(model: nn.Module, batch: Any) -> str:
    """Which members the arguments of `forward` are, where they have the same names or as many."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if isinstance(batch, Mapping) and needed and set(needed) <= set(batch):
        return f"write `'step.input={{{', '.join(f'{name}: {name}' for name in needed)}}}'`"
    if isinstance(batch, list | tuple) and 1 < len(needed) < len(batch):
        return f"write `'step.input={list(range(len(needed)))}' step.target={len(needed)}`".replace(", ", ",")
    return f"its forward takes {', '.join(needed)}; `step.input` names the members of a batch for them" * bool(needed)


def _for_dtype(model: nn.Module, given: Sequence[Tensor], said: str) -> str:
    named = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    words = re.search(r"dtype|expected.*(Float|Double|Half|Long|Byte)|Input type|scalar type", said)
    if not named or not words:
        return ""
    odd = next((name for name, dtype in named.items() if dtype != torch.float32), "")
    if odd:
        short = str(named[odd]).removeprefix("torch.")
        return (
            f"its parameter `{odd}` is {short}: make it float32 in the model (`.float()`), or give the input as {short}"
        )
    wrong = next((tensor for tensor in given if tensor.dtype != torch.float32), None)
    if wrong is None:
        return ""
    kind = str(wrong.dtype).removeprefix("torch.")
    ways = "return `x.float()` from the dataset, or end the transforms with"
    return f"the input is {kind}, and the parameters are float32: {ways} `float: {TO_FLOAT}`"


def for_output(made: Any) -> str:
    """Which of the several outputs of a model loss and metrics are to get."""
    if isinstance(made, Mapping):
        names: list[str] = [str(name) for name in made]
    elif isinstance(made, tuple) and hasattr(made, "_fields"):
        names = list(made._fields)
    elif isinstance(made, list | tuple) and made:
        return f"the model gives {len(made)} outputs: write `step.output=0` for the first"
    else:
        return ""
    parts = made.values() if isinstance(made, Mapping) else made
    present = [name for name, part in zip(names, parts, strict=True) if part is not None]
    main = next((name for name in present if name in ("logits", "out")), present[0] if present else "")
    others = [name for name in present if name != main]
    more = f", and to train the others too `'step.auxiliary={{{', '.join(f'{name}: 0.4' for name in others)}}}'`"
    return f"write `step.output={main}` for that one" + more * bool(others)


def for_loss(output: Any, target: Any, error: BaseException | None = None) -> str:
    """What to change where a loss refuses an output beside a target."""
    if not isinstance(output, Tensor):
        return for_output(output)
    if not isinstance(target, Tensor):
        if isinstance(target, list | tuple) and target and isinstance(target[0], str):
            return "the targets are texts: let the dataset give each class as its number, from 0 on"
        return f"the target is {spell(target)}: let the dataset give a number or a tensor"
    if isinstance(error, UserWarning) and (said := for_one_number(output, target)):  # torch's, of broadcasting
        return said
    classes = output.shape[1] if output.dim() > 1 else 0
    integer = not target.is_floating_point() and target.dtype != torch.bool
    if integer and re.search("out of (bounds|range)", str(error)):
        return _for_range(classes, target)
    return _for_shape(output, target) if classes < 2 else _for_classes(output, target, integer=integer)


def _for_shape(output: Tensor, target: Tensor) -> str:
    """Of a quantity, or of one logit."""
    if said := for_one_number(output, target):
        return said
    if output.shape != target.shape and output.numel() == target.numel():
        return f"give both one shape: the output has {list(output.shape)}, the target {list(target.shape)}"
    if not target.is_floating_point() and output.is_floating_point():
        return "the target is no float: let the dataset give it as one (`float(y)`)"
    return ""


def for_one_number(output: Tensor, target: Tensor) -> str:
    """Of one number a sample, which only one of the two has in a dimension of its own."""
    if output.shape == (*target.shape, 1):
        shape = ", ".join(map(str, [*target.shape[1:], 1]))
        return (
            f"let the dataset give its target as [{shape}] (`y.unsqueeze(-1)`), or the model its output as "
            f"{list(target.shape)} (`x.squeeze(-1)`)"
        )
    if target.shape == (*output.shape, 1):
        shape = ", ".join(map(str, output.shape[1:]))
        return (
            f"let the dataset give its target as [{shape}] (`y.squeeze(-1)`), or the model its output as "
            f"{list(target.shape)} (`x.unsqueeze(-1)`)"
        )
    return ""


def _for_classes(output: Tensor, target: Tensor, *, integer: bool) -> str:
    if target.dim() == output.dim() and target.shape[1] == 1:
        return "a target is one class index a sample, [N], and not [N, 1]: let the dataset give `int(y)`"
    if target.shape == output.shape and not target.is_floating_point():
        return "the target is one-hot: let the dataset give the class index (`y.argmax()`), or shares as `y.float()`"
    if target.dim() == output.dim() - 1 and not integer:
        ways = "let the dataset give `int(y)`; where it is a quantity, the loss is another, such as `loss=mse`"
        return f"a class index must be a whole number, and the target is {str(target.dtype)[6:]}: {ways}"
    if target.shape != output.shape and target.dim() == output.dim():
        return f"the output has the shape {list(output.shape)}, the target {list(target.shape)}"
    return ""


def _for_range(classes: int, target: Tensor) -> str:
    if target.is_meta or not target.numel():
        return f"the model has {classes} outputs: a class index is at most {classes - 1}"
    low, high = (int(bound) for bound in target.aminmax())
    said = f"the targets are {low} to {high}, and the model has {classes} outputs (classes 0 to {classes - 1})"
    if low >= 1 and high - low < classes:
        return f"{said}: classes count from 0, so subtract {low} in the dataset"
    return f"{said}: it needs {high + 1}" if low >= 0 else f"{said}: a class index is not negative"


def logits(like: Any) -> Any:
    """Numbers around 0 in the shape of a tensor on any device; the same every time."""
    return _made(like, lambda shape: torch.linspace(-2, 2, max(1, shape.numel()))[: shape.numel()].reshape(shape))


def shares(like: Any) -> Any:
    """Numbers between 0 and 1 that sum to 1 over dimension 1, where there is one."""
    return _made(like, lambda shape: torch.full(shape, 1 / (shape[1] if len(shape) > 1 else 2)))


def zeros(like: Any) -> Any:
    """Zeros in its shape."""
    return _made(like, torch.zeros)


def labels(like: Any, output: Any) -> Any:
    """Targets in the shape of a tensor: classes 0 and 1 in turn where they are whole numbers, else shares."""
    if not isinstance(like, Tensor) or like.is_floating_point():
        return shares(like)
    count = output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 and output.shape[1] > 1 else 2
    return (torch.arange(like.numel()) % min(2, count)).reshape(like.shape).to(like.dtype)


def _made(like: Any, make: Any) -> Any:
    if isinstance(like, Tensor):
        return make(like.shape).to(like.dtype)
    if isinstance(like, Mapping):
        return {name: _made(member, make) for name, member in like.items()}
    return [_made(member, make) for member in like] if isinstance(like, list | tuple) else like
