"""A table of a model: layers, output shapes, parameters, multiply-accumulates; computed on the meta device."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from rich.table import Table

HEAD = ("layer", "type", "output shape", "trainable", "frozen", "MACs")


@dataclasses.dataclass
class Row:
    name: str
    type: str
    output: str = ""  # shape of the first call's output, the batch first; "" where it was not called
    trainable: int = 0  # parameters; one that several modules share is counted at the first
    frozen: int = 0
    macs: int = 0  # multiply-accumulates of one forward of the given input, this module's own


@dataclasses.dataclass
class ModelTable:
    """Rows in the order of `named_modules`; `problem` says in one line why a forward was not possible, else ""."""

    rows: list[Row]
    problem: str = ""

    @property
    def total(self) -> Row:
        """The sum over all rows."""
        rows = self.rows
        return Row(
            "total", "", "", sum(r.trainable for r in rows), sum(r.frozen for r in rows), sum(r.macs for r in rows)
        )

    def cells(self) -> list[tuple[str, ...]]:
        """The text of each row, the total last."""
        return [self._cells(row) for row in [*self.rows, self.total]]

    def _cells(self, row: Row) -> tuple[str, ...]:
        macs = "?" if self.problem else f"{row.macs:,}"
        return row.name, row.type, row.output, f"{row.trainable:,}", f"{row.frozen:,}", macs

    def __str__(self) -> str:
        """Aligned plain text."""
        lines = [HEAD, *self.cells()]
        widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
        text = ["  ".join(map(_align, line, widths, range(len(HEAD)))).rstrip() for line in lines]
        return "\n".join([*text, *self._footnote()])

    def __rich__(self) -> "Table":
        """What rich draws on a terminal."""
        from rich.table import Table  # only a terminal pays for it

        table = Table(*HEAD[:3], caption="\n".join(self._footnote()) or None)
        for name in HEAD[3:]:
            table.add_column(name, justify="right")
        for cells in self.cells()[:-1]:
            table.add_row(*cells)
        table.add_section()
        table.add_row(*self.cells()[-1])
        return table

    def _footnote(self) -> list[str]:
        return [f"no MACs, the forward stopped: {self.problem}"] if self.problem else []


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < len(HEAD) - 3 else cell.rjust(width)


def model_table(model: nn.Module, inputs: Any) -> ModelTable:
    """The table of `model` for one forward of `inputs`, both on the meta device.

    `inputs` is a tensor, a list or tuple of arguments, or a dict of keyword arguments. One row for each leaf module and
    for any other with parameters or multiplications of its own. Multiply-accumulates are half the FLOPs that
    `torch.utils.flop_counter` counts, so the rows add up to its total. The forward is in eval mode; modes are restored.
    """
    rows = {module: Row(name or "(model)", type(module).__name__) for name, module in model.named_modules()}
    _count_parameters(model, rows)
    problem = ""
    try:
        with torch.no_grad(), _eval_mode(model), _measured(rows) as counter, counter:
            _call(model, inputs)
    except Exception as error:  # noqa: BLE001  whatever a user's forward raises: the table is for information
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    shown = [row for module, row in rows.items() if _is_leaf(module) or row.trainable or row.frozen or row.macs]
    return ModelTable(shown, problem)


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, dict):
        model(**inputs)
    elif isinstance(inputs, list | tuple):
        model(*inputs)
    else:
        model(inputs)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _count_parameters(model: nn.Module, rows: dict[nn.Module, Row]) -> None:
    seen = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                name = "trainable" if parameter.requires_grad else "frozen"
                setattr(rows[module], name, getattr(rows[module], name) + parameter.numel())


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _measured(rows: dict[nn.Module, Row]) -> Iterator[Any]:
    """A FLOP counter, and hooks that give each module what was counted during it, less what was in its children."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, 0.1 s

    counter = FlopCounterMode(display=False)
    started: list[list[int]] = []  # for each module being called: count at its start, count of its children

    def enter(_module: nn.Module, _args: Any) -> None:
        started.append([counter.get_total_flops(), 0])

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        start, in_children = started.pop()
        spent = counter.get_total_flops() - start
        rows[module].macs += (spent - in_children) // 2
        rows[module].output = rows[module].output or _shape(output)
        if started:
            started[-1][1] += spent

    hooks = [module.register_forward_pre_hook(enter) for module in rows]
    hooks += [module.register_forward_hook(leave) for module in rows]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def _shape(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return "x".join(map(str, output.shape)) or "scalar"
    if isinstance(output, dict):
        return ", ".join(f"{name}: {_shape(member)}" for name, member in output.items())
    if isinstance(output, list | tuple):
        return ", ".join(_shape(member) for member in output if member is not None)
    return type(output).__name__
