"""Gradients of all jobs of a stack: by its step, or by a program of operators recorded from it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runner.train.vectorized.batches_ahead import list_members
from runner.train.vectorized.operator_program import (
    NoProgramError,
    OperatorProgram,
    OtherWayError,
    Recorder,
    refuse_lasting_changes,
)
from runner.train.vectorized.stack import Stack
from runner.train.vectorized.trial import keep_state
from runner.train.vectorized.unbranched import BranchError, has_global_hooks, refuse_branches

Outputs = tuple[dict[str, Tensor], dict[str, Any]]
MOST_SHAPES = 4  # of batches, for which there is a program each: the last of an epoch is smaller


class StackGradients:
    """Computation of gradients; what it does is what `stack(batch)` and a backward do, to the bit.

    The first step with batches of a shape is recorded, the second computed in both ways and compared, and those that
    follow are the program's.

    Args:
        stack: whose gradients; tell of its changes by `forget`.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.programs: dict[Any, StepProgram | None] = {}
        self.why_not = ""
        self.read = [(kind, kind.forward) for kind in {type(module) for module in stack.template.modules()}]
        try:
            refuse_branches(stack.template)
        except BranchError as error:
            self.why_not = str(error)

    def forget(self) -> None:
        """Forget the programs: the stack has other jobs, or other parameters that train."""
        self.programs.clear()

    def __call__(self, batch: Any, dims: Any) -> Outputs:
        """Put the gradients into the parameters of the stack; return the step outputs.

        Args:
            batch: tensors of all jobs, see `stack_batches`.
            dims: the dimension of the jobs in each.
        """
        may = not self.why_not and self.stack.direct and self._is_as_read()
        inputs = list_members(batch) if may else None
        if inputs is None:
            return self._compute(batch, dims)
        key = (*[(tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs], repr(dims))
        if key not in self.programs:
            return self._record(key, inputs, batch, dims)
        program = self.programs[key]
        if program is None:
            return self._compute(batch, dims)
        if not program.verified:
            return self._verify(key, program, inputs, batch, dims)
        try:
            return program(inputs)
        except OtherWayError:
            return self._compute(batch, dims)

    def _is_as_read(self) -> bool:
        """Return whether the classes of the modules have the forward that was read, and no hooks."""
        return not has_global_hooks() and all(kind.forward is forward for kind, forward in self.read)

    def _compute(self, batch: Any, dims: Any) -> Outputs:
        outcome, rest = self.stack(batch, dims)
        outcome["loss"].sum().backward()
        return outcome, rest

    def _record(self, key: Any, inputs: list[Tensor], batch: Any, dims: Any) -> Outputs:
        if len(self.programs) == MOST_SHAPES:
            return self._compute(batch, dims)
        self.programs[key] = None
        with Recorder() as recorder:
            outcome, rest = self._compute(batch, dims)
        if self.stack.direct:
            try:
                self.programs[key] = StepProgram(self.stack, recorder, inputs, outcome, rest)
            except NoProgramError as error:
                self.why_not = str(error)
        return outcome, rest

    def _verify(self, key: Any, program: "StepProgram", inputs: list[Tensor], batch: Any, dims: Any) -> Outputs:
        """Compute a step in both ways; where they differ in a bit the program is no more used."""
        try:
            with keep_state(self.stack):
                made, _ = program([tensor.clone() for tensor in inputs])  # which a step may change
                found = {**made, **self._read_state()}
        except OtherWayError:  # another batch may be like the first
            return self._compute(batch, dims)
        outcome, rest = self._compute(batch, dims)
        wanted = {**outcome, **self._read_state()}
        program.verified = found.keys() == wanted.keys() and all(
            torch.equal(wanted[name], value) for name, value in found.items()
        )
        if not program.verified:
            self.programs[key] = None
        return outcome, rest

    def _read_state(self) -> dict[str, Tensor]:
        """Return gradients, buffers and generators, as they are now."""
        stack = self.stack
        grads = {f"grad {name}": parameter.grad for name, parameter in stack.parameters.items()}
        return {
            **{name: grad for name, grad in grads.items() if grad is not None},
            **{f"buffer {name}": buffer.clone() for name, buffer in stack.buffers.items()},
            **{f"generator {row}": generator.get_state() for row, generator in enumerate(stack.generators)},
        }


class StepProgram:
    """Program of one step of a stack, for batches of one shape.

    Attributes:
        verified: whether it was found to give what the step gives.
    """

    def __init__(
        self,
        stack: Stack,
        recorder: Recorder,
        inputs: list[Tensor],
        outcome: Mapping[str, Tensor],
        rest: Mapping[str, Any],
    ) -> None:
        self.verified = False
        trained = [parameter for parameter in stack.parameters.values() if parameter.grad is not None]
        grads = [parameter.grad for parameter in trained if parameter.grad is not None]
        self._parameters, self._names, self._rest = trained, [*outcome], dict(rest)
        refuse_lasting_changes(recorder, [*inputs, *stack.buffers.values()])
        self._call = OperatorProgram(recorder, inputs, [*grads, *outcome.values()])

    def __call__(self, inputs: list[Tensor]) -> Outputs:
        """Put the gradients into the parameters; return the step outputs, without a graph."""
        made = self._call(inputs)
        for parameter, grad in zip(self._parameters, made, strict=False):
            parameter.grad = grad
        return dict(zip(self._names, made[len(self._parameters) :], strict=True)), dict(self._rest)
