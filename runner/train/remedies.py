"""Remedies for a batch that the model, the loss or the step rejects, in preflight and in training."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.core.trees import map_tensors

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


def describe_batch(batch: Any) -> str:
    """Describe the members of a batch: `0: [64, 1, 8, 8] float32, 1: [64] int64`."""
    if isinstance(batch, Tensor):
        return f"one tensor {spell(batch)}"
    if isinstance(batch, Mapping | list | tuple):
        members = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        return ", ".join(f"{place}: {spell(member)}" for place, member in members) or "nothing"
    return "no data" if batch is None else spell(batch)


def spell(value: Any) -> str:
    """Describe a batch member or a model output: shape and dtype, or kind and length."""
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


def describe_range(tensor: Any) -> str:
    """Describe the range of a tensor's numbers, if it has any: ` from 0 to 9`."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel() or tensor.is_complex():
        return ""
    low, high = (f"{float(bound):g}" for bound in tensor.detach().float().aminmax())
    return f" from {low} to {high}"


def suggest_members(batch: Any) -> str:
    """Suggest `step.input` and `step.target` if the step asks for members that a batch lacks."""
    if isinstance(batch, Tensor):
        return "a sample of the dataset is one tensor: return `(input, target)`, or write a step of your own"
    if not isinstance(batch, Mapping):
        return f"a batch has the members 0 to {len(batch) - 1}" if isinstance(batch, list | tuple) and batch else ""
    names = [name for name in batch if isinstance(name, str)]
    given = _find_name(names, INPUT_NAMES) or next(iter(names), "")
    rest = [name for name in names if name != given]
    wanted = _find_name(rest, TARGET_NAMES) or (rest[-1] if rest else "")
    return f"write `step.input={given} step.target={wanted}`" if wanted else f"a batch has {', '.join(map(str, batch))}"


def _find_name(names: Sequence[str], known: Sequence[str]) -> str:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), "")


def suggest_for_model(model: nn.Module, inputs: Any, batch: Any, error: BaseException) -> str:
    """Suggest a remedy if a model rejects its input."""
    given = list(inputs.values()) if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list) else [inputs]
    strange = [value for value in given if not isinstance(value, Tensor)]
    if strange:
        return f"the input is {spell(strange[0])}: a transform or `loader.collate_fn` must make a tensor of it"
    if isinstance(error, TypeError) and (said := _suggest_arguments(model, batch)):
        return said
    if said := _suggest_dtype(model, given, str(error)):
        return said
    if "more than 1 value per channel" in str(error):  # batch norm, on a batch of one sample
        return (
            "take `loader.drop_last=true`, or another `loader.batch_size` (of an evaluation: `loader.eval.batch_size`)"
        )
    if found := re.search(r"to have (\d+) channels, but got (\d+)", str(error)):
        wanted, had = map(int, found.groups())
        image = given[0]
        if image.dim() == 4 and image.shape[-1] == wanted:
            return "the channels come last: give [N, C, H, W] (`x.permute(2, 0, 1)` in the dataset)"
        return f"the model takes {wanted} channels, and the data has {had}: change one of them"
    return ""


def _suggest_arguments(model: nn.Module, batch: Any) -> str:
    """Suggest members for the arguments of `forward`, by equal names or equal number."""
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


def _suggest_dtype(model: nn.Module, given: Sequence[Tensor], said: str) -> str:
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


def suggest_output(made: Any) -> str:
    """Suggest an output for loss and metrics if a model returns several."""
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


def suggest_for_loss(output: Any, target: Any, error: BaseException | None = None) -> str:
    """Suggest a remedy if a loss rejects an output and a target."""
    if not isinstance(output, Tensor):
        return suggest_output(output)
    if not isinstance(target, Tensor):
        if isinstance(target, list | tuple) and target and isinstance(target[0], str):
            return "the targets are texts: let the dataset give each class as its number, from 0 on"
        return f"the target is {spell(target)}: let the dataset give a number or a tensor"
    if isinstance(error, UserWarning) and (said := suggest_squeeze(output, target)):  # torch's, of broadcasting
        return said
    classes = output.shape[1] if output.dim() > 1 else 0
    integer = not target.is_floating_point() and target.dtype != torch.bool
    if integer and re.search("out of (bounds|range)", str(error)):
        return _suggest_class_range(classes, target)
    return _suggest_shape(output, target) if classes < 2 else _suggest_class_target(output, target, integer=integer)


def _suggest_shape(output: Tensor, target: Tensor) -> str:
    """Suggest a remedy for a target of a quantity or of a single logit."""
    if said := suggest_squeeze(output, target):
        return said
    if output.shape != target.shape and output.numel() == target.numel():
        return f"give both one shape: the output has {list(output.shape)}, the target {list(target.shape)}"
    if not target.is_floating_point() and output.is_floating_point():
        return "the target is no float: let the dataset give it as one (`float(y)`)"
    return ""


def suggest_squeeze(output: Tensor, target: Tensor) -> str:
    """Suggest a shape if only one of output and target has a last dimension of size 1."""
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


def _suggest_class_target(output: Tensor, target: Tensor, *, integer: bool) -> str:
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


def _suggest_class_range(classes: int, target: Tensor) -> str:
    if target.is_meta or not target.numel():
        return f"the model has {classes} outputs: a class index is at most {classes - 1}"
    low, high = (int(bound) for bound in target.aminmax())
    said = f"the targets are {low} to {high}, and the model has {classes} outputs (classes 0 to {classes - 1})"
    if low >= 1 and high - low < classes:
        return f"{said}: classes count from 0, so subtract {low} in the dataset"
    return f"{said}: it needs {high + 1}" if low >= 0 else f"{said}: a class index is not negative"


def make_logits(like: Any) -> Any:
    """Make deterministic numbers from -2 to 2 in the shape of a tensor on any device."""
    return _make_like(like, lambda shape: torch.linspace(-2, 2, max(1, shape.numel()))[: shape.numel()].reshape(shape))


def make_probabilities(like: Any) -> Any:
    """Make equal probabilities that sum to 1 over dimension 1 (1/2 each without one)."""
    return _make_like(like, lambda shape: torch.full(shape, 1 / (shape[1] if len(shape) > 1 else 2)))


def make_zeros(like: Any) -> Any:
    """Make zeros in the shape of a tensor."""
    return _make_like(like, torch.zeros)


def _make_like(like: Any, make: Callable[[torch.Size], Tensor]) -> Any:
    return map_tensors(lambda tensor: make(tensor.shape).to(tensor.dtype), like)


def make_targets(like: Any, output: Any) -> Any:
    """Make targets in the shape of a tensor: classes 0 and 1 in turn for integers, else probabilities."""
    if not isinstance(like, Tensor) or like.is_floating_point():
        return make_probabilities(like)
    count = output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 and output.shape[1] > 1 else 2
    return (torch.arange(like.numel()) % min(2, count)).reshape(like.shape).to(like.dtype)


def make_labels(like: Any, _output: Any = None) -> Any:
    """Make zeros and ones in turn in the shape and dtype of a tensor, as labels of several classes."""
    return _make_like(like, lambda shape: (torch.arange(shape.numel()) % 2).reshape(shape))
