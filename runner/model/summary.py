"""Table of a model, measured on the meta device: output shapes, parameters, MACs and activations."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runner.core.without_dynamo import keep_from_dynamo

if TYPE_CHECKING:
    from rich.table import Table


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


HEAD = ("layer", "type", "output shape", "trainable", "frozen", "MACs")


OF_TRAINING = ("backward MACs", "activations")


NUMBERS = ("trainable", "frozen", "macs", "backward", "activations")


@dataclasses.dataclass
class ModuleRow:
    name: str
    type: str
    output: str = ""  # shape of the first call's output, the batch first; "" where it was not called
    trainable: int = 0  # parameters; one that several modules share is counted at the first
    frozen: int = 0
    macs: int = 0  # multiply-accumulates of one forward of the given input, this module's own
    backward: int = 0  # multiply-accumulates of the backward after it
    activations: int = 0  # bytes that this module's own operators keep for the backward; what two keep, at the first


@dataclasses.dataclass
class ModelTable:
    """Rows in the order of `named_modules`; `problem` is the error that stopped the forward, or empty."""

    rows: list[ModuleRow]
    problem: str = ""
    training: bool = False  # whether backward and activations were measured
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> ModuleRow:
        """Return the sum over all rows."""
        return ModuleRow("total", "", "", *(sum(getattr(row, name) for row in self.rows) for name in NUMBERS))

    @property
    def head(self) -> tuple[str, ...]:
        """Return the column names."""
        return (*HEAD, *OF_TRAINING) if self.training else HEAD

    def cells(self) -> list[tuple[str, ...]]:
        """Return the text of each row, the total last."""
        return [self._cells(row) for row in [*self.rows, self.total]]

    def _cells(self, row: ModuleRow) -> tuple[str, ...]:
        cells = (row.name, row.type, row.output, f"{row.trainable:,}", f"{row.frozen:,}")
        if self.problem:
            return (*cells, *["?"] * (len(self.head) - len(cells)))
        measured = (f"{row.macs:,}", f"{row.backward:,}", _format_bytes(row.activations))
        return (*cells, *measured[: len(self.head) - len(cells)])

    def as_json(self) -> dict[str, Any]:
        """Return plain data: rows, total, and FLOPs as twice the multiply-accumulates."""
        total = self.total
        return {
            "layers": [dataclasses.asdict(row) for row in self.rows],
            "total": dataclasses.asdict(total)
            | {
                "parameters": total.trainable + total.frozen,
                "flops_forward": None if self.problem else 2 * total.macs,
                "flops_backward": 2 * total.backward if self.training and not self.problem else None,
            },
            "problem": self.problem,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        """Format the table as aligned plain text."""
        lines = [self.head, *self.cells()]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.head))]
        text = ["  ".join(map(_align, line, widths, range(len(widths)))).rstrip() for line in lines]
        return "\n".join([*text, *self._footnote()])

    def __rich__(self) -> "Table":
        """Build the table that rich draws on a terminal."""
        from rich.table import Table  # only a terminal pays for it

        table = Table(*HEAD[:3], caption="\n".join(self._footnote()) or None)
        for name in self.head[3:]:
            table.add_column(name, justify="right")
        for cells in self.cells()[:-1]:
            table.add_row(*cells)
        table.add_section()
        table.add_row(*self.cells()[-1])
        return table

    def _footnote(self) -> list[str]:
        if self.problem:
            return [f"no MACs, the forward stopped: {self.problem}", *self.notes]
        return self.notes


def _format_bytes(count: int) -> str:
    """Format a number of bytes with three digits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{count} B"


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)


