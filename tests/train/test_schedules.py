"""Every scheduler of torch from YAML: bitwise the losses and rates of the loop as one writes it by hand."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from datasets.synthetic import SyntheticImages
from models.mlp import MLP
from tests.support import read_metrics

EPOCH, EPOCHS, BATCH = 5, 4, 16
TOTAL = EPOCH * EPOCHS
DATA: dict[str, Any] = {"num_samples": EPOCH * BATCH, "shape": [1, 4, 4], "num_classes": 3}
SIZES = [16, 8, 3]
RATES = """
def inverse_root(step, scale=1.0):
    return scale / (1 + step) ** 0.5

def shrinking(step):
    return 0.95

class Halving:
    def __init__(self, every):
        self.every = every

    def __call__(self, step):
        return 0.5 ** (step // self.every)

class Mine:
    def update(self, output, target): ...
    def compute(self): return 0.0
    def reset(self): ...
"""
LR = "torch.optim.lr_scheduler."
Make = Callable[[SGD, int], Any]


def _inverse_root(step: int, scale: float = 1.0) -> float:
    return scale / (1 + step) ** 0.5


def _sequential(made: SGD, n: int) -> LRScheduler:
    first = lr_scheduler.LinearLR(made, 0.1, total_iters=n)
    return lr_scheduler.SequentialLR(made, [first, lr_scheduler.CosineAnnealingLR(made, 3 * n)], milestones=[n])


def _nested(made: SGD, n: int) -> LRScheduler:
    first = lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(made, 0.5, n), lr_scheduler.ExponentialLR(made, 0.99)], optimizer=made
    )
    return lr_scheduler.SequentialLR(made, [first, lr_scheduler.StepLR(made, n, 0.5)], milestones=[2 * n])


# Class → arguments in YAML, and the same by hand; n is the number of the scheduler's steps in an epoch.
TABLE: dict[str, tuple[str, Make]] = {
    "LambdaLR": (
        "lr_lambda: {_target_: rates_of_test.inverse_root, scale: 0.7}",
        lambda o, _: lr_scheduler.LambdaLR(o, lambda step: _inverse_root(step, 0.7)),
    ),
    "LambdaLR, one for each group": (
        "lr_lambda: [{_target_: rates_of_test.inverse_root}, {_target_: rates_of_test.Halving, every: 3}]",
        lambda o, _: lr_scheduler.LambdaLR(o, [_inverse_root, lambda step: 0.5 ** (step // 3)]),
    ),
    "MultiplicativeLR": (
        "lr_lambda: {_target_: rates_of_test.shrinking}",
        lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda _: 0.95),
    ),
    "StepLR": ("step_size: 1ep, gamma: 0.5", lambda o, n: lr_scheduler.StepLR(o, n, 0.5)),
    "MultiStepLR": ("milestones: [1ep, 3ep]", lambda o, n: lr_scheduler.MultiStepLR(o, [n, 3 * n])),
    "ConstantLR": ("factor: 0.5, total_iters: 2ep", lambda o, n: lr_scheduler.ConstantLR(o, 0.5, 2 * n)),
    "LinearLR": ("start_factor: 0.1, total_iters: 3ep", lambda o, n: lr_scheduler.LinearLR(o, 0.1, 1.0, 3 * n)),
    "ExponentialLR": ("gamma: 0.9", lambda o, _: lr_scheduler.ExponentialLR(o, 0.9)),
    "PolynomialLR": (
        "total_iters: '${train.duration}', power: 2",
        lambda o, n: lr_scheduler.PolynomialLR(o, EPOCHS * n, 2),
    ),
    "CosineAnnealingLR": (
        "T_max: '${train.duration}', eta_min: 0.001",
        lambda o, n: lr_scheduler.CosineAnnealingLR(o, EPOCHS * n, 0.001),
    ),
    "CosineAnnealingWarmRestarts": (
        "T_0: 1ep, T_mult: 2",
        lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, n, 2),
    ),
    "CyclicLR": (
        "base_lr: 0.01, max_lr: [0.1, 0.05], step_size_up: 1ep, step_size_down: 2ep, mode: exp_range, gamma: 0.99",
        lambda o, n: lr_scheduler.CyclicLR(o, 0.01, [0.1, 0.05], n, 2 * n, mode="exp_range", gamma=0.99),
    ),
    "CyclicLR, a scale of one's own": (
        (
            "base_lr: 0.01, max_lr: [0.1, 0.1], step_size_up: 2, cycle_momentum: false, "
            "scale_fn: {_target_: rates_of_test.inverse_root}"
        ),
        lambda o, _: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False, scale_fn=_inverse_root),
    ),
    "OneCycleLR": (
        "max_lr: [0.1, 0.01], total_steps: '${train.duration}', base_momentum: 0.8, three_phase: true",
        lambda o, n: lr_scheduler.OneCycleLR(o, [0.1, 0.01], EPOCHS * n, base_momentum=0.8, three_phase=True),
    ),
    "OneCycleLR, epochs": (
        "max_lr: [0.1, 0.1], epochs: 4, steps_per_epoch: 1ep",
        lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, epochs=4, steps_per_epoch=n),
    ),
    "SequentialLR": (
        (
            f"schedulers: [{{_target_: {LR}LinearLR, start_factor: 0.1, total_iters: 1ep}}, "
            f"{{_target_: {LR}CosineAnnealingLR, T_max: 3ep}}], milestones: [1ep]"
        ),
        _sequential,
    ),
    "ChainedScheduler": (
        (
            f"schedulers: [{{_target_: {LR}ConstantLR, factor: 0.1, total_iters: 1ep}}, "
            f"{{_target_: {LR}ExponentialLR, gamma: 0.9}}]"
        ),
        lambda o, n: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.1, n), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
        ),
    ),
    "SequentialLR, of a chain": (
        (
            f"schedulers: [{{_target_: {LR}ChainedScheduler, schedulers: "
            f"[{{_target_: {LR}ConstantLR, factor: 0.5, total_iters: 1ep}}, "
            f"{{_target_: {LR}ExponentialLR, gamma: 0.99}}]}}, "
            f"{{_target_: {LR}StepLR, step_size: 1ep, gamma: 0.5}}], milestones: [2ep]"
        ),
        _nested,
    ),
    "SWALR": (
        "swa_lr: [0.02, 0.002], anneal_epochs: 2ep, anneal_strategy: linear",
        lambda o, n: swa_utils.SWALR(o, [0.02, 0.002], 2 * n, "linear"),  # type: ignore[arg-type]
    ),
    "ReduceLROnPlateau": (
        "monitor: val/loss, factor: 0.5, patience: 0, threshold: 0.5, cooldown: 1, min_lr: [0.01, 0.001]",
        lambda o, _: lr_scheduler.ReduceLROnPlateau(
            o, factor=0.5, patience=0, threshold=0.5, cooldown=1, min_lr=[0.01, 0.001]
        ),
    ),
}
# The class that all derive from keeps the rates as they are, under two names.
NOT_FOR_USE = {"LRScheduler", "_LRScheduler"}


def test_the_table_has_every_class_of_torch() -> None:
    """What the installed torch has, the table has; `SWALR` is at home in `torch.optim.swa_utils`."""
    classes = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type)
        and issubclass(kind, LRScheduler)
        and kind.__module__ == lr_scheduler.__name__
        and name not in NOT_FOR_USE
    }

    assert classes | {"SWALR"} == {name.partition(",")[0] for name in TABLE}


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of a split."""
    samples = SyntheticImages(**DATA, seed=seed)
    images, labels = zip(*[samples[i] for i in range(len(samples))], strict=True)
    return torch.stack(images), torch.tensor(labels)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MLP(SIZES).state_dict()


class Loop:
    """The loop as its user would write it: two parameter groups, batches in order, a schedule stepped by hand."""

    def __init__(self, batch: int = BATCH) -> None:
        self.model = MLP(SIZES)
        self.model.load_state_dict(weights())
        head = [p for name, p in self.model.named_parameters() if name.startswith("layers.3")]
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("layers.3")]
        self.optimizer = SGD([{"params": head, "lr": 0.01}, {"params": rest}], lr=0.1, momentum=0.9)
        self.losses: list[float] = []
        self.before: list[list[float]] = []
        self.momenta: list[list[float]] = []
        self.batch = batch

    def epoch(self) -> Iterator[None]:
        """One epoch; what follows a step follows its `yield`."""
        images, labels = data(0)
        for start in range(0, len(images), self.batch):
            rows = slice(start, start + self.batch)
            loss = nn.functional.cross_entropy(self.model(images[rows]), labels[rows])
            loss.backward()
            self.before.append([group["lr"] for group in self.optimizer.param_groups])
            self.momenta.append([group["momentum"] for group in self.optimizer.param_groups])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            yield

    @property
    def rates(self) -> list[list[float]]:
        """The rates after each step, as a line of the log has them: those of the next step."""
        return [*self.before[1:], [group["lr"] for group in self.optimizer.param_groups]]

    def validate(self) -> float:
        """The loss on the validation split, which is one batch."""
        images, labels = data(1)
        with torch.no_grad():
            return nn.functional.cross_entropy(self.model(images), labels).item()


