"""A schedule gives the rates of the same scheduler stepped by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from runner.config.schema import Config, Scheduler, Train
from runner.experiment.builders.train import make_schedule
from runner.train.lr_schedule import LRSchedule

EPOCH, EPOCHS = 5, 6


def optimizer(lr: float = 0.1) -> SGD:
    """Two groups with rates of their own."""
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    return SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": lr / 10}], lr=lr, momentum=0.9)


def rates(made: SGD, after_step: Callable[[], Any], after_epoch: Callable[[], Any]) -> list[list[float]]:
    """The rates of every step."""
    seen = []
    for _ in range(EPOCHS):
        for _ in range(EPOCH):
            seen.append([group["lr"] for group in made.param_groups])
            made.step()
            after_step()
        after_epoch()
    return seen


def of_config(scheduler: Scheduler, duration: str = f"{EPOCHS}ep") -> list[list[float]]:
    """The rates that a config gives."""
    config = Config(model={}, optimizer={}, loss={}, scheduler=scheduler, train=Train(duration=duration))
    made = optimizer()
    schedule = make_schedule(config, made, EPOCH, EPOCH * EPOCHS)
    return rates(made, schedule.step, schedule.epoch)


CASES: dict[str, tuple[dict[str, Any], Callable[[SGD, int], LRScheduler]]] = {
    "CosineAnnealingLR": ({"T_max": "6ep"}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n * EPOCHS)),
    "StepLR": ({"step_size": "2ep", "gamma": 0.5}, lambda o, n: lr_scheduler.StepLR(o, 2 * n, 0.5)),
    "MultiStepLR": ({"milestones": ["1ep", "4ep"]}, lambda o, n: lr_scheduler.MultiStepLR(o, [n, 4 * n])),
    "ExponentialLR": ({"gamma": 0.9}, lambda o, _: lr_scheduler.ExponentialLR(o, 0.9)),
    "PolynomialLR": ({"total_iters": "6ep"}, lambda o, n: lr_scheduler.PolynomialLR(o, 6 * n)),
    "CosineAnnealingWarmRestarts": ({"T_0": "2ep"}, lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, 2 * n)),
    "LinearLR": ({"total_iters": "3ep"}, lambda o, n: lr_scheduler.LinearLR(o, total_iters=3 * n)),
    "OneCycleLR": (
        {"max_lr": 1.0, "total_steps": "6ep"},
        lambda o, n: lr_scheduler.OneCycleLR(o, 1.0, total_steps=6 * n),
    ),
    "SequentialLR": (
        {
            "schedulers": [
                {"_target_": "torch.optim.lr_scheduler.LinearLR", "total_iters": "2ep"},
                {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.8},
            ],
            "milestones": ["2ep"],
        },
        lambda o, n: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, total_iters=2 * n), lr_scheduler.ExponentialLR(o, 0.8)],
            milestones=[2 * n],
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")  # torch's own SequentialLR calls step(0)
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", CASES)
def test_as_by_hand(name: str, interval: str) -> None:
    """The rates of every step are bitwise those of the scheduler made and stepped by hand; durations are counts."""
    arguments, by_hand = CASES[name]
    made = optimizer()
    scheduler = by_hand(made, EPOCH if interval == "step" else 1)
    nothing = lambda: None  # noqa: E731
    after = (scheduler.step, nothing) if interval == "step" else (nothing, scheduler.step)
    expected = rates(made, *[lambda f=f: _unless_over(f) for f in after])

    assert expected == of_config(
        Scheduler(_target_=f"torch.optim.lr_scheduler.{name}", interval=interval, arguments=arguments)
    )


def _unless_over(step: Callable[[], Any]) -> None:
    try:
        step()
    except ValueError as error:  # OneCycleLR after its last step, which no rate depends on
        assert "Tried to step" in str(error)  # noqa: PT017


def test_warmup_then_the_schedule_to_the_end_of_the_run() -> None:
    """Five steps of warmup rise linearly to the first rate; the cosine over the rest ends at zero with the run."""
    seen = of_config(
        Scheduler(
            _target_="torch.optim.lr_scheduler.CosineAnnealingLR", warmup="1ep", arguments={"T_max": f"{EPOCHS}ep"}
        )
    )
    made = optimizer()
    scheduler = lr_scheduler.CosineAnnealingLR(made, EPOCH * (EPOCHS - 1))
    rest = [[group["lr"] for group in made.param_groups]]
    for _ in range(EPOCH * (EPOCHS - 1) - 1):
        made.step()
        scheduler.step()
        rest.append([group["lr"] for group in made.param_groups])

    assert [pytest.approx([0.1 * (t + 1) / 5, 0.01 * (t + 1) / 5]) for t in range(5)] == seen[:5]
    assert rest == seen[5:]


def test_a_warmup_alone() -> None:
    """Without a scheduler the rates stay where the warmup took them."""
    seen = of_config(Scheduler(warmup="4st"))

    assert [pytest.approx(rate) for rate in (0.025, 0.05, 0.075, 0.1, 0.1)] == [row[0] for row in seen[:5]]


def test_plateau_follows_its_metric() -> None:
    """The rate falls when the metric has not improved for longer than its patience, and on nothing else."""
    made = optimizer()
    schedule = LRSchedule(
        made,
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.1),
        interval="epoch",
        monitor="val/loss",
    )
    seen = []
    for value in (1.0, 0.5, 0.6, 0.7, 0.4):
        schedule.step()
        schedule.epoch()
        schedule.evaluated({"val/loss": value, "val/accuracy": 0.0})
        seen.append(made.param_groups[0]["lr"])

    assert [pytest.approx(rate) for rate in (0.1, 0.1, 0.1, 0.01, 0.01)] == seen


@pytest.mark.parametrize("name", CASES)
def test_state_round_trip(name: str) -> None:
    """A schedule saved and loaded in the middle goes on with the same rates; its state is plain."""
    arguments, _ = CASES[name]
    scheduler = Scheduler(_target_=f"torch.optim.lr_scheduler.{name}", arguments=arguments, warmup="3st")
    config = Config(model={}, optimizer={}, loss={}, scheduler=scheduler, train=Train(duration=f"{EPOCHS}ep"))

    def fresh() -> tuple[SGD, Any]:
        made = optimizer()
        return made, make_schedule(config, made, EPOCH, EPOCH * EPOCHS)

    whole, schedule = fresh()
    first, first_schedule = fresh()
    for _ in range(12):
        for made, its in ((whole, schedule), (first, first_schedule)):
            made.step()
            its.step()
    second, second_schedule = fresh()
    second_schedule.load_state_dict(_through_a_file(first_schedule.state_dict()))
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        assert [g["lr"] for g in whole.param_groups] == [g["lr"] for g in second.param_groups]
        for made, its in ((whole, schedule), (second, second_schedule)):
            made.step()
            its.step()


def _through_a_file(state: Any) -> Any:
    import io

    from runner.train.plain_state import to_plain

    file = io.BytesIO()
    torch.save(to_plain(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
