"""A checkpoint of another script goes on here: weights, optimizer's state, epoch; and what of it is refused."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.support import install_project, read_metrics

PARTS = """
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset


class Points(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(44, 6, generator=generator)
        self.labels = torch.randint(3, (44,), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Points()[i] for i in range(44)])


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))
"""
CONF = {
    "dataset/points.yaml": "{train: {_target_: other_parts.Points}, sample: {shape: [6], dtype: float32}}",
    "model/net.yaml": "_target_: other_parts.Net",
    "optimizer/momentum.yaml": "{_target_: torch.optim.SGD, lr: 0.1, momentum: 0.9}",
    "optimizer/moments.yaml": "{_target_: torch.optim.Adam, lr: 0.01}",
    "optimizer/decayed.yaml": "{_target_: torch.optim.AdamW, lr: 0.01, weight_decay: 0.1}",
    "optimizer/squares.yaml": "{_target_: torch.optim.RMSprop, lr: 0.001, momentum: 0.9}",
    "optimizer/closure.yaml": "{_target_: torch.optim.LBFGS, lr: 0.1}",
    "experiment/continued.yaml": """
# @package _global_
defaults:
  - override /dataset: points
  - override /model: net
  - override /optimizer: momentum
name: continued
pretrained: {strategy: full, path: theirs.pt}
loader: {batch_size: 8, shuffle: false}
train: {duration: 5ep}
log: {every: 1st, model_table: false, progress: false, tensorboard: false}
device: {type: cpu}
""",
}
GO_ON = ("experiment=continued", "pretrained.optimizer=true", "pretrained.epoch=3")


@pytest.fixture(autouse=True)
def parts(tmp_path: Path) -> Iterator[Any]:
    """A project with these parts; gives their module."""
    with install_project(tmp_path, "other_parts", PARTS, CONF) as module:
        yield module


class Script:
    """A training script as people write them: 6 batches of 44 samples an epoch, in order."""

    def __init__(self, parts: Any, optimizer: Callable[[Any], Any], model: nn.Module | None = None) -> None:
        torch.manual_seed(7)
        self.model = model or parts.Net()
        self.data = parts.Points()
        self.optimizer = optimizer(self.model)
        self.scheduler: Any = None
        self.loss = torch.tensor(0.0)

    def train(self, epochs: int) -> "Script":
        self.model.train()
        for _ in range(epochs):
            for rows in torch.arange(44).split(8):  # copies: on views, which lie anywhere, kernels may differ
                self.optimizer.zero_grad()
                self.loss = cross_entropy(self.model(self.data.inputs[rows]), self.data.labels[rows])
                self.loss.backward()
                self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return self

    def state(self, **more: Any) -> dict[str, Any]:
        """As the tutorial of PyTorch saves it."""
        return {
            "epoch": 2,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "loss": self.loss.item(),
        } | more


def last_weights(folder: Path) -> dict[str, Any]:
    """The model in the run's last checkpoint."""
    saved: dict[str, Any] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return saved["model"]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


ADAM = ("optimizer=moments",)
OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "sgd": (lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9), ()),
    "nesterov": (
        lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True),
        ("+optimizer.nesterov=true",),
    ),
    "adam": (lambda m: torch.optim.Adam(m.parameters(), 0.01), ADAM),
    "adam by name": (lambda m: torch.optim.Adam(m.named_parameters(), 0.01), ADAM),
    "adamw in two groups": (
        lambda m: torch.optim.AdamW(
            [
                {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
                {"params": [p for p in m.parameters() if p.dim() < 2], "weight_decay": 0.0},
            ],
            0.01,
        ),
        (
            "optimizer=decayed",
            "+param_groups={plain:{match:'.*',max_dims:1,weight_decay:0}}",
        ),
    ),
    "rmsprop": (
        lambda m: torch.optim.RMSprop(m.parameters(), 0.001, momentum=0.9),
        ("optimizer=squares",),
    ),
}


EVERYDAY = {("sgd", True), ("adam", False), ("adamw in two groups", True)}
PARITY = [
    pytest.param(name, schedule, marks=() if (name, schedule) in EVERYDAY else pytest.mark.exhaustive)
    for name in OPTIMIZERS
    for schedule in (False, True)
]


@pytest.mark.parametrize(("name", "schedule"), PARITY)
def test_going_on_here_is_bitwise_going_on_there(
    name: str, schedule: bool, parts: Any, runner: Callable[..., Any]
) -> None:
    """Three epochs in a script and two here are the weights of five epochs in the script."""
    make, overrides = OPTIMIZERS[name]
    script = Script(parts, make)
    more: dict[str, Any] = {}
    if schedule:
        script.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(script.optimizer, 5)
        overrides += ("+scheduler={_target_:torch.optim.lr_scheduler.CosineAnnealingLR,T_max:5ep,interval:epoch}",)
    script.train(3)
    if schedule:
        more = {"scheduler_state_dict": script.scheduler.state_dict()}
    torch.save(script.state(**more), "theirs.pt")

    ran = runner(*GO_ON, *overrides)

    assert ran.status == 0, ran.err
    assert_same(last_weights(ran.folder), script.train(2).model.state_dict())


