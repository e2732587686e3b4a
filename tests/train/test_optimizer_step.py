"""One optimizer step: what is off adds no call, what is on adds what it says."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.config.check.check import parse
from runner.experiment.builders import train as train_builder
from runner.train.metric_inputs import MetricInput
from runner.train.optimizer_step.base import CloneOutputs, OptimizerStep
from runner.train.optimizer_step.closure import ClosureStep
from runner.train.steps import supervised
from tests.support import record_operators


def settings(**train):
    node = {"_target_": "parts.Any"}
    return parse({"model": node, "optimizer": node, "loss": node, "train": train})


def update(config, seed=0, count=10):
    """An update with what the config asks for, and batches for it."""
    torch.manual_seed(seed)
    model, loss = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = train_builder.make_average(config, model, SimpleNamespace(steps_per_epoch=10))
    made = train_builder.make_optimizer_step(
        config, torch.device("cpu"), model, loss, supervised, optimizer, {}, average
    )
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(count)]
    return made, batches


def by_hand(made, batches):
    """The ten steps as they are without the runner."""
    model, loss, optimizer = made.net, made.loss, made.optimizer

    def one(batch):
        outcome = supervised(batch, model, loss)
        outcome["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return [(one, batch) for batch in batches]


def calls(steps):
    """The Python calls, C functions among them, and the operators of steps that were taken before."""
    for step, batch in steps[:2]:  # what only a first step does
        step(batch)
    found = []

    def note(_frame, event, argument):
        if event in ("call", "c_call"):
            found.append(event)

    sys.setprofile(note)
    try:
        for step, batch in steps:
            step(batch)
    finally:
        sys.setprofile(None)
    with record_operators() as operators:
        for step, batch in steps:
            step(batch)
    return len(found), operators.names


EACH = 3  # Python calls of a step that the object costs over the function: itself, its backward, its apply


def test_what_is_off_adds_no_call():
    """Ten steps with every feature off are ten steps by hand, but for the three methods of the plain update."""
    off, batches = update(settings())
    python, operators = calls([(off, batch) for batch in batches])
    absent = update(settings())
    expected_python, expected_operators = calls(by_hand(*absent))

    assert type(off).__name__ == "OptimizerStep"
    assert expected_operators == operators
    assert expected_python + 10 * (EACH - 1) == python  # `one` of the loop by hand is a call too


@pytest.mark.parametrize(
    ("train", "more"),
    [
        ({"clip_norm": 1.0}, "linalg_vector_norm"),
        ({"clip_value": 1.0}, "clamp"),
        ({"ema": 0.9}, "lerp"),
    ],
)
def test_what_is_on_adds_its_own_operators(train, more):
    """So the test above could fail."""
    on, batches = update(settings(**train))
    _, operators = calls([(on, batch) for batch in batches])
    off, batches = update(settings())
    _, without = calls([(off, batch) for batch in batches])

    assert any(more in name for name in operators)
    assert not any(more in name for name in without)
    assert len(operators) > len(without)


def test_a_full_group_is_the_mean_of_the_losses_to_the_bit():
    made, batches = update(settings(accumulate=2))
    other, same = update(settings())
    outcome = made(batches[:2])
    for batch in same[:2]:
        (other.step(batch, other.net, other.loss)["loss"] / 2).backward()
    other.apply()

    assert all(torch.equal(a, b) for a, b in zip(made.net.parameters(), other.net.parameters(), strict=True))
    assert outcome["size"] == 16


def test_a_group_of_one_small_batch_is_a_step_of_that_batch():
    made, batches = update(settings(accumulate=4))
    other, _ = update(settings())
    small = tuple(member[:3] for member in batches[0])
    outcome = made([small])
    expected = other(small)

    assert outcome["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    for a, b in zip(made.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_metrics_see_each_micro_batch():
    class Seen:
        def __init__(self):
            self.sizes = []

        def update(self, output, target):
            assert not output.requires_grad
            self.sizes.append(len(target))

    made, batches = update(settings(accumulate=2))
    made.metrics = [MetricInput("seen", Seen())]
    made(batches[:2])

    assert [8, 8] == made.metrics[0].metric.sizes


def test_what_a_cuda_graph_writes_over_is_copied_first():
    """The output is another tensor with the same numbers, and the loss still has its gradient."""
    model = nn.Linear(3, 2)
    outcome = CloneOutputs(supervised)(
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)), model, nn.CrossEntropyLoss()
    )
    outcome["loss"].backward()

    assert model.weight.grad is not None
    assert torch.equal(outcome["output"], model(torch.ones(4, 3)))


def test_outputs_are_copied_only_where_graphs_are_captured():
    graphed = settings()
    graphed.device.compile = "reduce-overhead"
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    kinds = {
        (config.device.compile, device): type(
            train_builder.make_optimizer_step(
                config, torch.device(device), nn.Linear(3, 2), None, supervised, optimizer, {}
            ).step
        )
        for config in (graphed, settings())
        for device in ("cuda", "cpu")
    }

    assert [key for key, kind in kinds.items() if kind is CloneOutputs] == [("reduce-overhead", "cuda")]


@pytest.mark.parametrize("kind", ["SGD", "LBFGS"])
def test_a_watcher_sees_the_gradients_once_a_step_until_it_is_taken_away(kind):
    """LBFGS evaluates the loss several times in a step; what is seen is the first evaluation."""
    torch.manual_seed(0)
    model, batch = nn.Linear(6, 3), (torch.randn(8, 6), torch.randint(3, (8,)))
    wanted = torch.autograd.grad(nn.CrossEntropyLoss()(model(batch[0]), batch[1]), [model.weight])[0]
    made = {"SGD": OptimizerStep, "LBFGS": ClosureStep}[kind](
        model, nn.CrossEntropyLoss(), supervised, getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    )
    seen = []
    undo = made.watch(lambda _: seen.append(model.weight.grad.clone()))
    made(batch)
    undo()
    made(batch)
    assert [wanted.tolist()] == [gradient.tolist() for gradient in seen]


def test_lbfgs_takes_a_model_whose_weights_lie_channels_last():
    """Its steps are those of the same model in the usual layout; in float64, so that nothing grows but the layout."""

    def losses(memory_format):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
        model = model.to(memory_format=memory_format)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
        made = ClosureStep(model, nn.CrossEntropyLoss(), supervised, optimizer)
        batch = (torch.randn(8, 3, 4, 4).double().to(memory_format=memory_format), torch.arange(8) % 3)
        return [float(made(batch)["loss"].detach()) for _ in range(3)]

    usual = losses(torch.contiguous_format)

    assert losses(torch.channels_last) == pytest.approx(usual, rel=1e-9)
    assert usual[2] < usual[0]
