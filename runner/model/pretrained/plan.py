"""Plan of loading pretrained weights: options, one row per tensor, and the report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from runner.model.pretrained import rename as renaming

SHOWN = 12  # rows of the table in an error


# What torch.nn.utils stores in the place of a `weight`: two endings and their shapes; how the weight is made of it.
REPARAMETRIZED: tuple[tuple[str, tuple[str, str], Callable[[list[int], list[int]], bool], str, str], ...] = (
    (
        "weight_norm",
        ("_g", "_v"),
        lambda g, v: len(g) == len(v) and all(a in {1, b} for a, b in zip(g, v, strict=True)),
        "{0}_g · {0}_v / |{0}_v|",
        "torch.nn.utils.remove_weight_norm(layer)",
    ),
    (
        "spectral_norm",
        ("_orig", "_u"),
        lambda orig, u: len(orig) > 1 and len(u) == 1 and u[0] in orig,
        "{0}_orig / its largest singular value",
        "torch.nn.utils.remove_spectral_norm(layer)",
    ),
    (
        "prune",
        ("_orig", "_mask"),
        lambda orig, mask: orig == mask,
        "{0}_orig · {0}_mask",
        "torch.nn.utils.prune.remove(layer, '{0}')",
    ),
)


PARAMETRIZATIONS = re.compile(r"(?P<layer>(?:.+\.)?)parametrizations\.(?P<name>[^.]+)\..+")


LOADED = ("loaded", "tied", "slice", "sum", "repeat", "interpolate")


@dataclass(frozen=True)
class Options:
    """Options of loading, named and defined as the keys of `pretrained` in a config."""

    strategy: str  # full, filtered, layers, partial
    strip_prefix: str | None = None  # taken off the file's names that have it; then
    add_prefix: str | None = None  # put before all; then
    rename: Sequence[renaming.Rule] = ()  # `re.sub`, in order
    include: Sequence[str] = (".*",)  # patterns over the names after that (filtered, partial)
    exclude: Sequence[str] = ()
    layers: (
        Sequence[str] | Mapping[str, str]
    ) = ()  # tensors or whole layers; a mapping goes from the file's name to ours
    shape_mismatch: str | Mapping[str, str] = (
        "error"  # error, skip, slice, sum, repeat, interpolate; or that by pattern
    )
    expect_loaded: float | None = None  # tensors of the model: a count (int) or a fraction (float, 1.0 is all)
    expect_missing: Sequence[str] = ()  # patterns of what alone may be missing
    optional: bool = False  # whether settings without effect, and fewer tensors than expected, are no errors

    @property
    def expects(self) -> bool:
        """Return whether the options state how much must load."""
        return self.optional or self.expect_loaded is not None or bool(self.expect_missing)


@dataclass
class TensorRow:
    """Planned action for one tensor of the model, or (`name` empty) one unused tensor of the file."""

    name: str
    action: str  # loaded, tied, slice, sum, repeat, interpolate; left, skipped, mismatch, absent; unused
    source: str = ""  # its name in the file
    shape: list[int] = field(default_factory=list)
    source_shape: list[int] = field(default_factory=list)
    dtype: str = ""
    source_dtype: str = ""
    note: str = ""


@dataclass(frozen=True)
class SavedOptimizer:
    """Optimizer state of a file, and the file's parameters that it may belong to."""

    place: str  # its key in the file
    state: Mapping[Any, Mapping[str, Any]]  # by number or name
    groups: Sequence[Mapping[str, Any]]
    shapes: Mapping[str, list[int]]  # of the file's parameters by name, in their order; buffers are left out
    sources: Mapping[str, str]  # the model's names → the file's
    taken: frozenset[str]  # the model's names whose weights load from the file as they are

    @property
    def names_kept(self) -> list[str]:
        """Return the names of a parameter's state entries, such as `exp_avg`."""
        return sorted({name for entry in self.state.values() for name, value in entry.items() if value is not None})


