"""Every feature of training against the same loop written by hand in PyTorch: the same losses, the same weights.

One table: a name, what is overridden, the loop by hand. Bitwise on the CPU in fp32, but for accumulation against a
bigger batch, which adds the same numbers in another order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support import install_project, read_metrics, read_result

PARTS = '''
import torch
from torch import nn
from torch.utils.data import Dataset


class Points(Dataset):
    def __init__(self, count=44, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 6, generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


class Words(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randint(10, (44, 3), generator=generator)
        self.labels = torch.randint(3, (44,), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def ramp(tensor):
    with torch.no_grad():
        return tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))


class Net(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity()
        self.last = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


class Tempered(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * self.scale, target)
'''
CONF = {
    "dataset/points.yaml": """
train: {_target_: parity_parts.Points}
val: {_target_: parity_parts.Points, count: 12, seed: 3}
sample: {shape: [6], dtype: float32}
""",
    "model/net.yaml": "_target_: parity_parts.Net",
    "optimizer/plain.yaml": "{_target_: torch.optim.SGD, lr: 0.1}",
    "optimizer/closure.yaml": "{_target_: torch.optim.LBFGS, lr: 0.5, max_iter: 4, line_search_fn: strong_wolfe}",
    "optimizer/two.yaml": """
_target_: runner.train.optimizer_step.several_optimizers.Optimizers
matrices: {_target_: torch.optim.Muon, match: '.*weight', lr: 0.02}
rest: {_target_: torch.optim.AdamW, match: '.*', lr: 0.01}
""",
    "loss/tempered.yaml": "_target_: parity_parts.Tempered",
    "experiment/parity.yaml": """
# @package _global_
defaults:
  - override /dataset: points
  - override /model: net
  - override /optimizer: plain
name: parity
loader: {batch_size: 8, shuffle: false}
train: {duration: 3ep}
log: {every: 1st, model_table: false, progress: false, tensorboard: false}
device: {type: cpu}
""",
}


@pytest.fixture(autouse=True)
def parts(tmp_path: Path) -> Iterator[Any]:
    """A project with these parts; gives their module."""
    with install_project(tmp_path, "parity_parts", PARTS, CONF) as module:
        yield module


@dataclass
class Trained:
    """What a loop, ours or by hand, ended with."""

    losses: list[float]
    model: dict[str, Tensor]
    more: dict[str, Any] = field(default_factory=dict)


def ours(*overrides: str) -> Trained:
    """The same by a config."""
    from runner.__main__ import main

    before = set(Path("outputs").glob("parity/*"))
    assert main(["experiment=parity", *overrides]) == 0
    (folder,) = set(Path("outputs").glob("parity/*")) - before
    lines = read_metrics(folder)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    result = read_result(folder)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return Trained(losses, saved["model"], {"saved": saved, "lines": lines, "result": result, "folder": folder})


def batches(size: int = 8, epochs: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    """The training split in its own order."""
    import parity_parts

    points = parity_parts.Points()
    for _ in range(epochs):
        for rows in torch.arange(len(points)).split(size):  # copies: on views, which lie anywhere, kernels may differ
            yield points.inputs[rows], points.labels[rows]


def net(*, norm: bool = False) -> nn.Module:
    import parity_parts

    model: nn.Module = parity_parts.Net(norm=norm)
    return model


def validate(model: nn.Module) -> float:
    import parity_parts

    points = parity_parts.Points(12, 3)
    model.eval()
    with torch.no_grad():
        loss = cross_entropy(model(points.inputs), points.labels)
    model.train()
    return loss.item()


# ---- the loops by hand


def plain() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def smoothed() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def clipped_by_norm() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def clipped_by_value() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.02)
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def accumulated() -> Trained:
    """Two batches of 11 a step, which divide the 44 samples."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, pair = [], []
    for x, y in batches(11):
        loss = cross_entropy(model(x), y)
        (loss / 2).backward()
        pair.append(loss.detach())
        if len(pair) == 2:
            optimizer.step()
            optimizer.zero_grad()
            losses.append(((pair[0] * 0.5) + (pair[1] * 0.5)).item())
            pair.clear()
    return Trained(losses, model.state_dict())


