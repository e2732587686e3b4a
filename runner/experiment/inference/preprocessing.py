"""Preprocessing of an exported model: the run's evaluation transforms, in its graph or as Python code."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.check.imports import import_object
from runner.config.schema import Config
from runner.core.errors import RunError, describe_error
from runner.core.escape import make_printable
from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.steps import NotBatched
from runner.data.interfaces import Place
from runner.data.raw_inputs import as_input_tensor
from runner.data.samples import Pipeline, to_image
from runner.experiment.builders.instantiate import Trust, build_argument
from runner.experiment.inference.export_samples import ExportSamples, iterate_raw_members
from runner.experiment.inference.trained_model import StepInputs
from runner.train.fitting import needs_fit


class NoCode(Exception):
    """An object that no expression of Python makes again."""


@dataclass
class CodeWriter:
    """Writer of Python expressions that build what a config's nodes build.

    Attributes:
        trust: patterns of trusted names.
        modules: to be imported by the expressions.
    """

    trust: Trust = ()
    modules: set[str] = field(default_factory=set)

    def write_node(self, node: Mapping[str, Any], *, call: bool) -> str:
        """Return the expression of a `_target_` node; a function is bound to its arguments unless `call`.

        Raises:
            NoCode: an argument has no expression.
        """
        target = import_object(node["_target_"], self.trust)
        name = self.name_object(target)
        takes = _list_annotations(target)
        given = [self.write_value(value, None) for value in node.get("_args_", [])]
        given += [
            f"{key}={self.write_value(value, takes.get(key))}" for key, value in node.items() if not key.startswith("_")
        ]
        bound = node.get("_partial_", not (call or isinstance(target, type)))
        if bound:
            if not given:
                return name
            self.modules.add("functools")
            return f"functools.partial({', '.join([name, *given])})"
        return f"{name}({', '.join(given)})"

    def name_object(self, target: Any) -> str:
        """Return the full name of a class or function, whose module is imported."""
        module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        if not module or not name or "<" in name or module == "__main__":
            raise NoCode(f"{target!r} has no name of its own")
        self.modules.add(module)
        return f"{module}.{name}"

    def write_value(self, value: Any, annotation: Any) -> str:
        """Return the expression of an argument. Raises NoCode."""
        if isinstance(value, Mapping) and "_target_" in value:
            return self.write_node(value, call="Callable" not in str(annotation))
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{name!r}: {self.write_value(part, None)}' for name, part in value.items())}}}"
        if isinstance(value, list | tuple) and any(isinstance(part, Mapping | list) for part in value):
            return f"[{', '.join(self.write_value(part, None) for part in value)}]"
        return self.write_plain(build_argument(value, "", annotation, self.trust))

    def write_plain(self, value: Any) -> str:
        """Return the expression of a plain value, a dtype or a member of an enumeration. Raises NoCode."""
        if isinstance(value, Enum):
            return f"{self.name_object(type(value))}.{value.name}"
        if isinstance(value, torch.dtype | torch.device):
            self.modules.add("torch")
            return f"torch.{value}" if isinstance(value, torch.device) else str(value)
        if isinstance(value, list | tuple):
            inner = ", ".join(self.write_plain(part) for part in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        if isinstance(value, float):
            return repr(value) if value - value == 0 else f'float("{value}")'
        if isinstance(value, type | FunctionType):
            return self.name_object(value)
        raise NoCode(f"{type(value).__name__} has no expression")

    def write_imports(self) -> str:
        """Return the import statements."""
        return "\n".join(f"import {module}" for module in sorted(self.modules))


def _list_annotations(target: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    return {name: None if p.annotation is p.empty else p.annotation for name, p in parameters.items()}


@dataclass(frozen=True)
class PreprocessingCode:
    """Python module with the evaluation transforms.

    Attributes:
        text: the module.
        modules: the project's own modules that it needs; empty where it needs torchvision alone.
    """

    text: str
    modules: tuple[str, ...] = ()


LIBRARIES = ("torch", "torchvision", "functools")


def write_preprocessing(config: Config, pipeline: Pipeline, raw: str, trust: Trust = ()) -> PreprocessingCode:
    """Write `preprocess.py`: the function `preprocess(sample)`, after the evaluation transforms.

    Args:
        config: of the run.
        pipeline: its evaluation transforms.
        raw: what a raw sample is, in words.
        trust: patterns of trusted names.

    Raises:
        NoCode: a transform has an argument that no expression makes.
    """
    writer = CodeWriter(trust)
    nodes = {name: node for name, node in config.transform.eval.items() if node is not None}
    if fitted := [name for name, transform in pipeline.transforms.items() if needs_fit(transform)]:
        raise NoCode(f"{fitted[0]} was fitted to the training split, and what it learnt is in the checkpoint")
    lines = [f"    {name!r}: {writer.write_node(node, call=False)}," for name, node in nodes.items()]
    foreign = tuple(sorted(m for m in writer.modules if m.partition(".")[0] not in LIBRARIES))
    needs = "torchvision alone" if not foreign else f"torchvision and {', '.join(foreign)}"
    whole = pipeline.place is None
    returned = "the whole sample, transformed" if whole else "the model's input, without a batch dimension"
    text = "\n".join(
        [
            f'"""Preprocessing of {config.name}: the evaluation transforms of its run. Needs {needs}."""',
            "",
            writer.write_imports(),
            "",
            "TRANSFORMS = {",
            *lines,
            "}",
            "",
            "",
            "def preprocess(sample):",
            f'    """Return {returned}, for {raw}."""',
            "    for transform in TRANSFORMS.values():",
            "        sample = transform(sample)",
            "    return sample",
            "",
        ]
    )
    return PreprocessingCode(make_printable(text), foreign)


def check_preprocessing(
    code: PreprocessingCode, samples: ExportSamples, called: StepInputs, pipeline: Pipeline
) -> None:
    """Run the written module on the samples and compare it with the run's transforms.

    Raises:
        RunError: it gives other numbers.
    """
    scope: dict[str, Any] = {}
    exec(compile(code.text, "preprocess.py", "exec"), scope)  # noqa: S102  our own text: names checked, values repr
    preprocess: Callable[[Any], Any] = scope["preprocess"]
    for number, sample in enumerate(samples.raw):
        changed = preprocess(sample if pipeline.place is None else sample[pipeline.place])
        for position, place in enumerate(called.places):
            if pipeline.place is None or place == pipeline.place:
                made = as_input_tensor(changed[place] if pipeline.place is None else changed)
                if not torch.equal(made, samples.inputs[position][number]):
                    raise RunError(
                        "preprocess.py gives other numbers than the run: are its transforms random, or fitted to data?"
                    )


class TracedPreprocessing(nn.Module):
    """Evaluation transforms of a whole batch of raw samples [N, C, H, W], as operators of a graph."""

    def __init__(self, transforms: Mapping[str, Any], sample: Tensor, *, pil: bool) -> None:
        super().__init__()
        self.chain = BatchedTransforms(transforms, sample, pil=pil)
        if self.chain.looped or self.chain.draws:
            names = ", ".join([*self.chain.looped, *self.chain.draws])
            raise NotBatched(f"{names} has no form for a whole batch without random numbers")

    def forward(self, images: Tensor) -> Tensor:
        return self.chain(images, self.chain.prepare({}, images.shape[0]))


def trace_preprocessing(
    pipeline: Pipeline, samples: ExportSamples, called: StepInputs
) -> tuple[TracedPreprocessing, Tensor] | str:
    """Return the transforms as a module with the raw batch that it takes, or the reason against that.

    They are compared with the run's own on the samples.
    """
    if pipeline.place is None:
        return "they change whole samples"
    members = list(iterate_raw_members(samples, pipeline.place))
    pil = any(hasattr(member, "convert") for member in members)
    try:
        raw = [to_image(member) if pil else torch.as_tensor(member) for member in members]
        if len({tensor.shape for tensor in raw}) > 1 or raw[0].dim() != 3:
            return "raw samples are no images of one size"
        module = TracedPreprocessing(pipeline.transforms, raw[0], pil=pil)
        batch = torch.stack(raw)
        made = module(batch)
    except (NotBatched, TypeError, ValueError, RuntimeError) as error:
        return str(error) if isinstance(error, NotBatched) else describe_error(error)
    wanted = samples.inputs[called.places.index(pipeline.place)]
    if made.shape != wanted.shape or not torch.allclose(made, wanted, rtol=1e-6, atol=1e-6):
        return "they give other numbers on a whole batch"
    return module, batch


def describe_raw(raw: Any) -> str:
    """Describe a raw sample's member in words: `a PIL image of mode RGB`."""
    if hasattr(raw, "convert"):
        return f"a PIL image of mode {raw.mode}"
    if isinstance(raw, Tensor):
        return f"a tensor {list(raw.shape)} {str(raw.dtype).removeprefix('torch.')}"
    return f"a {type(raw).__name__}"


def list_places(called: StepInputs, pipeline: Pipeline) -> Sequence[Place]:
    """List the members that the transforms change and the model gets."""
    return [place for place in called.places if pipeline.place in (None, place)]
