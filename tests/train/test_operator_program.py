"""Steps of a stack as programs of operators: equal to the bit, and none where the step may go another way."""

import gc
import importlib
import sys
import weakref
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cnn import SmallCNN
from models.dynamic_net import DynamicNet
from models.lenet import LeNet
from models.mlp import MLP
from runner.train.vectorized.gradients import StackGradients
from runner.train.vectorized.operator_program import NoProgramError, OperatorProgram, Recorder
from runner.train.vectorized.stack import Stack, stack_batches
from runner.train.vectorized.unbranched import BranchError, refuse_branches
from tests.train.test_vectorized_families import GREY, Functional, Shared, chain, make_stack

SCALES = [2.0]
NUMBER = count()


class Repeated(nn.Module):
    """Layers in a loop, a number and a tensor of its own, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.last, self.scale = nn.Linear(64, 10), 0.5
        self.shift = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1) + self.shift
        for layer in self.layers:
            hidden = F.gelu(layer(hidden) * self.scale)
        logits: Tensor = self.last(hidden)
        return logits


class Centred(nn.Module):
    """Changes its batch in place."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        logits: Tensor = self.last(x.flatten(1))
        return logits


FOLLOWED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP([64, 16, 16, 10]), GREY),
    "CNN": (SmallCNN, GREY),
    "LeNet": (LeNet, (4, 1, 32, 32)),
    "batch norm": (lambda: chain(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), GREY),
    "dropout": (lambda: chain(nn.Dropout(0.3), nn.ReLU(inplace=True)), GREY),
    "functional dropout": (Functional, GREY),
    "shared layers": (Shared, GREY),
    "a loop over layers": (Repeated, GREY),
    "a batch that is changed": (Centred, GREY),
}


def compute(stack: Stack, call: Any, inputs: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Compute a step; return its outputs, the gradients, the buffers, and the states of the generators."""
    batches = [(inputs[row], classes[row]) for row in range(len(stack))]
    outcome, _ = call(*stack_batches(batches, stack.device))
    made = {name: value.detach().clone() for name, value in outcome.items()}
    for name, parameter in stack.parameters.items():
        if parameter.grad is not None:
            made[f"grad {name}"], parameter.grad = parameter.grad.clone(), None
    made |= {name: buffer.clone() for name, buffer in stack.buffers.items()}
    return made | {str(row): generator.get_state() for row, generator in enumerate(stack.generators)}


def step(stack: Stack) -> Callable[..., Any]:
    """Return the step of a stack with its backward."""

    def call(batch: Any, dims: Any) -> Any:
        outcome, rest = stack(batch, dims)
        outcome["loss"].sum().backward()
        return outcome, rest

    return call


@pytest.mark.parametrize("family", FOLLOWED)
def test_a_program_gives_what_the_step_gives(family):
    """Over several batches of two shapes: outputs, gradients, buffers and generators, to the bit."""
    make, shape = FOLLOWED[family]
    one, other = make_stack(make, shape)[0], make_stack(make, shape)[0]
    one.direct = other.direct = True
    gradients = StackGradients(one)
    torch.manual_seed(1)
    same = []
    for number in range(10):
        size = shape[0] - number % 2
        batch = torch.rand(3, size, *shape[1:]), torch.randint(10, (3, size))
        made, wanted = compute(one, gradients, *batch), compute(other, step(other), *batch)
        same.append(made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted))
        with torch.no_grad():  # as an optimizer does
            for stack in (one, other):
                for parameter in stack.parameters.values():
                    parameter.mul_(0.9)

    assert same == [True] * 10
    assert [program is not None and program.verified for program in gradients.programs.values()] == [True, True]


class Counting(MLP):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Listing(MLP):
    """Asks a list that others may change."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x) * SCALES[0]
        return output


class Iterating(MLP):
    """Asks an iterator."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x) * next(NUMBER)
        return output


class Choosing(MLP):
    """Chooses by an attribute."""

    twice = False

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x) * 2 if self.twice else self.layers(x)
        return output


class Computed(MLP):
    """Has a number that is computed anew each time."""

    @property
    def scale(self) -> int:
        """A number."""
        return next(NUMBER)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x) * self.scale
        return output


class Helped(MLP):
    """Calls a method of its own."""

    def scale(self, x: Tensor) -> Tensor:
        return x * next(NUMBER)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.scale(self.layers(x))
        return output


class Kept(MLP):
    """Keeps what it has seen."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        output: Tensor = self.layers(x)
        return output


def decorate(function: Any) -> Any:
    """Return a function that calls another one, at times."""

    def call(*args: Any) -> Any:
        return function(*args) * next(NUMBER)

    return call


class Decorated(MLP):
    """Has a forward within another one."""

    @decorate
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


class Called(MLP):
    """Has a call of its own."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) * next(NUMBER)


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: kind([64, 10])  # type: ignore[misc]
        for kind in (Counting, Listing, Iterating, Choosing, Computed, Helped, Kept, Decorated, Called)
    },
    "DynamicNet": lambda: nn.Sequential(nn.Flatten(), DynamicNet(64, 16, 10)),
    "a dropout of torch's own": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.AlphaDropout(0.5)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_step_that_may_go_another_way_is_no_program(name):
    """What it gives is what the step gives, at each call, where the step can be mapped at all."""
    stack = make_stack(BRANCHES[name], GREY)[0]
    stack.direct = True
    gradients = StackGradients(stack)
    for _ in range(3):
        try:
            compute(stack, gradients, torch.rand(3, *GREY), torch.randint(10, (3, 4)))
        except Exception:  # noqa: BLE001  of the rules, which have none for it
            break

    assert not [program for program in gradients.programs.values() if program is not None]


class Plain(nn.Module):
    """A linear layer, in a class of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.flatten(1))
        return logits