def by_hand(make: Make, interval: str) -> Loop:
    """The loop with this scheduler."""
    loop = Loop()
    scheduler = make(loop.optimizer, EPOCH if interval == "step" else 1)
    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    for _ in range(EPOCHS):
        for _ in loop.epoch():
            if interval == "step" and not plateau:
                scheduler.step()
        if plateau:
            scheduler.step(loop.validate())
        elif interval == "epoch":
            scheduler.step()
    return loop


@pytest.fixture
def train(runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`train(scheduler_yaml, *overrides)`: the losses and rates of the same training from a config."""
    Path("rates_of_test.py").write_text(RATES)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    torch.save(weights(), "start.pt")
    node = {"_target_": "datasets.synthetic.SyntheticImages", **DATA}
    recipe = {
        "defaults": [{"override /dataset": "synthetic"}, {"override /model": "mlp"}, {"override /log": "quiet"}],
        "name": "scheduled",
        "dataset": {"train": node | {"seed": 0}, "val": node | {"seed": 1}, "sample": {"shape": [1, 4, 4]}},
        "model": {"sizes": SIZES},
        "metrics": {"accuracy": None},
        "pretrained": {"strategy": "full", "path": "start.pt"},
        "loader": {"batch_size": BATCH, "shuffle": False},
        "optimizer": {"lr": 0.1, "momentum": 0.9},
        "param_groups": {"head": {"match": r"layers\.3\..*", "lr": 0.01}},
        "train": {"duration": f"{EPOCHS}ep", "checkpoint_every": None},
        "log": {"every": "1st", "model_table": False},
        "device": {"type": "cpu"},
    }
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/scheduled.yaml").write_text("# @package _global_\n" + yaml.safe_dump(recipe))
    Path("conf/scheduler").mkdir()

    def run(scheduler: str, *overrides: str) -> Any:
        Path("conf/scheduler/of_test.yaml").write_text(scheduler)
        ran = runner("experiment=scheduled", "scheduler=of_test", *overrides)
        assert ran.status == 0, ran.err
        return ran

    return run


def logged(ran: Any) -> tuple[list[float], list[list[float]]]:
    """Losses and rates of every step."""
    events = read_metrics(ran.folder)
    steps = [event for event in events if "train/loss" in event]
    return [e["train/loss"] for e in steps], [[e["lr/head"], e["lr/default"]] for e in steps]


@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")  # torch's own SequentialLR calls step(0)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # and a chain within it
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", TABLE)
def test_as_by_hand(name: str, interval: str, train: Callable[..., Any]) -> None:
    """Losses and rates of every step are bitwise those of the loop by hand."""
    arguments, make = TABLE[name]
    kind = name.partition(",")[0]
    home = "torch.optim.swa_utils." if kind == "SWALR" else LR
    ran = train(f"{{_target_: {home}{kind}, interval: {interval}, {arguments}}}")
    loop = by_hand(make, interval)
    rates = loop.before if kind == "ReduceLROnPlateau" else loop.rates  # which is asked after the line is written

    assert (loop.losses, rates) == logged(ran)
    assert len(set(map(tuple, loop.rates))) > 1  # else the case would show nothing


@pytest.mark.parametrize("kind", ["CyclicLR", "OneCycleLR"])
def test_the_momentum_is_cycled(kind: str) -> None:
    """The loop by hand, whose losses these schedules give, has another momentum at each step."""
    loop = by_hand(TABLE[kind][1], "step")

    assert len(set(map(tuple, loop.momenta))) >= 8


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_warmup_as_by_hand(interval: str, train: Callable[..., Any]) -> None:
    """Step t of a warmup of seven steps has (t + 1) / 7 of the rates; the cosine over the rest ends with the run."""
    ran = train(f"{{_target_: {LR}CosineAnnealingLR, warmup: 7st, interval: {interval}, T_max: '${{train.duration}}'}}")
    loop = Loop()
    rest = TOTAL - 7 if interval == "step" else math.ceil((TOTAL - 7) / EPOCH)
    scheduler = lr_scheduler.CosineAnnealingLR(loop.optimizer, rest)
    first = [group["lr"] for group in loop.optimizer.param_groups]

    def warm(step: int) -> None:
        for group, rate in zip(loop.optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (step + 1) / 7

    step = 0
    warm(step)
    for _ in range(EPOCHS):
        for _ in loop.epoch():
            step += 1
            if step < 7:
                warm(step)
            elif step == 7:
                for group, rate in zip(loop.optimizer.param_groups, first, strict=True):
                    group["lr"] = rate
            elif interval == "step":
                scheduler.step()
        if interval == "epoch" and step > 7:
            scheduler.step()

    assert (loop.losses, loop.rates) == logged(ran)


def test_plateau_is_asked_after_each_evaluation(train: Callable[..., Any]) -> None:
    """Twice an epoch where it is evaluated so; a duration is then a number of evaluations; the warmup is left alone."""
    ran = train(
        f"{{_target_: {LR}ReduceLROnPlateau, monitor: val/accuracy, mode: max, patience: 4st, factor: 0.5, warmup: 4st,"
        "threshold: 0.9}",
        "train.evaluate_every=2st",
        "metrics={accuracy: {_target_: runner.train.metrics.Accuracy}}",
    )
    loop = Loop()
    scheduler = lr_scheduler.ReduceLROnPlateau(loop.optimizer, "max", patience=2, factor=0.5, threshold=0.9)
    step = 0
    for _ in range(EPOCHS):
        for _ in loop.epoch():
            step += 1
            if step % 2 == 0 and step >= 4:
                images, labels = data(1)
                with torch.no_grad():
                    scheduler.step((loop.model(images).argmax(1) == labels).double().mean().item())

    assert loop.losses[4:] != logged(ran)[0][4:]  # the warmup took other steps
    assert loop.before[4:] == logged(ran)[1][4:]
    assert loop.rates[-1][0] < 0.1


def test_plateau_may_follow_a_metric_of_training(train: Callable[..., Any]) -> None:
    """The loss since the last line of the log, which is written where the plateau is asked."""
    settings = ("train.evaluate_every=1ep", "log.every=100st", "dataset.val=null", "train.objective=train/loss")
    ran = train(f"{{_target_: {LR}ReduceLROnPlateau, monitor: train/loss, patience: 0, threshold: 0.9}}", *settings)
    events = read_metrics(ran.folder)
    rates = [event["lr/default"] for event in events if "lr/default" in event]

    assert [pytest.approx(rate) for rate in (0.1, 0.1, 0.01, 0.001)] == rates


REFUSED = {
    "a metric that nothing produces": ("monitor: val/f1", (), "scheduler.monitor must be one of `val/loss`"),
    "no metric": ("patience: 1", (), "scheduler.monitor must be given"),
    "a metric that gets better downwards": ("monitor: val/loss, mode: max", (), "scheduler.mode must be `min`"),
    "a metric that gets better upwards": (
        "monitor: val/accuracy",
        ("metrics={accuracy: {_target_: runner.train.metrics.Accuracy}}",),
        "scheduler.mode must be `max` for `val/accuracy`, of which higher is better, but is 'min'",
    ),
    "an objective that says otherwise": (
        "monitor: val/mine",
        ("metrics={mine: {_target_: rates_of_test.Mine}}", "train.objective=val/mine", "train.mode=max"),
        "of which train.mode is max",
    ),
    "no evaluation": ("monitor: val/loss", ("train.evaluate_every=null",), "train.evaluate_every must be given"),
    "one evaluation": ("monitor: val/loss", ("train.evaluate_every=4ep",), "train.evaluate_every must be shorter than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plateau_that_cannot_act(case: str, train: Callable[..., Any]) -> None:
    """What is asked of a plateau is known to be wrong before the run."""
    arguments, overrides, message = REFUSED[case]

    with pytest.raises(AssertionError) as error:
        train(f"{{_target_: {LR}ReduceLROnPlateau, {arguments}}}", *overrides)

    assert message in str(error.value)
    assert not Path("outputs").exists()


COSINE = f"_target_: {LR}CosineAnnealingLR, T_max: 4ep"
LENGTHS = {
    "a warmup as long as the run": (
        f"{{{COSINE}, warmup: 4ep}}",
        (),
        2,
        "scheduler.warmup must be shorter than the run",
    ),
    "a warmup in steps": (f"{{{COSINE}, warmup: 21st}}", (), 1, "scheduler.warmup must be shorter than the run"),
    "thawing after the run": (
        f"{{{COSINE}}}",
        ("freeze={params: ['layers.1.*'], until: 4ep}",),
        2,
        "freeze.until must be shorter than the run",
    ),
    "thawing after the run, in steps": (
        f"{{{COSINE}}}",
        ("freeze={params: ['layers.1.*'], until: 20st}",),
        1,
        "freeze.until must be shorter than the run",
    ),
    "a cycle that ends before the run": (
        f"{{_target_: {LR}OneCycleLR, max_lr: [0.1, 0.01], total_steps: 3ep}}",
        (),
        2,
        "scheduler.total_steps must reach to the end of the run",
    ),
    "a cycle that ends before the run, in steps": (
        f"{{_target_: {LR}OneCycleLR, max_lr: [0.1, 0.01], total_steps: 19}}",
        (),
        1,
        "scheduler.total_steps must reach to the end of the run: OneCycleLR ends after 19 steps, and the run has 20",
    ),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_what_does_not_fit_into_the_run(case: str, train: Callable[..., Any]) -> None:
    """Where units agree it is a mistake of the config; where only the data tells, the run ends at its start."""
    scheduler, overrides, status, message = LENGTHS[case]

    with pytest.raises(AssertionError) as error:
        train(scheduler, *overrides)

    assert f"assert {status} == 0" in str(error.value)
    assert message in str(error.value)


def test_one_rate_for_groups_with_rates_of_their_own(train: Callable[..., Any]) -> None:
    """OneCycleLR would forget them without a word."""
    with pytest.raises(AssertionError) as error:
        train(f"{{_target_: {LR}OneCycleLR, max_lr: 0.1, total_steps: 4ep}}")

    assert "so that their own (head 0.01, default 0.1) had no effect" in str(error.value)


def test_a_debugging_run_may_be_shorter(train: Callable[..., Any]) -> None:
    """Two steps do not reach the end of a warmup, and nothing is wrong with that."""
    assert train(f"{{{COSINE}, warmup: 1ep}}", "debug=one_batch").result["steps"] == 2


def test_prolonged_without_a_checkpoint(train: Callable[..., Any], runner: Callable[..., Any]) -> None:
    """A cosine that followed the duration, less a warmup, keeps the length that it was planned for, twice."""
    yaml_text = f"{{_target_: {LR}CosineAnnealingLR, warmup: 1ep, T_max: '${{train.duration}}'}}"
    before = logged(train(yaml_text))
    folder = train(yaml_text, "name=again").folder
    for duration in ("6ep", "7ep"):
        for file in ("checkpoints", "metrics.jsonl", "result.json"):
            path = folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert runner("resume", str(folder), f"train.duration={duration}", "--schedule=continue").status == 0
    after = logged(Ran(folder))

    assert before == (after[0][:TOTAL], after[1][:TOTAL])
    assert len(after[0]) == 7 * EPOCH


@dataclass
class Ran:
    """What `logged` looks into."""

    folder: Path