def build_model_table(model: nn.Module, inputs: Any, *, training: bool = False, depth: int | None = None) -> ModelTable:
    """Build the table of `model` for one forward of `inputs`, and with `training` its backward, on meta.

    `inputs` is a tensor, a list or tuple of arguments, or a dict of keyword arguments; a module whose name has more
    than `depth` parts is added to the row of the module that holds it. One row for each leaf module and
    for any other with parameters, multiplications or activations of its own. Multiply-accumulates are half the FLOPs
    that `torch.utils.flop_counter` counts, so the rows add up to its total; they are those of eval mode, where
    auxiliary heads are off. Activations are the storages that autograd keeps from a forward in training mode (in eval
    mode where a batch norm refuses that), the inputs included, parameters and buffers not, with the CPU's
    operators. The model is left as it was.
    """
    rows = {module: ModuleRow(name or "(model)", type(module).__name__) for name, module in model.named_modules()}
    _count_parameters(model, rows)
    table = ModelTable([], training=training)
    try:
        with _use_mode(model, training=False):
            _measure_macs(model, inputs, rows, backward=training)
    except Exception as error:  # noqa: BLE001  whatever a user's forward raises: the table is for information
        table.problem = _format_error(error)
    if training and not table.problem:
        total = ModelTable(list(rows.values())).total
        table.notes.append(f"FLOPs: {2 * total.macs:.4g} forward, {2 * total.backward:.4g} backward")
        table.notes += _measure_activations(model, inputs, rows)
        if any(getattr(module, "groups", 1) > 1 for module in rows if isinstance(module, CONVOLUTIONS)):
            table.notes.append(
                "torch.utils.flop_counter leaves out the groups of convolutions in their backward: it counts too much"
            )
    leaves = {row.name for module, row in rows.items() if _is_leaf(module)}
    if depth is not None:
        leaves = {_cut_name(name, depth) for name in leaves}
    table.rows = [
        row for row in _fold_rows(rows.values(), depth) if row.name in leaves or any(dataclasses.astuple(row)[3:])
    ]
    return table


