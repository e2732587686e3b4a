"""Preview of the model: its table for inputs of the dataset's shape, or of any other shape."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from runner.config.schema import Config
from runner.core.errors import ConfigError, Mistake
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.preflight import model as model_preflight
from runner.experiment.preflight import preflight
from runner.experiment.preflight import report as report_preflight
from runner.model.summary import ModelTable, build_model_table

_INPUT = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+(?:x\d+)*|scalar)(?::(?:torch\.)?(\w+))?")


def read_inputs(texts: Sequence[str], batch: int) -> Any:
    """Parse `[NAME=]3x640x640[:DTYPE]` texts: a meta tensor, a list or a dict, with the batch in front.

    None where there is no text.

    Raises:
        ConfigError: a text is none of these, or some are named and some are not.
    """
    mistakes, found = [], []
    for text in texts:
        match = _INPUT.fullmatch(text)
        name, sizes, kind = match.groups() if match else ("", "", "")
        dtype = getattr(torch, kind or "float32", None)
        if match is None or not isinstance(dtype, torch.dtype):
            rule = "must be sizes without the batch, such as `3x640x640`, `ids=128:int64`, `scalar`"
            mistakes.append(Mistake("--input", rule, text))
            continue
        shape = [batch, *([] if sizes == "scalar" else map(int, sizes.split("x")))]
        found.append((name, torch.empty(shape, dtype=dtype, device="meta")))
    if len({bool(name) for name, _ in found}) > 1:
        mistakes.append(Mistake("--input", "must name all of the model's arguments, or none", ", ".join(texts)))
    if mistakes:
        raise ConfigError(mistakes)
    if not found:
        return None
    if found[0][0]:
        return dict(found)
    return found[0][1] if len(found) == 1 else [tensor for _, tensor in found]


def describe(config: Config, inputs: Any, batch: int, trust: Trust = (), *, depth: int | None = None) -> ModelTable:
    """Make the model's table for these inputs, or for `batch` of the dataset's samples without any.

    With `depth` modules of longer names are folded.

    Raises:
        ConfigError: model, freezing or the sample is refused; no inputs are given, and the dataset states no `sample`.
    """
    if inputs is not None:
        model = _build_meta_model(config, trust)
        model_builder.freeze_model(config, model)
        return build_model_table(model, inputs, training=True, depth=depth)
    found = preflight.run_preflight(config, trust)
    if found.mistakes:
        raise ConfigError(found.mistakes)
    if found.batch is None:
        rule = "must be given: the dataset states no `sample`"
        raise ConfigError(
            [Mistake("--input", rule, remedy="--input 3x224x224, the sizes without the batch", kind="missing")]
        )
    if found.model is None:
        model = _build_meta_model(config, trust)
        model_builder.freeze_model(config, model)
    else:
        model = found.model
    return build_model_table(model, _resize_batch(found.one_sample(config), batch), training=True, depth=depth)


def _build_meta_model(config: Config, trust: Trust) -> nn.Module:
    """Build the model on the meta device, by way of the CPU if meta is refused."""
    found = report_preflight.Preflight()
    model = model_preflight.build_meta_model(config, found, trust)
    if found.mistakes:
        raise ConfigError(found.mistakes)
    return model_builder.make_model(config, trust).to("meta") if model is None else model


def _resize_batch(inputs: Any, batch: int) -> Any:
    """Return meta tensors like the inputs with another batch size."""
    if isinstance(inputs, dict):
        return {name: _resize_batch(member, batch) for name, member in inputs.items()}
    if isinstance(inputs, list):
        return [_resize_batch(member, batch) for member in inputs]
    return torch.empty((batch, *inputs.shape[1:]), dtype=inputs.dtype, device="meta")
