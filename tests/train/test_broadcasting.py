"""An output beside a target that torch would spread is refused, with both shapes; nothing else is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.experiment.preflight.step import check_loss_broadcast
from runner.train.metrics import Accuracy, MeanSquaredError


def own(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).pow(2).mean()


def in_halves(output: Tensor, target: Tensor) -> Tensor:
    return (output.double() * target.double()).mean()


class Mixed(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.smooth_l1_loss(output.sigmoid(), target, reduction="sum") + 0.5 * output.square().mean()


def typed(output: Tensor, target: Tensor) -> Tensor:
    return (output - target.type_as(output)).abs().mean()


def together(output: Tensor, target: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(output, target)
    return (a - b).square().mean()


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    """Of three tensors; the meta device does not compute it."""
    return functional.gaussian_nll_loss(output, target, torch.ones_like(output))


def distance(output: Tensor, target: Tensor) -> Tensor:
    return functional.pairwise_distance(output, target).mean()


LOSSES = [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.PoissonNLLLoss(), Mixed(), own, in_halves]
LOSSES += [nn.KLDivLoss(reduction="batchmean"), typed, together, torch.dist, gaussian, distance]
LOSSES += [functional.mse_loss, functional.l1_loss, functional.huber_loss, nn.MSELoss(reduction="sum")]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: getattr(loss, "__name__", type(loss).__name__))
@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6, 6, 1), (6, 6))], ids=str)
def test_losses_that_spread_are_refused(loss: Any, shapes: tuple[Any, Any], device: str) -> None:
    """Whether torch warns of it or not; both shapes, the key and a remedy are named."""
    output, target = (torch.ones(shape, device=device) for shape in shapes)
    mistake = check_loss_broadcast(loss, output, target)

    assert mistake is not None
    assert mistake.key == "loss"
    assert str(list(shapes[0])) in mistake.rule
    assert str(list(shapes[1])) in mistake.rule
    assert "squeeze(-1)" in mistake.remedy


def quantiles(output: Tensor, target: Tensor) -> Tensor:
    error = target - output
    return torch.maximum(0.5 * error, -0.5 * error).mean()


def pairs(output: Tensor, target: Tensor) -> Tensor:
    """Which of two should be ranked above: each with each, on purpose."""
    return ((target[:, None] > target) * functional.softplus(output.T - output)).mean()


def contrast(output: Tensor, target: Tensor) -> Tensor:
    return ((output @ output.T).log_softmax(1) * (target[:, None] == target)).mean()


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        (nn.MSELoss(), (6, 1), (6, 1)),
        (nn.MSELoss(), (6,), (6,)),
        (nn.MSELoss(), (1, 1), (1,)),
        (nn.MSELoss(), (), (1,)),
        (nn.BCEWithLogitsLoss(), (6,), (6,)),
        (quantiles, (6, 3), (6, 1)),
        (pairs, (6, 1), (6,)),
        (contrast, (6, 4), (6,)),
        (lambda output, target: torch.einsum("ij,k->ik", output, target).mean(), (6, 1), (6,)),
        (lambda output, target: own(output.squeeze(-1), target), (6, 1), (6,)),
        (lambda output, target: own(output, target[:, None]), (6, 1), (6,)),
        (lambda output, target: (output[:, 0] - target).mean(), (6, 1), (6,)),
    ],
)
def test_losses_that_mean_it_are_taken(loss: Any, output: tuple[int, ...], target: tuple[int, ...]) -> None:
    """One shape, one number, or pairs that a loss makes itself."""
    assert check_loss_broadcast(loss, torch.rand(output), torch.rand(target)) is None


def test_one_of_several_outputs_that_spreads_is_refused() -> None:
    """The shapes are those of the two that meet."""
    outputs = {"classes": torch.rand(6, 3), "size": torch.rand(6, 1)}
    mistake = check_loss_broadcast(lambda made, target: (made["size"] - target).abs().mean(), outputs, torch.rand(6))

    assert mistake is not None
    assert "the output has the shape [6, 1], the target [6]" in mistake.rule


def test_cross_entropy_of_classes_is_taken() -> None:
    assert check_loss_broadcast(nn.CrossEntropyLoss(), torch.rand(6, 3), torch.arange(6) % 3) is None


def test_metrics_that_spread_are_refused() -> None:
    """Ours says both shapes itself."""
    with pytest.raises(ValueError, match=r"must have one shape, and have \[6, 1\] and \[6\]"):
        MeanSquaredError().update(torch.ones(6, 1), torch.ones(6))
    accuracy = Accuracy()
    accuracy.update(torch.ones(6, 3), torch.ones(6, 1))
    with pytest.raises(ValueError, match=r"output \[6, 3\] must be its classes, not \[6, 1\]"):
        accuracy.compute()
    metric = MeanSquaredError()
    metric.update(torch.tensor(3.0), torch.tensor([1.0]))  # the last batch of one, squeezed

    assert metric.compute() == 4.0


CODE = """
import torch
class Rows(torch.utils.data.Dataset):
    def __init__(self, wide=False):
        self.wide = wide
    def __len__(self):
        return 9
    def __getitem__(self, index):
        return torch.full((2,), index / 9), torch.full((1,) if self.wide else (), index / 9)