def _cut_name(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _fold_rows(rows: Iterable[ModuleRow], depth: int | None) -> list[ModuleRow]:
    """Add the numbers of each row of more than `depth` names to the row of the module that holds it."""
    folded: dict[str, ModuleRow] = {}  # a module stands before those that it holds
    for row in rows:
        name = row.name if depth is None else _cut_name(row.name, depth)
        if name not in folded:
            folded[name] = row
            continue
        for number in NUMBERS:
            setattr(folded[name], number, getattr(folded[name], number) + getattr(row, number))
    return list(folded.values())


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _run(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _count_parameters(model: nn.Module, rows: dict[nn.Module, ModuleRow]) -> None:
    seen = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                name = "trainable" if parameter.requires_grad else "frozen"
                setattr(rows[module], name, getattr(rows[module], name) + parameter.numel())


@contextlib.contextmanager
def _use_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Switch all modules to one mode; restore the modes and the CPU's random generator on exit."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, was in before.items():
            module.training = was


@dataclasses.dataclass
class _ModuleCall:
    module: nn.Module
    node: int  # the number that the next node of the autograd graph had when it began
    flops: int
    in_children: int = 0  # FLOPs


class _CallTracker:
    """Tracker of module calls: the current module, the FLOPs of each call, the maker of each graph node.

    Args:
        model: whose modules are watched.
        returned: told of each call: the module, its output, the FLOPs that were its own.
        flops: how many have been counted.
    """

    def __init__(
        self,
        model: nn.Module,
        returned: Callable[[nn.Module, Any, int], None] = lambda *_: None,
        flops: Callable[[], int] = lambda: 0,
    ) -> None:
        self.model, self.returned, self.flops = model, returned, flops
        self.stack: list[_ModuleCall] = []
        self.made: list[tuple[int, int, nn.Module]] = []  # numbers of nodes: first, behind the last; inner ones first

    def __enter__(self) -> Self:
        self.hooks = [module.register_forward_pre_hook(self._enter) for module in self.model.modules()]
        self.hooks += [module.register_forward_hook(self._leave) for module in self.model.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self.stack.append(_ModuleCall(module, _get_next_node(), self.flops()))

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        call = self.stack.pop()
        self.made.append((call.node, _get_next_node(), module))
        spent = self.flops() - call.flops
        if self.stack:
            self.stack[-1].in_children += spent
        self.returned(module, output, spent - call.in_children)

    @property
    def current(self) -> nn.Module:
        """Return the module whose operator runs, in a forward or in the backward of its graph node."""
        if self.stack:
            return self.stack[-1].module
        node: Any = torch._C._current_autograd_node()  # noqa: SLF001  nothing public says it
        number = -1 if node is None else node._sequence_nr()  # noqa: SLF001
        return next((module for first, end, module in self.made if first <= number < end), self.model)


def _get_next_node() -> int:
    """Return the number that the next node of the autograd graph gets."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001  as above
    return number


class _CountedOperators(TorchDispatchMode):
    """Dispatch mode that reports an operator's FLOPs; 0.1 s for ResNet-50, so for the backward only."""

    def __init__(self, counter: Any, spent: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter, self.spent = counter, spent

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        output = func(*args, **(kwargs or {}))
        if flops := self.counter.get_total_flops() - before:
            self.spent(flops)
        return output


def _measure_macs(model: nn.Module, inputs: Any, rows: dict[nn.Module, ModuleRow], *, backward: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, 0.1 s

    keep_from_dynamo()
    forward = True

    def returned(module: nn.Module, output: Any, flops: int) -> None:
        if forward:  # else a checkpointed module is called again by the backward
            rows[module].macs += flops // 2
            rows[module].output = rows[module].output or _format_shape(output)

    def spent(flops: int) -> None:
        rows[calls.current].backward += flops // 2

    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(backward), _CallTracker(model, returned, counter.get_total_flops) as calls, counter:
        output = _run(model, inputs)
        forward = False
        sources = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ends = [tensor for tensor in _iterate_tensors(output) if tensor.requires_grad]
        if backward and sources and ends:
            with _CountedOperators(counter, spent):
                torch.autograd.grad(ends, sources, [torch.empty_like(end) for end in ends], allow_unused=True)


def _measure_activations(model: nn.Module, inputs: Any, rows: dict[nn.Module, ModuleRow]) -> list[str]:
    """Fill in the bytes of the activations; return notes about modes in which the forward failed."""
    problems = []
    for training in (True, False):
        kept: dict[int, tuple[nn.Module, torch.UntypedStorage]] = {}
        known = map(_get_storage, [*model.parameters(), *model.buffers()])
        own = {storage._cdata for storage in known if storage is not None}  # noqa: SLF001  its identity
        try:
            with _use_mode(model, training=training), torch.enable_grad(), _CallTracker(model) as calls:

                def keep(tensor: Tensor, kept: Any = kept, own: Any = own, calls: _CallTracker = calls) -> Tensor:
                    storage = _get_storage(tensor)
                    if storage is not None and storage._cdata not in own:  # noqa: SLF001
                        kept.setdefault(storage._cdata, (calls.current, storage))  # noqa: SLF001
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    output = _run(model, inputs)
                del output
        except Exception as error:  # noqa: BLE001  a batch norm of one value, most of all
            problems.append(_format_error(error))
            continue
        for module, storage in kept.values():
            rows[module].activations += storage.nbytes()
        return [f"activations as in eval mode: training mode stopped ({problems[0]})"] if problems else []
    return [f"no activations, the forward with gradients stopped: {problems[-1]}"]


def _get_storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, or of a subclass without one
        return None


def _iterate_tensors(output: Any) -> Iterator[Tensor]:
    """Yield all tensors of an output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for member in output.values():
            yield from _iterate_tensors(member)
    elif isinstance(output, list | tuple):
        for member in output:
            yield from _iterate_tensors(member)


def _format_shape(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return "x".join(map(str, output.shape)) or "scalar"
    if isinstance(output, dict):
        return ", ".join(f"{name}: {_format_shape(member)}" for name, member in output.items())
    if isinstance(output, list | tuple):
        return ", ".join(_format_shape(member) for member in output if member is not None)
    return type(output).__name__
