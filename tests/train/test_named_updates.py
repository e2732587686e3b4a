"""A step that asks for `update(name, loss)`: the recipe of its optimizers, against loops by hand."""

import pytest
import torch
from torch import nn

from runner.config.check.check import parse
from runner.core.errors import RunError
from runner.experiment.builders import train as train_builder
from runner.train.optimizer_step.several_optimizers import Optimizers

CPU = torch.device("cpu")
HALVES = ("a", "b")


class Pair(nn.Module):
    """Two halves, trained against each other."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def losses_of(model, batch):
    """The loss of `b` now; that of `a`, by what `b` is then."""
    made = model.a(batch)
    return (model.b(made.detach()) - 1).square().mean() + model.b(
        batch.repeat(1, 2)[:, :6]
    ).square().mean(), lambda: model.b(made).square().mean() * 300


def against(batch, model, _loss, update):
    of_b, of_a = losses_of(model, batch)
    update("b", of_b)
    loss = of_a()
    update("a", loss)
    return {"loss": (of_b + loss).detach(), "size": len(batch)}


def critic(batch, model, _loss, update):
    for _ in range(3):
        of_b, of_a = losses_of(model, batch)
        update("b", of_b)
    update("a", of_a())
    return {"loss": of_b.detach(), "size": len(batch)}


def together(batch, model, _loss, update):
    loss = losses_of(model, batch)[1]()
    update(loss)
    return {"loss": loss, "size": len(batch)}


def make(step=against, precision="fp32", **train):
    node = {"_target_": "parts.Any"}
    config = parse({"model": node, "optimizer": node, "loss": None, "train": train, "device": {"precision": precision}})
    torch.manual_seed(0)
    model = Pair()
    first = torch.optim.SGD(model.a.parameters(), lr=0.1, momentum=0.9)
    optimizer = Optimizers(a=first, b=torch.optim.Adam(model.b.parameters(), lr=0.01))
    scaler = train_builder.make_scaler(config, step, optimizer, CPU)
    made = train_builder.make_optimizer_step(config, CPU, model, None, step, optimizer, {}, None, scaler)
    return made, [torch.randn(size, 4) for size in (6, 6, 6, 6, 6, 2)]


def by_hand(count=1, precision=None, clip=None, repeats=1, **_):
    """The weights after all batches, as a script has them: `count` batches in a step, each with its share."""
    made, batches = make()
    model, optimizers = made.net, made.optimizer
    scalers = {name: torch.amp.GradScaler("cpu", enabled=precision == torch.float16) for name in HALVES}

    def learn(name, loss, share, last):
        scalers[name].scale(loss / share).backward(inputs=list(getattr(model, name).parameters()))
        if last:
            scalers[name].unscale_(optimizers[name])
            if clip is not None:
                nn.utils.clip_grad_norm_(getattr(model, name).parameters(), clip)
            scalers[name].step(optimizers[name])
            scalers[name].update()
            optimizers[name].zero_grad()

    def cast():
        return torch.autocast("cpu", dtype=precision, enabled=precision is not None)

    for start in range(0, len(batches), count):
        group = batches[start : start + count]
        whole = sum(map(len, group))
        for batch in group:
            share, last = whole / len(batch), batch is group[-1]
            for _ in range(repeats):
                with cast():
                    of_b, of_a = losses_of(model, batch)
                learn("b", of_b, share, last)
            with cast():
                loss = of_a()
            learn("a", loss, share, last)
    return [p.detach() for p in model.parameters()]


def ours(step=against, count=1, **settings):
    made, batches = make(step, **settings, **({"accumulate": count} if count > 1 else {}))
    for start in range(0, len(batches), count):
        made(batches[start : start + count] if count > 1 else batches[start])
    return [p.detach() for p in made.net.parameters()]


WAYS = {
    "plain": ({}, {}),
    "clipped": ({"clip_norm": 0.05}, {"clip": 0.05}),
    "bf16": ({"precision": "bf16", "clip_norm": 0.05}, {"precision": torch.bfloat16, "clip": 0.05}),
    "fp16": ({"precision": "fp16"}, {"precision": torch.float16}),
    "critic": ({"step": critic}, {"repeats": 3}),
    "accumulated": ({"count": 2, "clip_norm": 0.05}, {"count": 2, "clip": 0.05}),
    "accumulated in bf16": ({"count": 3, "precision": "bf16"}, {"count": 3, "precision": torch.bfloat16}),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_it_is_the_loop_by_hand(way):
    """To the bit; the last group of micro-batches has one of 2 samples beside one of 6."""
    arguments, expected = WAYS[way]
    assert [p.tolist() for p in by_hand(**expected)] == [p.tolist() for p in ours(**arguments)]


def test_an_update_without_a_name_is_of_all_optimizers():
    made, batches = make(together, clip_norm=0.05)
    for batch in batches:
        made(batch)
    other, _ = make()
    for batch in batches:
        losses_of(other.net, batch)[1]().backward()
        nn.utils.clip_grad_norm_(other.net.parameters(), 0.05)
        other.optimizer.step()
        other.optimizer.zero_grad()

    assert [p.tolist() for p in other.net.parameters()] == [p.tolist() for p in made.net.parameters()]


def test_an_optimizer_that_some_micro_batches_leave_out_has_the_mean_of_the_rest():
    def rare(batch, model, _loss, update):
        loss = losses_of(model, batch)[0]
        if len(batch) == 2:
            update("b", loss)
        return {"loss": loss, "size": len(batch)}

    made, batches = make(rare, accumulate=2)
    made(batches[4:])
    other, _ = make(rare)
    other(batches[5])

    for ours_, alone in zip(made.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(ours_, alone, rtol=1e-6, atol=1e-8)


def test_an_evaluation_updates_nothing_and_can_tell():
    seen = []

    def told(batch, model, _loss, update):
        seen.append(bool(update))
        return against(batch, model, _loss, update)

    made, batches = make(told)
    before = [p.detach().clone() for p in made.net.parameters()]
    made.evaluate(batches[0], made.net)

    assert all(map(torch.equal, before, made.net.parameters()))
    made(batches[0])
    assert [False, True] == seen


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda made: ("c", made.sum()), "no optimizer has that name; .* `a`, `b`"),
        (lambda made: ("a", made), r"one number, but gets the shape \[6, 6\]"),
        (lambda _: ("a", 3.0), "one number, but gets float"),
        (lambda _: ("a",), "one number, but gets str"),
        (lambda made: ("a", made.sum().detach()), "without a gradient"),
    ],
)
def test_a_wrong_update_is_named(call, said):
    def step(batch, model, _loss, update):
        update(*call(model.a(batch)))

    made, batches = make(step)
    with pytest.raises(RunError, match=said):
        made(batches[0])


def test_a_watcher_sees_each_optimizers_gradients_before_its_step():
    made, batches = make(precision="fp16")
    seen = []
    undo = made.watch(lambda one: seen.append((len(one.param_groups[0]["params"]), made.scale)))
    made(batches[0])
    undo()
    made(batches[0])

    assert [(4, 65536.0), (2, 65536.0)] == seen


def test_the_scales_of_its_optimizers_go_back_and_forth():
    made, batches = make(precision="fp16")
    made(batches[0])
    other, _ = make(precision="fp16")
    made.scalers.members["a"].grad_scaler.update(8.0)
    other.scalers.load_state_dict(made.scalers.state_dict())

    scales = {name: member.scale for name, member in other.scalers.members.items()}

    assert scales == {name: member.scale for name, member in made.scalers.members.items()}
    assert scales["a"] == 8
    assert not other.scalers.exhausted
