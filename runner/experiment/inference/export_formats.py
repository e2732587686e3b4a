"""Formats of an exported model: each is written, read back without this package's help, and called."""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.check.imports import describe_install
from runner.core.errors import Mistake, RunError, find_own_line
from runner.core.trees import iterate_tensors
from runner.experiment.inference.trained_model import StepInputs

LIMIT = 1e-5  # largest difference of an exported model, relative to the largest number of the output where that is > 1
FILES = {
    "safetensors": "model.safetensors",
    "state_dict": "model.pt",
    "torch_export": "model.pt2",
    "onnx": "model.onnx",
}
GRAPHS = ("torch_export", "onnx")  # with the forward in the file; the others are weights alone
NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}

Call = Callable[[Sequence[Tensor]], Any]


def check_format(to: str) -> list[Mistake]:
    """Find the packages that a format needs and that are not here."""
    missing = [name for name in NEEDED.get(to, ()) if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    remedy = describe_install("onnx") if to == "onnx" else f"pip install {' '.join(missing)}"
    rule = f"needs {', '.join(missing)}, which is not installed"
    return [Mistake("--to", rule, to, f"argument `--to {to}`", remedy, kind="unavailable")]


class GraphModel(nn.Module):
    """Model as it is exported: positional inputs, the preprocessing of one of them where that is traced."""

    def __init__(
        self, model: nn.Module, called: StepInputs, preprocessing: nn.Module | None = None, at: int = 0
    ) -> None:
        super().__init__()
        self.model, self.called, self.preprocessing, self.at = model, called, preprocessing, at

    def forward(self, *inputs: Tensor) -> Any:
        if self.preprocessing is not None:
            inputs = (*inputs[: self.at], self.preprocessing(inputs[self.at]), *inputs[self.at + 1 :])
        return self.called.call(self.model, inputs)


@dataclass(frozen=True)
class Written:
    """Exported model that was read back: how to call it, and its outputs' names."""

    call: Call
    outputs: tuple[str, ...]


def write_weights(model: nn.Module, path: Path, to: str, called: StepInputs | None) -> Written:
    """Write a state_dict, read it back and load it strictly into a copy of the model.

    Raises:
        RunError: it holds what the format cannot hold, or comes back differently.
    """
    state = model.state_dict()
    if foreign := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise RunError(f"the model's state_dict holds {foreign[0]}, which is no tensor: {to} cannot hold it")
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    if to == "safetensors":
        from safetensors.torch import load_file, save_file

        save_file(plain, path, metadata={"format": "pt"})
        back: Mapping[str, Tensor] = load_file(path)
    else:
        with path.open("xb") as file:
            torch.save(plain, file)
        back = torch.load(path, weights_only=True)
    if wrong := [name for name in plain if name not in back or not _is_same(plain[name], back[name])]:
        raise RunError(f"{path.name} does not give back {wrong[0]}")
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(back)

    def call(inputs: Sequence[Tensor]) -> Any:
        assert called is not None
        return called.call(loaded, inputs)

    return Written(call, ())


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in every number, NaN included."""
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def write_graph(
    graph: GraphModel, inputs: Sequence[Tensor], path: Path, to: str, names: Sequence[str], outputs: Sequence[str]
) -> Written:
    """Trace the model with a free batch size, write it, and read it back.

    Raises:
        RunError: torch cannot trace it, or fixes the batch size.
    """
    with _silence_exporters():
        batch = torch.export.Dim("batch", min=1)
        shapes = {"inputs": tuple({0: batch} for _ in inputs)}
        try:
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise RunError(_explain_refusal(error)) from error
        if to == "torch_export":
            torch.export.save(program, path)
            module = torch.export.load(path).module()
            return Written(lambda given: module(*given), tuple(outputs))
        return _write_onnx(program, path, names, outputs)


def _write_onnx(program: Any, path: Path, names: Sequence[str], outputs: Sequence[str]) -> Written:
    try:
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=list(names), output_names=list(outputs), verbose=False
        )
        assert made is not None
        made.save(str(path))
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(f"torch.onnx cannot convert the model: {said}; `--to torch_export` keeps torch's own") from error
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    there = [given.name for given in session.get_inputs()]

    def call(given: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True) if name in there}
        return [torch.from_numpy(array) for array in session.run(None, fed)]

    return Written(call, tuple(output.name for output in session.get_outputs()))


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Silence what the exporters say about their own insides."""
    before = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        for name in ("torch", "onnxscript", "onnx_ir", "onnx", "copyreg"):
            warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for name in before:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _explain_refusal(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    where = find_own_line(error)
    at = f" ({where})" if where else ""
    if "batch" in str(error) and ("specialized" in str(error) or "constant" in str(error)):
        return f"the model fixes the batch size{at}, so that no other fits: {said}; `--to state_dict` keeps its code"
    return f"torch.export cannot trace the model{at}: {said}; `--to state_dict` keeps its code"


def name_outputs(made: Any) -> list[str]:
    """Name the tensors of an output: by its keys, `output` for a single one, else `output_0`, …."""
    return [name for name, _ in _name_tensors("", made)]


def _name_tensors(name: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name or "output", tree
    elif isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from _name_tensors(f"{name}.{key}" if name else str(key), part)
    elif isinstance(tree, list | tuple):
        fields = getattr(tree, "_fields", range(len(tree)))
        for key, part in zip(fields, tree, strict=True):
            yield from _name_tensors(f"{name or 'output'}_{key}" if isinstance(key, int) else str(key), part)


def measure_difference(expected: Any, made: Any) -> float:
    """Measure the largest difference of two outputs, relative to the largest number where that is over 1.

    Raises:
        RunError: they differ in their count or shapes.
    """
    ours, theirs = list(iterate_tensors(expected)), list(iterate_tensors(made))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        shown = [[list(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
        raise RunError(f"the exported model gives outputs of shapes {shown[1]}, and the model {shown[0]}")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not one.numel():
            continue
        a, b = one.double(), other.double()
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, torch.zeros_like(a), (a - b).abs()).nan_to_num(nan=float("inf"))
        finite = a[a.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        worst = max(worst, float(gap.max()) / scale)
    return worst
