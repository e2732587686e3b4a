"""Averages of the weights, against torch's own and by hand."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.config.check.check import parse
from runner.experiment.builders import train as train_builder
from runner.train.weight_average import Decay, Lookahead
from tests.support import find_mistakes, read_result, write_files

STEPS = 12


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


def make(model, first_step=0, **average):
    node = {"_target_": "parts.Any"}
    config = parse({"model": node, "optimizer": node, "loss": None, "train": {"average": average}})
    rhythm = SimpleNamespace(steps_per_epoch=4, total_steps=STEPS, first_step=first_step)
    return train_builder.make_average(config, model, rhythm)


def train(model, act, steps=STEPS):
    """Train, and `act(step)` after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        act(step)


@pytest.mark.parametrize(
    ("average", "due", "function"),
    [
        ({"kind": "mean", "from": "1ep", "every": "2st"}, range(4, 13, 2), None),
        ({"kind": "mean"}, range(4, 13, 4), None),
        ({"kind": "ema", "from": "0.5ep", "every": "3st", "decay": 0.9}, range(2, 13, 3), get_ema_multi_avg_fn(0.9)),
        ({"decay": 0.9}, range(1, 13), get_ema_multi_avg_fn(0.9)),
    ],
)
def test_it_is_torchs_averaged_model_to_the_bit(average, due, function):
    model = net()
    ours, theirs = make(model, **average), AveragedModel(model, multi_avg_fn=function, use_buffers=True)
    whole = {}

    def act(step):
        ours.update()
        if step in due:
            if ours.updates > 1 and function is None:  # torch's mean of whole numbers is none of use
                whole.update(count=theirs.module[1].num_batches_tracked.clone())
            theirs.update_parameters(model)

    train(model, act)
    expected = {name: value for name, value in theirs.module.state_dict().items() if value.is_floating_point()}

    assert len(due) == ours.updates == int(theirs.n_averaged)
    assert {name: value.tolist() for name, value in expected.items()} == {
        name: ours.state_dict()[name].tolist() for name in expected
    }


def test_before_its_first_update_it_is_the_model():
    model = net()
    average = make(model, kind="mean", every="1ep")
    train(model, lambda _: average.update(), 3)
    with average.in_model():
        inside = deepcopy(model.state_dict())

    for state in (inside, average.state_dict()):
        assert all(map(torch.equal, state.values(), model.state_dict().values()))


def test_slow_weights_are_copied_back_with_a_decay_that_grows():
    """As by hand: they begin as the weights before the first step."""
    model, other = net(), net()
    average = make(model, kind="lookahead", every="5st", decay=0.8, decay_power=3)
    train(model, lambda _: average.update())
    slow = {name: value.clone() for name, value in other.state_dict().items() if value.is_floating_point()}

    def by_hand(step):
        if step % 5 == 0:
            for name, value in other.state_dict().items():
                if name in slow:
                    slow[name].lerp_(value, 1 - 0.8 * (step / STEPS) ** 3)
                    value.copy_(slow[name])

    train(other, by_hand)

    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in slow.items())


def test_slow_weights_may_begin_later():
    model = net()
    average, seen = make(model, kind="lookahead", every="5st", decay=0.5, **{"from": "3st"}), []

    def act(_):
        before = deepcopy(model.state_dict())
        average.update()
        seen.append(all(map(torch.equal, before.values(), model.state_dict().values())))

    train(model, act)

    assert [8] == [step for step, same in enumerate(seen, 1) if not same]
    assert isinstance(average, Lookahead)


def test_a_training_that_continues_anothers_counts_its_steps():
    average = make(net(), first_step=6, kind="mean", every="1ep", **{"from": "1ep"})

    assert (8, 0) == (average.first, average.updates)
    average.count = 2
    assert average.updates == 1


def test_a_decay_grows_to_its_value():
    assert [0.0, 0.1, 0.8] == [Decay(0.8, 3, 10).at(step) for step in (0, 5, 10)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.average={kind: mean, decay: 0.9}"], "train.average.decay has no effect in a mean"),
        (["train.average={kind: lookahead}"], "train.average.decay must be given for kind lookahead"),
        (["train.average={kind: mean}", "train.ema=0.9"], "train.average must not stand beside `train.ema`"),
        (["train.average={kind: swa}"], "train.average.kind must be"),
        (
            ["train.average={kind: mean, from: 11ep}", "train.duration=10ep"],
            "train.average.from must be within the run",
        ),
        (["train.average={kind: mean, form: 1ep}"], "did you mean `train.average.from`"),
        (
            ["train.average={kind: mean, update_bn: true}", "loader.num_workers=1", "loader.persistent_workers=true"],
            "loader.persistent_workers must be false with `train.average.update_bn`",
        ),
    ],
)
def test_a_wrong_average_is_named(settings, said):
    (mistake,) = find_mistakes(*settings)

    assert said in f"{mistake.key} {mistake.rule} {mistake.remedy}"


DIGITS = ("model=normed", "dataset.limit=320", "train.duration=2ep", "train.evaluate_every=3st", "log=quiet")
NORMED = """
_target_: torch.nn.Sequential
_args_:
  - {_target_: torch.nn.Flatten}
  - {_target_: torch.nn.Linear, in_features: 64, out_features: 8}
  - {_target_: torch.nn.BatchNorm1d, num_features: 8}
  - {_target_: torch.nn.Dropout}
  - {_target_: torch.nn.Linear, in_features: 8, out_features: 10}
"""


@pytest.fixture(autouse=True)
def normed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {"conf/model/normed.yaml": NORMED})


def test_statistics_computed_anew_move_nothing(runner):
    """The same weights without an average: dropout, order, batches and generators are as they were."""
    average = "train.average={kind: mean, every: 1st, update_bn: true}"
    runs = [runner(*DIGITS, "transform=shift", *more) for more in ((), (average,))]

    assert runs[0].result["weights_sha256"] == runs[1].result["weights_sha256"]
    assert "ema_sha256" in runs[1].result
    assert runs[0].result["metrics"] != runs[1].result["metrics"]


def test_an_evaluation_of_the_record_uses_the_statistics_that_are_saved(runner):
    made = runner(*DIGITS, "train.average={kind: mean, every: 2st, update_bn: true}")
    again = runner("evaluate", str(made.folder), "--json")

    assert read_result(made.folder)["metrics"]["val/loss"] > 0
    assert f'"val/loss": {read_result(made.folder)["metrics"]["val/loss"]}' in again.out


def test_slow_weights_are_resumed_before_their_first_update(runner):
    """To the bit, though no update has shown them yet."""
    words = (*DIGITS, "scheduler=none", "train.evaluate_every=null", "train.average={kind: lookahead, decay: 0.5}")
    whole = runner(*words, "train.duration=7st").result
    part = runner(*words, "train.duration=3st").folder
    resumed = runner("resume", str(part), "train.duration=7st").result

    assert [whole[name] for name in ("weights_sha256", "ema_sha256")] == [
        resumed[name] for name in ("weights_sha256", "ema_sha256")
    ]