class Net(torch.nn.Module):
    def __init__(self, squeeze=False):
        super().__init__()
        self.a, self.squeeze = torch.nn.Linear(2, 1), squeeze
    def forward(self, x):
        return self.a(x).squeeze() if self.squeeze else self.a(x)
class Distance:
    higher_is_better = False
    def __init__(self): self.reset()
    def reset(self): self.sum = self.count = 0
    def update(self, output, target):
        self.sum += float((output.float() - target).abs().sum()); self.count += len(target)
    def compute(self): return self.sum / max(1, self.count)
class Late(Distance):
    def reset(self): self.seen = []
    def update(self, output, target): self.seen.append((output, target))
    def compute(self):
        outputs, targets = zip(*self.seen)
        return float((torch.cat(outputs).float() - torch.cat(targets)).abs().mean())
def plain(output, target):
    return (output - target).abs().mean()
def flat(output, target):
    return (output.flatten() - target).abs().mean()
def direct(batch, model, loss):
    output = model(batch[0])
    return {"loss": loss(output, batch[1][:, None]) + (output - batch[1]).abs().mean(), "size": len(batch[1])}
def step(batch, model, loss):
    output = model(batch[0])
    return {"loss": loss(output, batch[1]), "output": output.flatten(), "target": batch[1], "size": len(batch[1])}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any]) -> Callable[..., Any]:
    """`project("check", stated, …)` with a dataset whose targets are [N], whatever it states."""
    (tmp_path / "rows.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "model").mkdir()
    (tmp_path / "conf" / "metrics").mkdir()
    (tmp_path / "conf" / "model" / "net.yaml").write_text("_target_: rows.Net\n")
    (tmp_path / "conf" / "metrics" / "away.yaml").write_text("away: {_target_: rows.Distance}\n")
    for name, stated in {
        "stated": "sample: [{shape: [2], dtype: float32}, {shape: [], dtype: float32}]",
        "half": "sample: {shape: [2], dtype: float32}",
        "silent": "sample: null",
    }.items():
        text = f"train: {{_target_: rows.Rows}}\nval: {{_target_: rows.Rows}}\n{stated}\n"
        (tmp_path / "conf" / "dataset" / f"{name}.yaml").write_text(text)
    quiet = ("experiment=null", "model=net", "log=quiet", "device=cpu", "train.duration=1ep", "loader.batch_size=4")

    def run(dataset: str, *rest: str, verb: tuple[str, ...] = ()) -> Any:
        return runner(*verb, f"dataset={dataset}", *quiet, *rest)

    return run


@pytest.mark.parametrize("dataset", ["half", "silent"])
@pytest.mark.parametrize(
    "told",
    [
        ("loss=mse", "metrics=none"),
        ("loss=mse", "loss._target_=rows.plain", "metrics=none"),
        ("loss=mse", "metrics=none", "step._target_=rows.step", "~step.input", "~step.target"),
        ("loss=mse", "metrics=none", "step._target_=rows.direct", "~step.input", "~step.target"),
    ],
    ids=["mse", "own", "step", "own step"],
)
def test_the_first_real_batch_shows_it(project: Callable[..., Any], dataset: str, told: tuple[str, ...]) -> None:
    """Where the target is not stated, the run ends before its first step, with exit status 1 and both shapes."""
    ran = project(dataset, *told)
    (file,) = Path("outputs").glob("run/*/result.json")
    result = json.loads(file.read_text())

    assert (1, 0) == (ran.status, result["steps"])
    assert re.match(r"(RunError: )?(loss|step) |dataset\.sample states another", result["error"])
    assert re.search(r"\[4, 1\].*\[4\]|\[4\].*\[4, 1\]", result["error"])
    assert re.search(r"squeeze\(-1\)|state the real one", result["error"])


def test_check_says_it_where_the_sample_is_stated(project: Callable[..., Any]) -> None:
    """Loss and metric each: nothing is made, exit status 2."""
    ran = project("stated", "loss=mse", "metrics=none", verb=("check",))
    assert (2, True) == (ran.status, "shape [2, 1], the target [2]" in ran.out + ran.err)
    ran = project("stated", "loss=mse", "loss._target_=rows.plain", "metrics=none")
    assert (2, True) == (ran.status, "loss compares every output with every target" in ran.out + ran.err)
    for name in ("Distance", "Late"):
        given = ("loss._target_=rows.flat", "metrics=away", f"metrics.away._target_=rows.{name}")
        ran = project("stated", "loss=mse", *given, verb=("check",))
        assert (2, True) == (ran.status, "metrics.away compares every output with every target" in ran.out + ran.err)
    own = ("loss=mse", "metrics=none", "step._target_=rows.direct", "~step.input", "~step.target")
    ran = project("stated", *own, verb=("check",))
    assert (2, True) == (ran.status, "step compares every output with every target" in ran.out + ran.err)


def test_a_last_batch_of_one_that_is_squeezed_is_taken(project: Callable[..., Any]) -> None:
    """`x.squeeze()` gives [] beside [1]: torch warns, nothing is spread."""
    ran = project("silent", "loss=mse", "metrics=away", "model.squeeze=true")

    assert (0, "") == (ran.status, ran.err)
