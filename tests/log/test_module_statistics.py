import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.core.errors import ConfigError
from runner.log.module_statistics import (
    BINS,
    Hook,
    ModuleStatistics,
    TensorStatistics,
    make_histograms,
    select_statistics,
)
from runner.train.optimizer_step.base import OptimizerStep, OptimizerStepWithHooks
from runner.train.optimizer_step.closure import ClosureStep, CustomStep
from runner.train.optimizer_step.precision import GradScaler
from runner.train.optimizer_step.several_optimizers import Optimizers


class Net(nn.Module):
    """With a module that is called twice, an in-place activation, a tuple as output."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.act = nn.Linear(6, 5), nn.Linear(5, 5), nn.ReLU(inplace=True)
        self.memory, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.shared(self.shared(x))
        return self.head(self.memory(x[:, None])[0][:, 0])


def step(batch, model, loss):
    output = model(batch[0])
    return {"loss": loss(output, batch[1]), "output": output, "target": batch[1], "size": len(batch[1])}


@pytest.fixture
def parts(seed):
    torch.manual_seed(seed)
    model = Net()
    groups = [
        {"params": list(model.first.parameters()), "name": "first"},
        {"params": [p for n, p in model.named_parameters() if not n.startswith("first")], "name": "rest"},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return model, optimizer, OptimizerStep(model, F.cross_entropy, step, optimizer)


def look(model, optimizer, update, hooks=(), **what):
    """What is seen in one step, and the batch."""
    batch = (torch.randn(7, 6), torch.randint(3, (7,)))
    inside = ModuleStatistics(
        model, optimizer, select_statistics(model, hooks), gradient_norm=what.pop("gradient_norm", False)
    )
    inside.open(numbers=True, histograms=what.pop("histograms", False))
    undo = update.watch(inside.look)
    update(batch)
    undo()
    return *inside.close(update.scale), batch


ALL = ("mean", "std", "abs_max", "zeros")


def by_hand(tensors):
    values = torch.cat([tensor.flatten() for tensor in tensors]).double()
    return {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "abs_max": values.abs().max().item(),
        "zeros": (values == 0).double().mean().item(),
    }


def test_statistics_of_outputs_and_gradients_are_those_by_hand(parts):
    """Of a module that is called twice, of one whose output is changed in place, of one with a tuple."""
    model = parts[0]
    twin = Net()
    twin.load_state_dict(model.state_dict())
    numbers, _, (inputs, labels) = look(*parts, [Hook("all", None, ".+", ALL, ALL)])

    first = twin.first(inputs)
    kept = first.clone()
    one = twin.shared(F.relu(first))
    two = twin.shared(one)
    memory = twin.memory(two[:, None])[0]
    wanted = {"first": [first], "shared": [one, two], "memory": [memory]}
    for tensors in wanted.values():
        for tensor in tensors:
            tensor.retain_grad()
    F.cross_entropy(twin.head(memory[:, 0]), labels).backward()

    for name, tensors in wanted.items():
        outputs = [kept] if name == "first" else tensors
        expected = {f"forward/{name}/{what}": value for what, value in by_hand(outputs).items()}
        expected |= {f"backward/{name}/{what}": value for what, value in by_hand([t.grad for t in tensors]).items()}
        assert {key: numbers[key] for key in expected} == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert numbers["forward/act/zeros"] == pytest.approx(by_hand([F.relu(kept)])["zeros"])


def test_hooks_are_there_for_one_step(parts):
    model = parts[0]
    look(*parts, [Hook("all", None, ".*", ALL, ALL)], gradient_norm=True)

    assert not any(module._forward_hooks for module in model.modules())
    assert "apply" not in vars(parts[2])


def test_gradient_norms_are_those_that_clipping_would_see(parts):
    model = parts[0]
    twin = Net()
    twin.load_state_dict(model.state_dict())
    numbers, _, (inputs, labels) = look(*parts, gradient_norm=True)
    F.cross_entropy(twin(inputs), labels).backward()

    assert numbers == {
        "gradient_norm": pytest.approx(nn.utils.clip_grad_norm_(twin.parameters(), 1e9).item(), rel=1e-6),
        "gradient_norm/first": pytest.approx(nn.utils.clip_grad_norm_(twin.first.parameters(), 1e9).item(), rel=1e-6),
        "gradient_norm/rest": pytest.approx(
            nn.utils.clip_grad_norm_([p for n, p in twin.named_parameters() if "first" not in n], 1e9).item(), rel=1e-6
        ),
    }


def test_a_step_that_is_looked_at_changes_the_weights_as_one_that_is_not(parts):
    model = parts[0]
    twin = Net()
    twin.load_state_dict(model.state_dict())
    *_, batch = look(*parts, [Hook("all", None, ".*", ALL, ALL)], gradient_norm=True, histograms=True)
    F.cross_entropy(twin(batch[0]), batch[1]).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_histograms_count_every_number_where_numpy_does(parts):
    _, shown, _ = look(*parts, histograms=True)
    model = parts[0]
    tags = [value.tag for value in shown]
    by_tag = {value.tag: value.histo for value in shown}

    assert sorted(tags) == sorted(
        f"{kind}/{n}" for kind in ("weights", "gradients") for n, _ in model.named_parameters()
    )
    weight = model.memory.weight_ih_l0.detach().numpy()
    histogram = by_tag["weights/memory.weight_ih_l0"]
    assert histogram.bucket[0] == 0
    assert sum(histogram.bucket) == histogram.num == weight.size
    assert np.abs(np.array(histogram.bucket[1:]) - np.histogram(weight, BINS)[0]).sum() <= 4  # at the edges
    assert (histogram.min, histogram.max) == (weight.min(), weight.max())
    assert histogram.sum == pytest.approx(weight.sum(), rel=1e-4)


def test_histograms_of_constants_nothing_and_what_is_not_finite():
    tensors = {
        "zeros": torch.zeros(5),
        "none": torch.zeros(0),
        "nan": torch.full((3,), torch.nan),
        "some": torch.tensor([1.0, torch.inf, 2.0, torch.nan]),
        "half": torch.ones(4, dtype=torch.bfloat16),
    }
    found = {value.tag: value.histo.num for value in make_histograms("x", tensors)}

    assert found == {"x/zeros": 5, "x/some": 2, "x/half": 4}


def test_statistics_of_several_micro_batches_are_those_of_all_their_numbers():
    statistics = TensorStatistics(ALL)
    tensors = [torch.randn(3, 4) + 2, torch.randn(50).relu()]
    for tensor in tensors:
        statistics.add(tensor)

    assert {k: v.item() for k, v in statistics.values().items()} == pytest.approx(by_hand(tensors), rel=1e-5)


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (Hook("h", None, "shard", ALL, ()), "did you mean `shared`?"),
        (Hook("h", (nn.Conv2d,), None, ALL, ()), "none is a Conv2d"),
        (Hook("h", (nn.Conv2d,), "head", ALL, ()), "none is a Conv2d"),
        (Hook("h", None, "(", ALL, ()), "must be a regular expression"),
    ],
)
def test_a_hook_that_matches_nothing_is_a_mistake(hook, said):
    with pytest.raises(ConfigError) as caught:
        select_statistics(Net(), [hook])

    assert said in str(caught.value)
    assert "log.hooks.h" in str(caught.value)


def test_an_optional_hook_may_match_nothing_and_two_hooks_may_share_a_module():
    hooks = [
        Hook("none", (nn.Conv2d,), None, ALL, (), optional=True),
        Hook("a", (nn.Linear,), None, ("mean",), ()),
        Hook("b", None, "head", ("std",), ("zeros",)),
    ]

    assert select_statistics(Net(), hooks)["head"] == ({"mean", "std"}, {"zeros"})


def test_a_closure_is_looked_at_in_its_first_evaluation(seed):
    torch.manual_seed(seed)
    model = Net()
    twin = Net()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    numbers, shown, (inputs, labels) = look(
        model, optimizer, ClosureStep(model, F.cross_entropy, step, optimizer), gradient_norm=True, histograms=True
    )
    F.cross_entropy(twin(inputs), labels).backward()

    expected = nn.utils.clip_grad_norm_(twin.parameters(), 1e9).item()
    assert numbers == {"gradient_norm": pytest.approx(expected, rel=1e-6)}
    assert sum(value.tag == "gradients/first.weight" for value in shown) == 1


def test_several_optimizers_are_looked_at_each_before_its_step(seed):
    """One optimizer's step changes what the other's gradient is, so a look after both would see another."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(3, 3)})
    optimizers = Optimizers(
        one=torch.optim.SGD([{"params": list(model["a"].parameters()), "name": "one"}], lr=1.0),
        two=torch.optim.SGD([{"params": list(model["b"].parameters()), "name": "two"}], lr=1.0),
    )
    expected = {}

    def alternating(batch, model, loss, optimizer):
        for name, part in (("one", "a"), ("two", "b")):
            value = loss(model["b"](model["a"](batch[0])), batch[1])
            optimizer.zero_grad()
            value.backward()
            expected[f"gradient_norm/{name}"] = nn.utils.clip_grad_norm_(model[part].parameters(), 1e9).item()
            optimizer[name].step()
        return {"loss": value.detach()}

    numbers, shown, _ = look(
        model,
        optimizers,
        CustomStep(model, F.cross_entropy, alternating, optimizers),
        gradient_norm=True,
        histograms=True,
    )

    assert {name: value for name, value in numbers.items() if "/" in name} == pytest.approx(expected, rel=1e-6)
    assert numbers["gradient_norm"] == pytest.approx(sum(value**2 for value in expected.values()) ** 0.5, rel=1e-6)
    assert sorted(v.tag for v in shown if v.tag.startswith("gradients/")) == [
        f"gradients/{name}" for name in ("a.bias", "a.weight", "b.bias", "b.weight")
    ]
    assert not any(member._optimizer_step_pre_hooks for member in optimizers.optimizers.values())


def test_a_scaled_loss_and_clipping_change_nothing_of_what_is_seen(seed):
    """The scaler's gradients are unscaled, and looked at before they are clipped."""
    seen = []
    for scaled in (False, True):
        torch.manual_seed(seed)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler(optimizer, torch.device("cpu")) if scaled else None
        clip = [lambda model=model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)]
        update = OptimizerStepWithHooks(
            model, F.cross_entropy, step, optimizer, scaler=scaler, before=clip if scaled else ()
        )
        seen.append(look(model, optimizer, update, [Hook("all", None, "shared", ALL, ALL)], gradient_norm=True)[0])
        assert len(update.before) == scaled

    assert seen[1] == pytest.approx(seen[0], rel=1e-4)