class Getting(Plain):
    """Finds its members in a way of its own."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Wrapping(Plain):
    """Has something around its forward."""

    def _call_impl(self, *args: Any, **named: Any) -> Any:
        return super()._call_impl(*args, **named)


class Warming:
    """Number that grows at each look, kept in the dictionary of its owner."""

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return 1.0 if owner is None else vars(owner)["scale"] * next(NUMBER)

    def __set__(self, owner: Any, value: float) -> None:
        vars(owner)["scale"] = value


class Described(nn.Module):
    """Has a number that its class computes."""

    scale = Warming()

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.flatten(1)) * self.scale
        return logits


class Hiding(nn.Module):
    """Calls a module that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        vars(self)["last"] = nn.Sequential(nn.Flatten(), Counting([64, 10]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x)
        return logits


class Shadowing(Plain):
    """Has a method in the place of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def body(self, x: Tensor) -> Tensor:
        return x * next(NUMBER)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.last(x.flatten(1)))
        return logits


class Reading(Plain):
    """Reads its batch by no operator."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.flatten(1)) * x.tolist()
        return logits


@pytest.mark.parametrize("kind", [Getting, Wrapping, Described, Hiding, Shadowing, Reading])
def test_what_is_no_straight_line_is_refused_before_a_step(kind):
    stack = make_stack(kind, GREY)[0]
    with pytest.raises(BranchError):
        refuse_branches(stack.template)


class Seeing(Plain):
    """Counts in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen
        count = seen.add_(1)
        logits: Tensor = self.last(x.flatten(1)) * count
        return logits


def follow(make: Callable[[], nn.Module], between: Callable[[int], None] = lambda _: None) -> list[bool]:
    """Take six steps of two equal stacks, one without programs; return whether each gave the same."""
    one, other = (make_stack(make, GREY)[0] for _ in range(2))
    one.direct = other.direct = True
    gradients, same = StackGradients(one), []
    for number in range(6):
        between(number)
        batch = torch.rand(3, *GREY), torch.randint(10, (3, 4))
        made, wanted = compute(one, gradients, *batch), compute(other, step(other), *batch)
        same.append(all(torch.equal(made[name], wanted[name]) for name in wanted))
    return same


def test_a_tensor_that_is_no_buffer_counts_each_step_once():
    assert follow(Seeing) == [True] * 6


def test_a_forward_that_is_replaced_later_is_called(monkeypatch):
    """By the code of an action, at a pause."""

    def replace(number: int) -> None:
        if number == 4:
            monkeypatch.setattr(Plain, "forward", lambda self, x: self.last(x.flatten(1)) * 2)

    assert follow(Plain, replace) == [True] * 6


def test_hooks_of_all_modules_are_called_each_time():
    stack, calls = make_stack(Plain, GREY)[0], list[Any]()
    stack.direct = True
    gradients = StackGradients(stack)
    for number in range(6):
        if number == 4:
            handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
        compute(stack, gradients, torch.rand(3, *GREY), torch.randint(10, (3, 4)))
    handle.remove()

    assert len(calls) == 2 * 4  # the step module, the model, its layer and the loss


def test_programs_that_are_forgotten_hold_no_tensors():
    """Without Python's search for circles: between two of them come many steps."""
    stack = make_stack(Plain, GREY)[0]
    stack.direct = True
    gradients = StackGradients(stack)
    gc.disable()
    try:
        for _ in range(3):
            compute(stack, gradients, torch.rand(3, *GREY), torch.randint(10, (3, 4)))
        (program,) = gradients.programs.values()
        assert program is not None
        held = [weakref.ref(value) for value in program._call._scope.values() if isinstance(value, Tensor)]
        del program
        gradients.forget()
        assert held
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()


def test_members_of_a_batch_that_share_memory_are_no_inputs_of_a_program():
    """A view of one is the other, until they are two."""
    image = torch.rand(4, 8, 8)
    with Recorder() as recorder:
        made = image.flatten(1) * 2

    with pytest.raises(NoProgramError, match="share memory"):
        OperatorProgram(recorder, [image, image.view(4, 64)], [made])


def test_hooks_are_called_each_time():
    stack = make_stack(lambda: MLP([64, 10]), GREY)[0]
    stack.direct = True
    calls: list[Any] = []
    stack.template.model.register_forward_hook(lambda *_: calls.append(1))
    gradients = StackGradients(stack)
    for _ in range(4):
        compute(stack, gradients, torch.rand(3, *GREY), torch.randint(10, (3, 4)))

    assert len(calls) == 4


def test_a_class_out_of_range_is_an_error_in_a_program(monkeypatch):
    stack = make_stack(lambda: MLP([64, 10]), GREY)[0]
    stack.direct = True
    gradients = StackGradients(stack)
    for _ in range(3):
        compute(stack, gradients, torch.rand(3, *GREY), torch.randint(10, (3, 4)))
    monkeypatch.setattr(stack, "direct", True)
    with pytest.raises(IndexError, match="out of bounds"):
        compute(stack, gradients, torch.rand(3, *GREY), torch.full((3, 4), 12))


def test_an_ignored_class_is_ignored_in_a_program():
    """The program was made of steps without one; the running statistics are counted once all the same."""
    one, other = (make_stack(lambda: chain(nn.BatchNorm2d(4), nn.ReLU()), GREY)[0] for _ in range(2))
    one.direct = other.direct = True
    gradients = StackGradients(one)
    for classes in [[1, 2, 3, 4]] * 3 + [[1, -100, 3, 4]]:
        batch = torch.rand(3, *GREY), torch.tensor([classes] * 3)
        made, wanted = compute(one, gradients, *batch), compute(other, step(other), *batch)

    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert gradients.programs


def test_a_file_that_changed_since_is_not_trusted(tmp_path, monkeypatch):
    """The class in memory counts its calls; the file says by now that it does not."""
    text = "from torch import nn\n\n\nclass Net(nn.Linear):\n    def forward(self, x):\n        return {}\n"
    file = tmp_path / "net_that_changes.py"
    file.write_text(text.format("nn.functional.linear(x, self.weight, self.bias) if self.training else x"))
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("net_that_changes").Net(64, 10)
    file.write_text(text.format("nn.functional.linear(x, self.weight, self.bias)"))
    stack = make_stack(lambda: nn.Sequential(nn.Flatten(), deepcopy(net)), GREY)[0]
    sys.modules.pop("net_that_changes")

    with pytest.raises(BranchError, match="cannot be read"):
        refuse_branches(stack.template)
