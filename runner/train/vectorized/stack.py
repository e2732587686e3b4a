"""Stack of jobs: parameters and buffers with a leading dimension, of which each job has a row.

The tensors of each job's own `Run` become views of its row. So what evaluates, logs and saves a run finds the weights
of now in the run's own model, and what is changed there (the exchange with averaged weights) is changed in the stack.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runner.core.trees import iterate_tensors
from runner.model.freeze import FrozenParameters, freeze_at
from runner.train.optimizer_step import precision
from runner.train.state import Run
from runner.train.vectorized.jobs_tensor import JobsTensor, NoRuleError, unwrap_rows, wrap_batch
from runner.train.vectorized.per_job import PerJobNumber
from runner.train.vectorized.vmap_rules import StackRules


class StepModule(nn.Module):
    """Model and loss as one module, whose forward is the user's step on a batch."""

    def __init__(self, model: nn.Module, loss: Any, step: Any) -> None:
        super().__init__()
        self.model, self.loss, self.step = model, loss, step

    def forward(self, batch: Any) -> Mapping[str, Any]:
        """Return the step outputs of a batch."""
        outcome: Mapping[str, Any] = self.step(batch, self.model, self.loss)
        return outcome


def choose_step(run: Run) -> Any:
    """Choose the step of a run, in its precision."""
    kind = run.config["device"]["precision"]
    return precision.Autocast(run.step, run.device, kind) if kind in precision.DTYPES else run.step


class UnequalJobsError(RuntimeError):
    """Jobs of a stack that have come to differ in what a leading dimension cannot carry."""


def refuse_beyond_a_row(outcome: Mapping[str, Any]) -> None:
    """Refuse step outputs that are no row each: several outputs, artifacts, weights of their own.

    Raises:
        UnequalJobsError: there are some.
    """
    nested = [name for name, value in outcome.items() if not isinstance(value, Tensor) and [*iterate_tensors(value)]]
    own = [name for name in ("loss_is", "artifacts") if name in outcome]
    if nested or own or isinstance(outcome.get("size"), Tensor):
        names = ", ".join(f"`{name}`" for name in [*nested, *own] or ["size"])
        message = f"the step gives {names}, which has no row for each job"
        raise UnequalJobsError(message)


