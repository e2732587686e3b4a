"""Programs of operators: steps recorded once, then called without modules, rules and autograd.

Sixteen small networks spend a third of their step in Python, which calls the same operators each time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runner.core.trees import iterate_tensors

MOST_BYTES = 2**28  # of the tensors of a recorded step, which are all kept until it is over; Python is little of more


class NoProgramError(RuntimeError):
    """Failure to make a program of a step."""


class OtherWayError(RuntimeError):
    """A value that decided how the step went is another one now: its operators may be others."""


@dataclass(frozen=True)
class Place:
    """Tensor by what it shows of a storage; while that is kept, no other tensor has the same."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class RecordedCall:
    """Call of an operator; in its arguments and results a place stands for each tensor."""

    operator: Any
    args: Any
    named: dict[str, Any]
    made: Any

    @property
    def mutates(self) -> bool:
        """Whether it changes a tensor in place."""
        schema = self.operator._schema  # noqa: SLF001  there is nothing public that says it
        return bool(schema.is_mutable) or schema.name.endswith("batch_norm")  # whose schemas hide it

    def change(self) -> list[Place]:
        """List the tensors that its schema says it changes."""
        arguments = self.operator._schema.arguments  # noqa: SLF001
        given = {argument.name: value for argument, value in zip(arguments, self.args, strict=False)} | self.named
        changed = [given.get(one.name) for one in arguments if one.alias_info is not None and one.alias_info.is_write]
        return [*_iterate_places(changed)]

    def read(self) -> list[Place]:
        """List the tensors that it takes."""
        return [*_iterate_places([self.args, *self.named.values()])]

    def write(self) -> list[Place]:
        """List the tensors that it gives."""
        return [*_iterate_places(self.made)]