def test_steps_schedule_and_log_count_from_the_epoch(parts: Any, runner: Callable[..., Any]) -> None:
    """The first line of the log is that of the first step here, and a resume goes on as ever."""
    script = Script(parts, OPTIMIZERS["sgd"][0]).train(3)
    torch.save(script.state(), "theirs.pt")

    ran = runner(*GO_ON, "train.duration=4ep")
    lines = read_metrics(ran.folder)

    assert [line["step"] for line in lines] == [19, 20, 21, 22, 23, 24]
    assert {line["epoch"] for line in lines[:5]} == {3}
    assert ran.result["steps"] == 24
    assert "lost" not in (ran.folder / "log.txt").read_text()
    longer = runner("resume", str(ran.folder), "train.duration=5ep")
    assert longer.status == 0, longer.err
    assert_same(last_weights(ran.folder), script.train(2).model.state_dict())


def test_what_was_there_and_not_taken_is_said(parts: Any, runner: Callable[..., Any]) -> None:
    """The loss, the schedule's state and the epoch; settings that are others here; and two ways to count epochs."""
    script = Script(parts, OPTIMIZERS["sgd"][0]).train(1)
    torch.save(script.state(scheduler_state_dict={"last_epoch": 3}, amp=None), "theirs.pt")

    said = runner("check", "experiment=continued", "pretrained.optimizer=true", "optimizer.lr=0.05")

    assert said.status == 0
    text = said.out + said.err
    assert re.search(r"also in the file, and not taken: epoch=2, loss=[\d.]+, scheduler_state_dict, amp", text)
    assert "lr was 0.1 there and is 0.05 here" in text
    assert "pretrained.epoch=3 where that was the last epoch done, counted from 0, or 2 where it counts" in text
    assert "state of 6 of 6 parameters is taken from `optimizer_state_dict`, by their order and shapes" in text


def test_the_steps_of_the_optimizer_are_compared_with_the_epoch(parts: Any, runner: Callable[..., Any]) -> None:
    """Adam counts its steps: an epoch that does not fit is said."""
    torch.save(Script(parts, OPTIMIZERS["adam"][0]).train(2).state(), "theirs.pt")

    ran = runner(*GO_ON, *ADAM)

    assert ran.status == 0
    assert "its optimizer has taken 12 steps, 2 epochs of 6 steps here: pretrained.epoch is 3" in ran.out + ran.err