def averaged() -> Trained:
    model = net(norm=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.item())
    return Trained(losses, model.state_dict(), {"ema": average.module.state_dict(), "val": validate(average.module)})


def with_parameters_of_the_loss() -> Trained:
    import parity_parts

    model, criterion = net(), parity_parts.Tempered()
    groups = [{"params": model.parameters()}, {"params": criterion.parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict(), {"loss": criterion.state_dict()})


def stopped_early() -> Trained:
    """At the second epoch in a row whose validation loss is not below the best."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    losses, best, stale = [], float("inf"), 0
    for _ in range(30):
        for x, y in batches(epochs=1):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        value = validate(model)
        stale = 0 if value < best else stale + 1
        best = min(best, value)
        if stale == 2:
            break
    return Trained(losses, model.state_dict())


def in_bf16() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def in_fp16() -> Trained:
    """With clipping, for which the gradients are unscaled first."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return Trained(losses, model.state_dict(), {"scaler": scaler.state_dict()})


def accumulated_in_fp16() -> Trained:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses, pair = [], []
    for x, y in batches(11):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss / 2).backward()
        pair.append(loss.detach())
        if len(pair) == 2:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(((pair[0] * 0.5) + (pair[1] * 0.5)).item())
            pair.clear()
    return Trained(losses, model.state_dict(), {"scaler": scaler.state_dict()})


def by_closure() -> Trained:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    losses = []
    for x, y in batches():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return Trained(losses, model.state_dict())


def by_two_optimizers() -> Trained:
    """Matrices by Muon, the rest by AdamW."""
    model = net()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]
    losses = []
    for x, y in batches():
        loss = cross_entropy(model(x), y)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


def compiled() -> Trained:
    model = net()
    model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.state_dict())


TABLE: dict[str, tuple[list[str], Callable[[], Trained]]] = {
    "plain": ([], plain),
    "label smoothing": (["+loss.label_smoothing=0.1"], smoothed),
    "clip_norm": (["train.clip_norm=0.3"], clipped_by_norm),
    "clip_value": (["train.clip_value=0.02"], clipped_by_value),
    "accumulate": (["train.accumulate=2", "loader.batch_size=11"], accumulated),
    "ema": (["train.ema=0.9", "+model.norm=true"], averaged),
    "parameters of the loss": (
        ["loss=tempered", "+param_groups.own={match: 'loss[.]scale', lr: 0.5}"],
        with_parameters_of_the_loss,
    ),
    "early stopping": (["train.early_stop=2", "train.duration=30ep", "optimizer.lr=2.0"], stopped_early),
    "evaluate at the start": (["train.evaluate_at_start=true"], plain),
    "bf16": (["device.precision=bf16"], in_bf16),
    "fp16": (["device.precision=fp16", "train.clip_norm=0.3"], in_fp16),
    "fp16 and accumulate": (
        ["device.precision=fp16", "train.accumulate=2", "loader.batch_size=11"],
        accumulated_in_fp16,
    ),
    "LBFGS": (["optimizer=closure"], by_closure),
    "two optimizers": (["optimizer=two"], by_two_optimizers),
    "compile": (["device.compile=true"], compiled),
}