class Recorder(TorchDispatchMode):
    """Context that records each operator, below autograd.

    Attributes:
        calls: in their order.
        tensors: that an operator took, and none has made.
        refused: why there is nothing recorded; empty where there is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[RecordedCall] = []
        self.tensors: dict[Place, Tensor] = {}
        self.refused = ""
        self._storages: dict[int, Any] = {}  # kept, so that no other gets the same place in memory
        self._known: set[Place] = set()
        self._bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator and record it."""
        named = kwargs or {}
        if self.refused:
            return func(*args, **named)
        if any(kind not in (Tensor, torch.nn.Parameter) for kind in types):
            self._refuse("a tensor of another class")
            return func(*args, **named)
        for tensor in iterate_tensors([args, named]):
            place = self._find_place(tensor)
            if place not in self._known:
                self._known.add(place)
                self.tensors[place] = tensor.detach()
        call = RecordedCall(func, self._put_places(args), self._put_places(named), None)
        made = func(*args, **named)
        if torch.Tag.dynamic_output_shape in func.tags:
            self._refuse(f"the values of a tensor decide the shape that {func} gives")
        if torch.Tag.nondeterministic_seeded in func.tags and named.get("generator") is None:
            self._refuse(f"{func} draws from a generator of the process")
        self._bytes += sum(tensor.nbytes for tensor in iterate_tensors(made))
        if self._bytes > MOST_BYTES:
            self._refuse("its tensors are large")
            return made
        call.made = self._put_places(made)
        self._known.update(call.write())
        self.calls.append(call)
        return made

    def _refuse(self, why: str) -> None:
        self.refused = self.refused or why
        self.calls.clear()
        self.tensors.clear()
        self._storages.clear()

    def _find_place(self, tensor: Tensor) -> Place:
        storage = tensor.untyped_storage()
        self._storages.setdefault(storage._cdata, storage)  # noqa: SLF001
        return find_place(tensor)

    def _put_places(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._find_place(value)
        if isinstance(value, list | tuple):
            return [self._put_places(member) for member in value]
        if isinstance(value, dict):
            return {name: self._put_places(member) for name, member in value.items()}
        return value


def find_place(tensor: Tensor) -> Place:
    """Return the place of a tensor."""
    number = tensor.untyped_storage()._cdata  # noqa: SLF001
    return Place(number, int(tensor.storage_offset()), (*tensor.shape,), tensor.stride(), tensor.dtype)


def _iterate_places(value: Any) -> Any:
    if isinstance(value, Place):
        yield value
    elif isinstance(value, list | tuple | dict):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _iterate_places(member)


class OperatorProgram:
    """Recorded operators as one function of the tensors of a batch.

    Args:
        recorder: of the step.
        inputs: the tensors of the batch that it was recorded with.
        results: the tensors that the function returns.

    Raises:
        NoProgramError: the step cannot be a program: the reason is its message.
    """

    def __init__(self, recorder: Recorder, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        if recorder.refused:
            raise NoProgramError(recorder.refused)
        self._names: dict[Place, str] = {}
        self._scope: dict[str, Any] = {"OtherWayError": OtherWayError}
        self._operators: dict[Any, str] = {}
        for number, tensor in enumerate(inputs):
            place = find_place(tensor)
            if place.storage in {other.storage for other in self._names}:
                message = "two members of its batch share memory"
                raise NoProgramError(message)
            self._names[place] = f"input{number}"
        given, shared = [*self._names.values()], {place.storage for place in self._names}
        for place, tensor in recorder.tensors.items():
            if place in self._names:
                continue
            if place.storage in shared:
                message = "it looks at its batch through another tensor"
                raise NoProgramError(message)
            self._names[place] = self._put(tensor)
        lines = [self._write(call) for call in put_guards_first(recorder.calls)]
        places = [find_place(tensor) for tensor in results]
        if any(place not in self._names for place in places):
            message = "a result of it was made by no operator"
            raise NoProgramError(message)
        returned = [self._names[place] for place in places]
        body = write_body(lines, {*returned, *given, *self._scope})
        text = "\n  ".join([f"def call({', '.join(given)}):", *body, f"return [{', '.join(returned)}]"])
        exec(compile(text, "<operators of a step>", "exec"), self._scope)  # noqa: S102  our own names, torch's operators
        self._call = self._scope.pop("call")  # else it and its scope hold each other, and the tensors of all jobs

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Call the operators on a batch of the same shapes; return the results.

        Raises:
            OtherWayError: the step goes another way; nothing was changed.
        """
        with torch.no_grad():
            made: list[Tensor] = self._call(*inputs)
        return made

    def _put(self, value: Any) -> str:
        """Put a value into the scope of the function; return its name there."""
        name = f"value{len(self._scope)}"
        self._scope[name] = value
        return name

    def _write(self, call: RecordedCall) -> tuple[str, list[str], list[str]]:
        """Write a call; return it with the names that it uses and those that it gives."""
        made = call.write()
        if made and not call.mutates and all(place in self._names for place in made):
            return "", [], []  # a view that is there already
        operator = self._operators.get(call.operator)
        if operator is None:
            operator = self._operators[call.operator] = self._put(call.operator._op)  # noqa: SLF001  half of the time
        used = [self._names[place] for place in call.read()]
        words = [self._spell(value) for value in call.args]
        words += [f"{name}={self._spell(value)}" for name, value in call.named.items()]
        text = f"{operator}({', '.join(words)})"
        if not made:
            return f"if {text} != {self._spell(call.made)}: raise OtherWayError", used, []
        names = []
        for member in call.made if isinstance(call.made, list) else [call.made]:
            fresh = isinstance(member, Place) and member not in self._names
            names.append(f"made{len(self._names)}" if fresh else "_")
            if fresh:
                self._names[member] = names[-1]
        left = ", ".join(names) + "," * (isinstance(call.made, list) and len(names) == 1)
        return f"{left} = {text}", used, names

    def _spell(self, value: Any) -> str:
        if isinstance(value, Place):
            return self._names[value]
        if isinstance(value, list):
            return f"[{', '.join(map(self._spell, value))}]"
        if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self._put(value)


def refuse_lasting_changes(recorder: Recorder, allowed: Sequence[Tensor]) -> None:
    """Refuse a step that changes a tensor which it has not made: a program to be verified does it again.

    Args:
        recorder: of the step.
        allowed: the tensors that it may change.

    Raises:
        NoProgramError: it changes another one.
    """
    lasting = {place.storage for place in recorder.tensors} - {find_place(tensor).storage for tensor in allowed}
    if any(place.storage in lasting for call in recorder.calls for place in call.change()):
        message = "it changes a tensor in place that is no buffer"
        raise NoProgramError(message)


def put_guards_first(calls: Sequence[RecordedCall]) -> list[RecordedCall]:
    """Sort calls so that values are compared before anything is changed in place.

    Raises:
        NoProgramError: one of those values depends on what is changed.
    """
    changed = {place.storage for call in calls if call.mutates for place in call.read()}
    makers = {place: number for number, call in reversed([*enumerate(calls)]) for place in call.write()}
    first: set[int] = set()
    waiting = [number for number, call in enumerate(calls) if not call.write()]
    while waiting:
        number = waiting.pop()
        if number in first:
            continue
        first.add(number)
        if any(place.storage in changed for place in calls[number].read()):
            message = "a value that decides how it goes on depends on what it changes in place"
            raise NoProgramError(message)
        waiting += [makers[place] for place in calls[number].read() if place in makers]
    rest = set(range(len(calls))) - first
    return [calls[number] for number in (*sorted(first), *sorted(rest))]


def write_body(lines: Sequence[tuple[str, list[str], list[str]]], kept: set[str]) -> list[str]:
    """Return lines of code that delete each name after its last use, which frees its memory."""
    body: list[str] = []
    later = set(kept)
    for text, used, made in reversed(lines):
        if not text:
            continue
        over = sorted({*used, *made} - later - {"_"})
        later.update(used)
        body += [f"del {', '.join(over)}", text] if over else [text]
    return body[::-1]
