"""An optimizer's state in a file of another script: found, matched with the right parameters, or refused."""

import pytest
import torch
from torch import nn

from runner.core.errors import ConfigError
from runner.model.pretrained.load import plan
from runner.model.pretrained.optimizer_state import (
    describe_rest,
    find_epoch,
    find_optimizers,
    match_optimizer,
    read_optimizer,
)
from runner.model.pretrained.plan import Options


class Net(nn.Module):
    """Two layers of equal shapes, a norm with buffers, a head."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.head = nn.Linear(4, classes)


def marked(model, make):
    """An optimizer whose momentum of each parameter is filled with the parameter's place in the model."""
    optimizer = make(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for place, parameter in enumerate(model.parameters()):
        if optimizer.state.get(parameter):
            optimizer.state[parameter]["momentum_buffer"].fill_(place + 1)
    return optimizer


def sgd(groups):
    return torch.optim.SGD(groups, 0.1, momentum=0.9)


NAMES = [name for name, _ in Net().named_parameters()]


def match(raw, model=None, here=None, key=True, place=("model",), **options):
    """What comes to the parameters here: name → the number that its momentum is filled with."""
    model = model or Net()
    tensors = raw
    for name in place:
        tensors = tensors[name]
    made = plan(model, tensors, Options(**{"strategy": "full"} | options))
    saved = read_optimizer(raw, key, place, made, tensors)
    optimizer = here or sgd(model.named_parameters())
    matched = match_optimizer(saved, optimizer.param_groups, {"momentum_buffer"})
    return {name: int(entry["momentum_buffer"].flatten()[0]) for name, entry in matched.entries.items()}


def saved_by(model, make):
    return {"model": model.state_dict(), "optimizer": marked(model, make).state_dict(), "epoch": 4}


RIGHT = {name: place + 1 for place, name in enumerate(NAMES)}


def refused(raw, **arguments):
    with pytest.raises(ConfigError) as caught:
        match(raw, **arguments)
    (mistake,) = caught.value.mistakes
    assert mistake.key == "pretrained.optimizer"
    return str(mistake)


@pytest.mark.parametrize(
    "make",
    [lambda m: sgd(m.parameters()), lambda m: sgd(m.named_parameters())],
    ids=["by order", "by name"],
)
def test_each_parameter_gets_its_own(make):
    assert match(saved_by(Net(), make)) == RIGHT


def test_names_hold_in_whatever_order_they_stand():
    def backwards(model):
        return sgd(list(model.named_parameters())[::-1])

    assert match(saved_by(Net(), backwards)) == RIGHT


def test_the_order_is_that_of_the_file_where_the_model_here_has_another():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.b = nn.Linear(4, 3), nn.Linear(4, 4)
            self.norm, self.a = nn.BatchNorm1d(4), nn.Linear(4, 4)

    assert match(saved_by(Net(), lambda m: sgd(m.parameters())), Other()) == RIGHT


def test_a_renamed_model_keeps_what_is_whose():
    raw = saved_by(Net(), lambda m: sgd(m.parameters()))
    raw["model"] = {f"module.{name}": value for name, value in raw["model"].items()}

    assert match(raw, strip_prefix="module.") == RIGHT


def test_one_tensor_with_two_names_is_one_parameter():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.tail = nn.Linear(4, 4)
            self.tail.weight = self.a.weight

    entries = match(saved_by(Tied(), lambda m: sgd(m.parameters())), Tied())

    assert entries == RIGHT | {"tail.bias": 9}


def test_a_new_head_gets_nothing_and_the_rest_its_own():
    raw = saved_by(Net(classes=5), lambda m: sgd(m.parameters()))

    assert match(raw, strategy="filtered", exclude=["head.*"]) == {
        name: number for name, number in RIGHT.items() if not name.startswith("head")
    }


def test_what_was_frozen_there_counts_in_the_order_or_is_left_out():
    for every in (True, False):
        model = Net()
        model.a.requires_grad_(requires_grad=False)
        raw = saved_by(model, lambda m, e=every: sgd([p for p in m.parameters() if e or p.requires_grad]))
        here = Net()
        trains = [(name, p) for name, p in here.named_parameters() if not name.startswith("a.")]
        expected = {name: number for name, number in RIGHT.items() if not name.startswith("a.")}

        assert match(raw, here, sgd(trains)) == expected


def split(model, *heads, names=False, **settings):
    """One group for each of these beginnings of names."""
    return [
        {
            "params": [(n, p) if names else p for n, p in model.named_parameters() if n.startswith(tuple(head))],
            **{key: value[place] for key, value in settings.items()},
        }
        for place, head in enumerate(heads)
    ]


def test_groups_are_matched_by_size_and_shape_then_by_settings_then_by_order():
    here = Net()
    by_size = sgd(split(here, ["a"], ["norm", "b", "head"], names=True))
    raw = saved_by(Net(), lambda m: sgd(split(m, ["norm", "b", "head"], ["a"])))
    assert match(raw, here, by_size) == RIGHT

    same_shapes = (["a"], ["b"], ["norm", "head"])
    by_settings = sgd(split(here, *same_shapes, names=True, lr=[0.1, 0.2, 0.3]))
    raw = saved_by(Net(), lambda m: sgd(split(m, ["b"], ["norm", "head"], ["a"], lr=[0.2, 0.3, 0.1])))
    assert match(raw, here, by_settings) == RIGHT

    raw = saved_by(Net(), lambda m: sgd(split(m, *same_shapes)))
    assert match(raw, here, sgd(split(here, *same_shapes, names=True))) == RIGHT


def test_groups_that_are_not_here_are_refused():
    raw = saved_by(Net(), lambda m: sgd(split(m, ["a"], ["b"], ["norm", "head"])))

    assert "groups of 2, 2, 4 parameters without names, and here are 1 of 8" in refused(raw)


def test_groups_that_nothing_tells_apart_are_refused():
    here = Net()
    raw = saved_by(Net(), lambda m: sgd(split(m, ["norm", "head"], ["a"], ["b"])))
    own = sgd(split(here, ["a"], ["b"], ["norm", "head"], names=True))

    assert "which parameter group" in refused(raw, model=here, here=own)


def spelt(raw, **more):
    return {"other": 1} | more | {"model": raw["model"]}


RAW = saved_by(Net(), lambda m: sgd(m.parameters()))
STATE = RAW["optimizer"]
PLACES = {
    "optimizer_state_dict": spelt(RAW, optimizer_state_dict=STATE),
    "optimizer_states.0": spelt(RAW, optimizer_states=[STATE], callbacks={"x": {"state": {}}}),
    "optim.adam": spelt(RAW, optim={"adam": STATE}),
    "trainer.opt": spelt(RAW, trainer={"opt": STATE, "step": 3}),
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_wherever_tools_put_it(place):
    assert [".".join(path) for path, _ in find_optimizers(PLACES[place])] == [place]
    assert match(PLACES[place]) == RIGHT


def test_of_two_the_key_says_which():
    raw = spelt(RAW, generator=STATE, discriminator=STATE)

    assert "pretrained.optimizer=generator" in refused(raw)
    assert match(raw, key="discriminator") == RIGHT


def state(entries, groups=None):
    return spelt(RAW, optimizer={"state": entries, "param_groups": groups or STATE["param_groups"]})


def test_what_is_no_state_of_this_model_is_refused():
    whole = dict(STATE["state"])
    cases = [
        (spelt(RAW), "must find an optimizer's state_dict"),
        (state({}), "holds no state"),
        (state({0: {"momentum_buffer": torch.full((4, 4), torch.nan)}}), "momentum_buffer of 0 is not finite"),
        (state({0: {"momentum_buffer": torch.ones(7, 4)}}), "momentum_buffer of 0 is [7, 4], and a.weight is [4, 4]"),
        (state({0: {"momentum_buffer": torch.ones(1).expand(1 << 40)}}), "claims"),
        (state({0: {"momentum_buffer": torch.ones(2, 2, device="meta")}}), "has no data"),
        (state({0: {"momentum_buffer": [1]}}), "is a list"),
        (state({0: {"square": torch.ones(4, 4)}}), "which keeps momentum_buffer of a parameter, but"),
        (state(whole | {99: {"momentum_buffer": torch.ones(2)}}), "in none of its groups"),
        (state(whole, [{"params": [0, 0, *range(2, 8)]}]), "number or name each parameter once"),
        (state(whole, [{"params": [*range(9)]}]), "has 9 of them, and the file's model 8"),
    ]
    for raw, words in cases:
        assert words in refused(raw)


def test_names_without_a_parameter_here_are_refused():
    groups = [STATE["param_groups"][0] | {"param_names": [f"x{i}" for i in range(8)]}]

    assert "must name parameters of the file" in refused(state(STATE["state"], groups))


def test_what_else_a_file_has_is_listed_with_its_short_values():
    raw = {"net": {"model": {}, "loss": 0.25}, "epoch": 4, "arch": "r\x1b[31m", "log": [1], "best": torch.tensor(0.5)}

    assert describe_rest(raw, ["net", "model"], "net.optimizer") == [
        "also in the file, and not taken: epoch=4, arch=r\\x1b[31m, log, best=0.5, net.loss=0.25"
    ]
    assert describe_rest({"a.weight": 1}, []) == []


@pytest.mark.parametrize("named", [4, 4.0, torch.tensor(4), torch.tensor([4.0])], ids=str)
def test_the_epoch_is_read_however_it_is_written(named):
    assert find_epoch({"epoch": named, "model": {}}, ["model"]) == 4
    assert find_epoch({"epoch": [named], "model": {}}, ["model"]) is None
    assert find_epoch({"epoch": True, "num_epochs": 4.5, "model": {}}, ["model"]) is None