def spellings(script: Script) -> dict[str, dict[str, Any]]:
    """The same training as other tools save it."""
    model, state = script.model.state_dict(), script.optimizer.state_dict()
    with_prefix = {f"model.{name}": value for name, value in model.items()}
    return {
        "torchvision": {"model": model, "optimizer": state, "lr_scheduler": {}, "epoch": 2, "args": None},
        "imagenet example": {"epoch": 3, "arch": "net", "state_dict": model, "best_acc1": 0.5, "optimizer": state},
        "lightning": {
            "epoch": 2,
            "global_step": 18,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": with_prefix,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
            "callbacks": {},
            "optimizer_states": [state],
            "lr_schedulers": [],
        },
        "nested": {"checkpoint": {"net": model, "optim": state, "epoch": 2}},
        "ignite": {"model": model, "trainer": {"epoch_length": 6, "epoch": 3}, "optimizer": state},
        "data parallel": {
            "model_state_dict": {f"module.{name}": value for name, value in model.items()},
            "opt_state": state,
        },
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("tool", ["torchvision", "imagenet example", "lightning", "nested", "ignite", "data parallel"])
def test_the_usual_spellings_are_found(tool: str, parts: Any, runner: Callable[..., Any]) -> None:
    """Where other tools put the optimizer's state it is found, and matched through a wrapper's prefix."""
    script = Script(parts, OPTIMIZERS["adam"][0]).train(3)
    torch.save(spellings(script)[tool], "theirs.pt")
    prefix = {"lightning": ("pretrained.strip_prefix=model.",), "data parallel": ("pretrained.strip_prefix=module.",)}

    ran = runner(*GO_ON, *ADAM, *prefix.get(tool, ()))

    assert ran.status == 0, ran.err
    assert_same(last_weights(ran.folder), script.train(2).model.state_dict())


@pytest.mark.exhaustive
def test_our_own_checkpoint_goes_on_too(parts: Any, runner: Callable[..., Any]) -> None:
    """A run directory is such a file: its optimizer's state has names."""
    script = Script(parts, OPTIMIZERS["adam"][0])
    torch.save(script.state(), "theirs.pt")
    first = runner("experiment=continued", *ADAM, "train.duration=3ep")

    ran = runner(*GO_ON, *ADAM, f"pretrained.path={first.folder}/last.pt")

    assert ran.status == 0, ran.err
    assert "by name" in (ran.folder / "log.txt").read_text()
    assert_same(last_weights(ran.folder), script.train(5).model.state_dict())


def test_a_new_head_begins_without_a_state(parts: Any, runner: Callable[..., Any]) -> None:
    """The state of what loads is taken, that of another head is not, and both are said."""
    script = Script(parts, OPTIMIZERS["adam"][0], parts.Net(classes=5)).train(1)
    torch.save(script.state(), "theirs.pt")

    ran = runner(*GO_ON, *ADAM, "pretrained.strategy=partial", "pretrained.exclude=['last.*']", "train.duration=20st")
    log = (ran.folder / "log.txt").read_text()

    assert ran.status == 0, ran.err
    assert "state of 4 of 6 parameters is taken" in log
    assert "without a state at the start: last.weight, last.bias" in log
    assert "the state of 2 more is not taken" in log


@pytest.mark.exhaustive
def test_frozen_parameters_count_in_the_order(parts: Any, runner: Callable[..., Any]) -> None:
    """A script that froze the first layer gave all parameters to the optimizer, or those that train alone."""
    for every in (True, False):
        model = parts.Net()
        model.first.requires_grad_(requires_grad=False)
        script = Script(
            parts,
            lambda m, e=every: torch.optim.Adam([p for p in m.parameters() if e or p.requires_grad], 0.01),
            model,
        ).train(3)
        torch.save(script.state(), "theirs.pt")

        ran = runner(*GO_ON, *ADAM, "freeze.params=['first.*']")

        assert ran.status == 0, ran.err
        assert_same(last_weights(ran.folder), script.train(2).model.state_dict())


def groups_of(model: Any, names: str, **settings: Any) -> dict[str, Any]:
    return {"params": [p for n, p in model.named_parameters() if n[0] in names], **settings}


def test_groups_in_another_order_are_told_apart_by_shapes_and_settings(parts: Any, runner: Callable[..., Any]) -> None:
    """Two groups of equal shapes go by their settings; where these are the same too, by their order."""
    script = Script(
        parts,
        lambda m: torch.optim.Adam([groups_of(m, "bh"), groups_of(m, "a", lr=0.001)], 0.01),
        parts.Square(),
    ).train(3)
    torch.save(script.state(), "theirs.pt")

    ran = runner(*GO_ON, *ADAM, "model._target_=other_parts.Square", "+param_groups={slow:{match:'a.*',lr:0.001}}")

    assert ran.status == 0, ran.err
    assert_same(last_weights(ran.folder), script.train(2).model.state_dict())


REFUSED = {
    "another optimizer": (
        ADAM,
        "keeps exp_avg, exp_avg_sq, step of a parameter, but `optimizer_state_dict` has momentum_buffer",
    ),
    "no momentum here": (("optimizer.momentum=0",), "keeps nothing of a parameter"),
    "lbfgs": (("optimizer=closure",), "cannot be had of torch.optim.LBFGS"),
    "past the end": (("train.duration=3ep",), "pretrained.epoch must be before the end of the run"),
    "a key that is none": (("pretrained.optimizer=optimizer_state",), "must be a key of the checkpoint"),
    "without weights": (("pretrained.strategy=none", "pretrained.path=null"), "pretrained.epoch has no effect while"),
}


def test_what_cannot_go_on_is_refused_before_anything_exists(parts: Any, runner: Callable[..., Any]) -> None:
    """The key, why, and a remedy; exit status 2."""
    torch.save(Script(parts, OPTIMIZERS["sgd"][0]).train(1).state(), "theirs.pt")
    for overrides, words in REFUSED.values():
        ran = runner(*GO_ON, *overrides)

        assert ran.status == 2, ran.out
        assert words in ran.err
        assert not Path("outputs").exists()


def test_an_end_in_steps_is_seen_when_the_data_is_known(parts: Any, runner: Callable[..., Any]) -> None:
    """The run fails before its first step, and says both lengths."""
    torch.save(Script(parts, OPTIMIZERS["sgd"][0]).train(1).state(), "theirs.pt")

    ran = runner(*GO_ON, "train.duration=18st")

    assert ran.status == 1
    assert "pretrained.epoch must be before the end of the run, whose train.duration is 18st (18 steps)" in ran.err


def test_a_stream_has_no_epochs_to_begin_after(parts: Any, runner: Callable[..., Any]) -> None:
    """Where the length of an epoch is not known, the run says so."""
    torch.save(Script(parts, OPTIMIZERS["sgd"][0]).train(1).state(), "theirs.pt")

    ran = runner(*GO_ON, "dataset.train._target_=other_parts.Stream", "train.duration=40st")

    assert ran.status == 1
    assert "pretrained.epoch=3 cannot be told on an iterable dataset" in ran.err