def differing(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that only one has, or that differ in any bit."""
    both = expected.keys() & actual.keys()
    return [*(expected.keys() ^ actual.keys()), *(key for key in both if not torch.equal(expected[key], actual[key]))]


@pytest.mark.parametrize("name", TABLE)
def test_the_losses_and_weights_are_those_of_the_loop_by_hand(name: str) -> None:
    overrides, by_hand = TABLE[name]
    expected, actual = by_hand(), ours(*overrides)

    assert expected.losses == actual.losses
    assert differing(expected.model, actual.model) == []
    if "ema" in expected.more:
        ema = actual.more["saved"]["ema"]
        means = {key: value for key, value in expected.more["ema"].items() if value.is_floating_point()}
        means["norm.num_batches_tracked"] = actual.model["norm.num_batches_tracked"]  # no average
        assert differing(means, ema) == []
        assert actual.more["result"]["metrics"]["val/loss"] == pytest.approx(expected.more["val"], rel=1e-6)
    if "loss" in expected.more:
        assert expected.more["loss"] == actual.more["saved"]["step"]["loss"]
    if "scaler" in expected.more:
        skipped = actual.more["result"]["steps_skipped"]
        assert expected.more["scaler"] | {"skipped": skipped} == actual.more["saved"]["scaler"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulation_is_a_bigger_batch(reduction: str) -> None:
    """Of 7 samples and 3 batches a step: 21, 21, and 2 that come alone; within 1e-6 relative."""
    lr = {"mean": 0.1, "sum": 0.01}[reduction]
    settings = [f"+loss.reduction={reduction}", f"optimizer.lr={lr}"]
    bigger = ours("loader.batch_size=21", *settings)
    actual = ours("loader.batch_size=7", "train.accumulate=3", *settings)

    assert bigger.losses == pytest.approx(actual.losses, rel=1e-6)
    for name, value in bigger.model.items():
        torch.testing.assert_close(actual.model[name], value, rtol=1e-6, atol=1e-7)


# ---- every optimizer of torch

SPECIAL = {  # what needs something of its own
    "LBFGS": "by a closure, above",
    "SparseAdam": "below, with sparse gradients",
    "Muon": "of matrices only, above with another for the rest",
}
OPTIMIZERS = sorted(
    name
    for name in torch.optim.__all__
    if isinstance(getattr(torch.optim, name, None), type)
    and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
    and name != "Optimizer"
)


def test_every_optimizer_of_torch_is_in_the_table() -> None:
    assert {"Adam", "AdamW", "SGD", "Adafactor", "Rprop", "ASGD"} <= set(OPTIMIZERS)
    assert SPECIAL.keys() < set(OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in SPECIAL])
def test_every_optimizer_gives_the_bits_of_the_loop_by_hand(name: str, tmp_path: Path) -> None:
    (tmp_path / "conf" / "optimizer" / "one.yaml").write_text(f"{{_target_: torch.optim.{name}, lr: 0.01}}")
    model = net()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    actual = ours("optimizer=one")

    assert losses == actual.losses
    assert all(torch.equal(value, actual.model[key]) for key, value in model.state_dict().items())


def test_sparse_gradients_by_sparse_adam(tmp_path: Path) -> None:
    """An embedding with `sparse=True`, its rows summed."""
    (tmp_path / "conf" / "dataset" / "words.yaml").write_text(
        "{train: {_target_: parity_parts.Words}, sample: {shape: [3], dtype: int64}}"
    )
    (tmp_path / "conf" / "model" / "bag.yaml").write_text(
        "{_target_: torch.nn.EmbeddingBag, num_embeddings: 10, embedding_dim: 3, mode: sum, sparse: true}"
    )
    (tmp_path / "conf" / "optimizer" / "sparse.yaml").write_text("{_target_: torch.optim.SparseAdam, lr: 0.01}")
    fixed = "init.rules={all: {module: torch.nn.EmbeddingBag, weight: {_target_: parity_parts.ramp}}}"
    actual = ours("dataset=words", "model=bag", "optimizer=sparse", fixed)
    import parity_parts

    model = nn.EmbeddingBag(10, 3, mode="sum", sparse=True)
    parity_parts.ramp(model.weight)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    losses = []
    words = parity_parts.Words()
    for _ in range(3):
        for rows in torch.arange(len(words)).split(8):
            optimizer.zero_grad()
            loss = cross_entropy(model(words.inputs[rows]), words.labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    assert losses == actual.losses
    assert torch.equal(model.weight, actual.model["weight"])


def test_a_gan_is_that_of_two_optimizers_by_hand() -> None:
    """The shipped step on the shipped model, as one writes it without a runner; and what a checkpoint holds of both."""
    from runner.core import rng

    actual = ours(
        "dataset=digits",
        "model=gan",
        "step=adversarial",
        "optimizer=gan",
        "loss=bce_with_logits",
        "metrics=none",
        "train.objective=val/loss",
        "train.mode=min",
        "dataset.limit=64",
        "train.duration=2ep",
        "loader.batch_size=32",
    )
    from datasets.digits import Digits
    from models.gan import GAN
    from runner.data.batches import choose_indices
    from runner.data.splitting import split_indices
    from runner.data.whole_dataset import read_labels

    digits = Digits()
    parts = split_indices(len(digits), {"val": 0.2, "test": 0.2}, 0, read_labels(digits, 1))
    rows = choose_indices(digits, parts["train"], "train", 64)
    images = torch.stack([digits[int(row)][0] for row in rows])
    with rng.stream(rng.derive_key(0, "model")):
        model = GAN()
    g_optimizer = torch.optim.Adam(model.generator.parameters(), lr=0.001, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=0.0005, betas=(0.5, 0.999))
    bce = nn.BCEWithLogitsLoss()
    losses = []
    rng.seed_all(rng.derive_key(0, "train"))
    for _ in range(2):
        for start in (0, 32):
            real = images[torch.arange(start, start + 32)]
            fake = model.generator(torch.randn(32, 16))
            d_optimizer.zero_grad()
            d_real, d_fake = bce(model(real), torch.ones(32)), bce(model(fake.detach()), torch.zeros(32))
            d_loss = (d_real + d_fake) / 2
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = bce(model(fake), torch.ones(32))
            g_loss.backward()
            g_optimizer.step()
            losses.append((d_loss + g_loss).item())
    saved = actual.more["saved"]["optimizer"]

    assert losses == actual.losses
    assert all(torch.equal(value, actual.model[key]) for key, value in model.state_dict().items())
    assert [group["name"] for group in saved["param_groups"]] == ["generator", "discriminator"]
    assert len(saved["state"]) == len(list(model.parameters()))


def test_a_bare_function_is_minimised() -> None:
    """2x² - 3x + 1 by gradient descent, without data."""
    actual = ours(
        "dataset=none",
        "model=parabola",
        "step=minimise",
        "loss=none",
        "metrics=none",
        "train.duration=20st",
        "~loader.batch_size",
        "~loader.shuffle",
    )
    x = torch.zeros((), requires_grad=True)
    losses = []
    for _ in range(20):
        value = 2 * x**2 - 3 * x + 1
        value.backward()
        with torch.no_grad():
            x -= 0.1 * x.grad
        x.grad = None
        losses.append(value.item())

    assert losses == actual.losses
    assert torch.equal(x.detach(), actual.model["x"])


def test_more_sets_to_validate_on_have_metrics_of_their_own_names(parts: Any) -> None:
    """As the objective, too; and they are no part of training."""
    more = "+dataset.evaluate.{name}={{_target_: parity_parts.Points, count: 12, seed: {seed}}}"
    settings = [more.format(name="again", seed=3), more.format(name="other", seed=4)]
    actual = ours(*settings, "train.objective=other/loss", "train.mode=min")
    metrics, best = actual.more["result"]["metrics"], actual.more["result"]["best"]

    assert {"val/loss", "again/loss", "other/loss", "other/accuracy"} <= metrics.keys()
    assert metrics["val/loss"] == metrics["again/loss"] != metrics["other/loss"]
    assert actual.more["result"]["objective"] == metrics["other/loss"]
    assert best["metrics"]["other/loss"] == min(line.get("other/loss", 9) for line in actual.more["lines"])
    assert all(torch.equal(value, actual.model[key]) for key, value in plain().model.items())


def test_flags_of_precision_are_set_for_the_run_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFloat-32 is off in fp32, also for cuDNN, where torch has it on; afterwards all is as it was."""
    from runner.core import device as devices
    from runner.train import loop

    seen = []
    begin = loop.begin

    def look(run: Any) -> int:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return begin(run)

    monkeypatch.setattr(loop, "begin", look)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    ours("train.duration=1st")
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32
    with devices.keep_precision_flags():
        devices.set_up(torch.device("cpu"), 1, "warn", "tf32")
        assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