def stack_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape; each row keeps the memory format of its tensor."""
    first = tensors[0]
    if first.dim() == 4 and not first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last):
        return torch.stack([tensor.permute(0, 2, 3, 1) for tensor in tensors]).permute(0, 1, 4, 2, 3)
    return torch.stack(list(tensors))


class Stack:
    """Parameters and buffers of several runs, and the step of all of them at once.

    Args:
        runs: built, standing at one step; `joining.explain_apart` has found nothing against them.
        numbers: attributes of modules that differ among the runs: (path of the module in `StepModule`, attribute) →
            a value a run.

    Attributes:
        parameters: name in `StepModule` → leaf [jobs, ...].
        buffers: name → [jobs, ...].
        generators: one a run, of what its step draws.
        direct: whether the step is computed by `JobsTensor`, else by torch.vmap.
    """

    def __init__(self, runs: Sequence[Run], numbers: Mapping[tuple[str, str], Sequence[float]] | None = None) -> None:
        self.runs = list(runs)
        self.numbers = {place: tuple(values) for place, values in (numbers or {}).items()}
        first = self.runs[0]
        self.device = first.device
        self.template = StepModule(deepcopy(first.model), deepcopy(first.loss), choose_step(first))
        self.generators = [torch.Generator(self.device) for _ in self.runs]
        self.rules = StackRules(
            self.generators, channels_last=first.config["device"]["memory_format"] == "channels_last"
        )
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.direct = False
        self.slots = find_slots(self.template)
        self._stack([get_tensors(run) for run in self.runs])
        self._put_numbers()

    def __len__(self) -> int:
        return len(self.runs)

    def _stack(self, tensors: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
        """Stack the tensors of all runs and make those of the runs views of them."""
        parameters = [own for own, _ in tensors]
        buffers = [own for _, own in tensors]
        self.parameters = {}
        for name, parameter in parameters[0].items():
            stacked = stack_tensors([own[name].detach() for own in parameters])
            self.parameters[name] = stacked.requires_grad_(parameter.requires_grad)
        self.buffers = {name: stack_tensors([own[name] for own in buffers]) for name in buffers[0]}
        whole = {**self.parameters, **self.buffers}
        self.wrapped = {name: JobsTensor(tensor, 0, self.rules) for name, tensor in whole.items()}
        for row, run in enumerate(self.runs):
            self._bind(row, run, parameters[row], buffers[row])

    def _bind(self, row: int, run: Run, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.data = self.parameters[name].detach()[row]
            parameter.grad = None
        views = {id(buffer): self.buffers[name][row] for name, buffer in buffers.items()}
        replace_buffers(run, views)

    def _put_numbers(self) -> None:
        for (path, attribute), values in self.numbers.items():
            owner = self.template.get_submodule(path) if path != "loss()" else None
            if owner is not None:
                setattr(owner, attribute, PerJobNumber(values))
            else:  # a function of the loss, bound to its arguments
                bound = self.template.loss
                self.template.loss = partial(
                    bound.func, *bound.args, **bound.keywords | {attribute: PerJobNumber(values)}
                )

    # ---- a step

    def __call__(self, batch: Any, dims: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Call the step of every job on its batch; return tensors [jobs, ...] by name, and what is no tensor.

        Args:
            batch: tensors of all jobs, see `stack_batches`; the step may change them.
            dims: the dimension of the jobs in each.
        """
        if self.direct:
            try:
                return self._call_directly(wrap_batch(batch, dims, self.rules))
            except NoRuleError:  # a way through the model that was not taken before
                if self.buffers or self.rules.drawn:  # which the first half of the step has changed
                    raise
                self.direct = False
        rest: dict[str, Any] = {}

        def compute(parameters: dict[str, Tensor], buffers: dict[str, Tensor], job: Tensor, batch: Any) -> Any:
            self.rules.job = job
            with self.rules, put_tensors(self.slots, {**parameters, **buffers}) as after:
                outcome = self.template(batch)
                changed = {name: tensor for name, tensor in after() if name in buffers and tensor is not buffers[name]}
            refuse_beyond_a_row(outcome)
            rest.update({name: value for name, value in outcome.items() if not isinstance(value, Tensor)})
            return {name: value for name, value in outcome.items() if isinstance(value, Tensor)}, changed

        numbers = torch.arange(len(self.runs), device=self.device)
        mapped = torch.vmap(compute, in_dims=(0, 0, 0, dims), randomness="error")
        outcome, changed = mapped(self.parameters, self.buffers, numbers, batch)
        with torch.no_grad():
            for name, buffer in changed.items():
                self.buffers[name].copy_(buffer)
        return outcome, rest

    def evaluate(self, batch: Any, dims: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Call the step of every job on a batch in eval mode; directly, and without what it draws.

        Raises:
            NoRuleError: it draws, or changes a buffer; or an operator has no rule.
        """
        before = {name: buffer._version for name, buffer in self.buffers.items()}  # noqa: SLF001
        self.template.model.eval()
        self.rules.draws = False
        try:
            made = self._call_directly(wrap_batch(batch, dims, self.rules))
        finally:
            self.rules.draws = True
            self.template.model.train()
        if before != {name: buffer._version for name, buffer in self.buffers.items()}:  # noqa: SLF001
            message = "an evaluation changes a buffer"
            raise NoRuleError(message)
        return made

    def _call_directly(self, batch: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Call the step once, with tensors that stand for those of all jobs."""
        with put_tensors(self.slots, self.wrapped) as after:
            outcome = self.template(batch)
            changed = {name: tensor for name, tensor in after() if tensor is not self.wrapped[name]}
        refuse_beyond_a_row(outcome)
        with torch.no_grad():
            for name, tensor in changed.items():
                self.buffers[name].copy_(unwrap_rows(tensor, len(self)))
        made = {name: unwrap_rows(value, len(self)) for name, value in outcome.items() if isinstance(value, Tensor)}
        return made, {name: value for name, value in outcome.items() if name not in made}

    # ---- jobs that leave

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows; the others' tensors become their own."""
        tensors = [get_tensors(run) for run in self.runs]
        for row, run in enumerate(self.runs):
            if row not in rows:
                release(run, *tensors[row])
        self.numbers = {place: tuple(values[row] for row in rows) for place, values in self.numbers.items()}
        self.generators[:] = [self.generators[row] for row in rows]
        self.runs = [self.runs[row] for row in rows]
        if self.runs:
            self._stack([tensors[row] for row in rows])
            self._put_numbers()

    def freeze_as_due(self) -> None:
        """Freeze and unfreeze what is frozen, or trains, in the runs by now."""
        first, model = self.runs[0], self.template.model
        for name, parameter in get_tensors(first)[0].items():
            self.parameters[name].requires_grad_(parameter.requires_grad)
        params = {name: model.get_parameter(name) for name in first.frozen.params}
        norms = {name: model.get_submodule(name) for name in first.frozen.norms}
        freeze_at(model, FrozenParameters(params, norms, first.frozen.spans), first.progress.step)


@contextmanager
def suppress_rule_warnings() -> Iterator[None]:
    """Ignore torch's warnings that vmap calls an operator once a job; `auto` takes the time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop because")
        yield


def find_slots(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Find every place of a tensor: the dictionary of its module, its key there, its whole name.

    A tensor that stands in several places (tied weights) has the name of the first.
    """
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return [
        (members, key, names[id(tensor)])
        for owner in module.modules()
        for members in (owner._parameters, owner._buffers)  # noqa: SLF001  `functional_call` costs 0.2 ms more a step
        for key, tensor in members.items()
        if tensor is not None
    ]


@contextmanager
def put_tensors(
    slots: Sequence[tuple[dict[str, Any], str, str]], tensors: Mapping[str, Tensor]
) -> Iterator[Callable[[], Iterator[tuple[str, Tensor]]]]:
    """Put tensors in their places by name; yield a function that gives what stands there; restore on exit."""
    before = [members[key] for members, key, _ in slots]
    try:
        for members, key, name in slots:
            members[key] = tensors[name]
        yield lambda: ((name, members[key]) for members, key, name in slots)
    finally:
        for (members, key, _), tensor in zip(slots, before, strict=True):
            members[key] = tensor


def get_tensors(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters and the buffers of a run's model and loss, by their names in `StepModule`."""
    whole = StepModule(run.model, run.loss, None)
    return dict(whole.named_parameters()), dict(whole.named_buffers())


def replace_buffers(run: Run, views: Mapping[int, Tensor]) -> None:
    """Replace buffers of a run's model and loss by others, given by the id of the present one."""
    for module in StepModule(run.model, run.loss, None).modules():
        for name, buffer in module._buffers.items():  # noqa: SLF001  there is nothing public that replaces one
            if buffer is not None and id(buffer) in views:
                module._buffers[name] = views[id(buffer)]  # noqa: SLF001


def release(run: Run, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Give a run tensors of its own in the place of the rows of a stack."""
    for parameter in parameters.values():
        parameter.data = parameter.detach().clone()
    replace_buffers(run, {id(buffer): buffer.clone() for buffer in buffers.values()})
    for entries in run.optimizer.state.values():
        entries.update({name: value.clone() for name, value in entries.items() if isinstance(value, Tensor)})


def stack_batches(batches: Sequence[Any], device: torch.device) -> tuple[Any, Any]:
    """Stack the batches of all jobs, member by member; return them with their dimensions for vmap.

    What is no tensor must be equal in all of them. A tensor that is one and the same object is shared, not stacked.

    Raises:
        UnequalJobsError: batches differ in shape, or in what is no tensor.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        if all(batch is first for batch in batches):
            return first, None
        if any(batch.shape != first.shape or batch.dtype != first.dtype for batch in batches):
            message = "the batches of the jobs have come to differ in their shape"
            raise UnequalJobsError(message)
        return torch.stack(list(batches)), 0
    if isinstance(first, Mapping):
        pairs = {name: stack_batches([batch[name] for batch in batches], device) for name in first}
        return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
    if isinstance(first, tuple | list):
        members = [stack_batches(row, device) for row in zip(*batches, strict=True)]
        if hasattr(first, "_fields"):
            kind: Any = type(first)
            return kind(*[member for member, _ in members]), kind(*[dim for _, dim in members])
        return type(first)(member for member, _ in members), type(first)(dim for _, dim in members)
    if any(batch != first for batch in batches):
        message = "the batches of the jobs have come to differ in what is no tensor"
        raise UnequalJobsError(message)
    return first, None


def split_rows(outcome: Mapping[str, Any], rest: Mapping[str, Any], jobs: int) -> list[Mapping[str, Any]]:
    """Return the step outputs of each job: its rows of the tensors, and what is the same for all."""
    columns = {name: split_value(value, jobs) for name, value in {**outcome, **rest}.items()}
    return [{name: column[row] for name, column in columns.items()} for row in range(jobs)]


def split_value(value: Any, jobs: int) -> Sequence[Any]:
    """Return a value for each job: rows of its tensors [jobs, ...], nested."""
    if isinstance(value, Tensor):
        return value.detach().unbind(0)
    if isinstance(value, Mapping):
        members = {name: split_value(member, jobs) for name, member in value.items()}
        return [{name: member[row] for name, member in members.items()} for row in range(jobs)]
    if isinstance(value, tuple | list) and any(isinstance(member, Tensor) for member in value):
        rows = [split_value(member, jobs) for member in value]
        return [type(value)(column[row] for column in rows) for row in range(jobs)]
    return [value] * jobs