@dataclass
class LoadPlan:
    """Plan that `load` carries out; making it leaves the model unchanged."""

    file: str
    said: list[str]  # how the tensors were found
    rows: list[TensorRow]
    tensors: dict[str, Any]  # by the model's names, in the model's shapes
    notes: list[str] = field(default_factory=list)  # shortfalls that `optional` allows
    sources: dict[str, str] = field(default_factory=dict)  # names of the model → of the file, also of what stays
    buffers: frozenset[str] = frozenset()  # of the model
    optimizer: SavedOptimizer | None = None  # what `pretrained.optimizer` takes of the file
    epoch: int | None = None  # that the file names
    begins: list[str] = field(default_factory=list)  # how training goes on where the file's training ended

    @property
    def loaded(self) -> int:
        """Count the tensors of the model that get a value."""
        return sum(row.action in LOADED for row in self.rows)

    def summary(self) -> str:
        """Format one line for the console."""
        total = sum(bool(row.name) for row in self.rows)
        words = {
            "left": "left at their initialisation",
            "skipped": "skipped for their shape",
            "absent": "unknown to files of before PyTorch 0.4.1",
            "unused": "of the file unused",
        }
        counts = {kind: sum(row.action == kind for row in self.rows) for kind in words}
        rest = [f"{count} {words[kind]}" for kind, count in counts.items() if count]
        said = "".join(f"; {text}" for text in [*self.said, *self.notes])
        return f"pretrained: {', '.join([f'{self.loaded} of {total} tensors loaded', *rest])} ({self.file}{said})"

    def table(self, most: int | None = None) -> str:
        """Format a row per tensor as text; with `most`, only the first rows not loaded and unused."""
        rows = self.rows
        if most is not None:
            rest = [row for row in rows if row.action not in LOADED]
            unused = [row for row in rest if not row.name]
            rows = [row for row in rest if row.name][: max(most // 2, most - len(unused))]
            rows = [*rows, *unused[: most - len(rows)]]
            more = len(rest) - len(rows)
        cells = [("tensor", "", "from"), *((row.name or "-", row.action, _format_origin(row)) for row in rows)]
        widths = [max(len(line[place]) for line in cells) for place in range(2)]
        lines = [f"{name:{widths[0]}}  {action:{widths[1]}}  {origin}".rstrip() for name, action, origin in cells]
        return "\n".join([*lines, *([f"… and {more} more"] if most is not None and more else [])])

    def as_json(self) -> dict[str, Any]:
        """Return plain data for the report file."""
        return {
            "file": self.file,
            "said": [*self.said, *self.notes, *self.begins],
            "tensors": [asdict(row) for row in self.rows],
        }


def _format_origin(row: TensorRow) -> str:
    if not row.source:
        return f"{row.shape} here"
    wanted = f" for {row.shape}" if row.name and row.shape != row.source_shape else ""
    return f"{row.source} {row.source_shape}{wanted}{f', {row.note}' if row.note else ''}"


def get_shape(value: Any) -> list[int]:
    """Return a tensor's shape as a list; empty for what is no tensor or has no shape yet."""
    return list(value.shape) if isinstance(value, Tensor) and not is_lazy(value) else []


def get_dtype_name(value: Any) -> str:
    """Return a tensor's dtype as text (`float32`), or the type's name of what is no tensor."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True)
class ReparametrizedTensor:
    """Tensor that a file stores only as the parts it is computed from."""

    tensor: str  # its name in a plain model, after prefixes and rename rules
    stored: tuple[str, ...]  # the names of what stands for it
    how: str  # what wrote it so
    formula: str
    remedy: str  # the call that makes it plain


def find_reparametrized(state: Mapping[str, Any]) -> list[ReparametrizedTensor]:
    """Find tensors that weight_norm, spectral_norm, prune or a parametrization stored in parts."""
    by_tensor: dict[str, list[str]] = {}
    for name in state:
        if match := PARAMETRIZATIONS.fullmatch(name):
            by_tensor.setdefault(match["layer"] + match["name"], []).append(name)
    how, formula = "torch.nn.utils.parametrize", "what its parametrizations compute"
    call = "torch.nn.utils.parametrize.remove_parametrizations(layer, '{}')"
    found = [
        ReparametrizedTensor(tensor, tuple(stored), how, formula, call.format(tensor.rpartition(".")[2]))
        for tensor, stored in by_tensor.items()
    ]
    for how, (first, second), fits, formula, call in REPARAMETRIZED:
        for name in state:
            tensor = name.removesuffix(first)
            if name == tensor or tensor + second not in state or tensor in state:
                continue
            if fits(get_shape(state[name]), get_shape(state[tensor + second])):
                short = tensor.rpartition(".")[2]
                stored = tuple(tensor + end for end in (first, second, "_v") if tensor + end in state)
                parts = tuple(dict.fromkeys(stored))
                written = f"torch.nn.utils.{how}"
                found.append(ReparametrizedTensor(tensor, parts, written, formula.format(short), call.format(short)))
    return found
