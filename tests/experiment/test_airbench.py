"""`experiment=airbench94` beside the same recipe written by hand, on files in CIFAR's binary format."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from runner.core import rng
from tests.support import read_metrics, read_result

SMALL = (
    "experiment=airbench94",
    "device=cpu",
    "model.widths=[4,8,8]",
    "loader.batch_size=8",
    "log=quiet",
    "log.every=1st",
)
RATE, DECAY, STEPS, EACH = 11.5 / 1024 / (1 + 1 / 0.15), 0.0153 / (1 + 1 / 0.15), 99, 10


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of 16 random images each, where the dataset looks for them; so nothing is downloaded."""
    write_cifar(tmp_path / "data" / "cifar-10-batches-bin", 16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_cifar(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{name}.bin")


def read_images(folder: Path, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and their classes."""
    records = np.concatenate(
        [np.fromfile(folder / f"data/cifar-10-batches-bin/{name}.bin", np.uint8).reshape(-1, 3073) for name in names]
    )
    pixels = functional.to_dtype(torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)), torch.float32, scale=True)
    images = functional.normalize(pixels, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    return images, torch.from_numpy(records[:, 0]).long()


def make_net(seed_images: torch.Tensor, dtype: torch.dtype) -> nn.Module:
    """The network, built and initialised as the paper has it."""
    from models.airbench import Airbench

    with rng.stream(rng.derive_key(0, "model")):
        net = Airbench((4, 8, 8))
    patches = seed_images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2)
    with torch.no_grad():
        net.whiten.weight.copy_(torch.cat([filters, -filters]))
        net.whiten.bias.zero_()
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and module is not net.whiten:
                nn.init.dirac_(module.weight[: module.in_channels])
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name != "whiten.weight" and not (".norm" in name and name.endswith("weight"))
    net.to(dtype)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return net.to(memory_format=torch.channels_last)


def train_by_hand(net: nn.Module, batches) -> list[float]:
    """The loop of the paper; the losses of its steps."""
    norms = [p for name, p in net.named_parameters() if "norm" in name and p.requires_grad]
    others = [p for name, p in net.named_parameters() if "norm" not in name and p.requires_grad]
    groups = [{"params": norms, "lr": 64 * RATE, "weight_decay": 0.021286957}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.85, nesterov=True, weight_decay=1.3623652)
    up, down = round(2.277 * EACH), round(7.623 * EACH)
    linear = torch.optim.lr_scheduler.LinearLR
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [linear(optimizer, 0.2, 1.0, up), linear(optimizer, 1.0, 0.07, down)], [up]
    )
    slow = {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}
    losses = []
    for step in range(1, STEPS + 1):
        net.whiten.bias.requires_grad = step <= 3 * EACH
        images, classes = next(batches)
        logits = net(images.to(net.head.weight.dtype))
        loss = F.cross_entropy(logits, classes, label_smoothing=0.2, reduction="sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item() / len(classes))
        if step % 5 == 0:
            decay = 0.95**5 * (step / STEPS) ** 3
            for name, value in net.state_dict().items():
                if name in slow:
                    slow[name].lerp_(value, 1 - decay)
                    value.copy_(slow[name])
    assert DECAY / RATE == pytest.approx(1.3623652)
    net.load_state_dict(slow, strict=False)
    return losses


def iterate_batches(images: torch.Tensor, classes: torch.Tensor):
    """Batches of each epoch: mirrored alternately, and cropped from a reflected border."""
    from runner.data.samples import EpochOrder, Stream

    stream, count = Stream(0, "train"), len(images)
    indices = np.arange(count)
    mirrored = rng.draw_uniforms(stream.key(0, "flip"), indices, 1)[:, 0] < 0.5
    for epoch in range(10):
        turned = (mirrored if epoch % 2 == 0 else ~mirrored).view(-1, 1, 1, 1)
        padded = F.pad(torch.where(turned, images.flip(-1), images), [2] * 4, mode="reflect")
        offsets = (rng.draw_uniforms(stream.key(epoch, "crop"), indices, 2) * 5).long().tolist()
        moved = torch.stack([one[:, y : y + 32, x : x + 32] for one, (y, x) in zip(padded, offsets, strict=True)])
        for rows in torch.from_numpy(EpochOrder(count, stream, shuffle=True)(epoch)).split(8):
            yield moved[rows].contiguous(memory_format=torch.channels_last), classes[rows]


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("fp32", torch.float32),
        pytest.param("bf16", torch.bfloat16, marks=pytest.mark.exhaustive),
        pytest.param("fp16", torch.float16, marks=pytest.mark.exhaustive),
    ],
)
def test_its_weights_are_those_of_the_loop_by_hand(weights, dtype, images, runner):
    """After 99 steps, to the bit: the slow weights, the losses, and the accuracy over six views."""
    ran = runner(*SMALL, f"device.weights={weights}")
    saved = torch.load(ran.folder / "checkpoints" / "last.pt", weights_only=True)
    data, classes = read_images(images, *(f"data_batch_{number}" for number in range(1, 6)))
    net = make_net(data, dtype)
    torch.set_num_threads(1)
    losses = train_by_hand(net, iterate_batches(data, classes))

    assert ran.result["steps"] == STEPS
    assert losses == [line["train/loss"] for line in read_metrics(ran.folder)[:STEPS]]
    assert {name: value.dtype for name, value in net.state_dict().items()} == {
        name: value.dtype for name, value in saved["ema"].items()
    }
    assert all(torch.equal(p, saved["ema"][name]) for name, p in [*net.named_parameters(), *list_statistics(net)])
    assert read_result(ran.folder)["metrics"]["val/accuracy"] == evaluate_by_hand(net, images)


def list_statistics(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, buffer) for name, buffer in net.named_buffers() if buffer.is_floating_point()]


def evaluate_by_hand(net: nn.Module, folder: Path) -> float:
    """Half of the weight for the images as they are, a quarter for each of two shifts; each mirrored too."""
    data, classes = read_images(folder, "test_batch")
    data = data.to(net.head.weight.dtype).contiguous(memory_format=torch.channels_last)
    padded = F.pad(data, [1] * 4, mode="reflect")
    net.eval()
    with torch.no_grad():
        views = ((0.25, data), (0.125, padded[..., :32, :32]), (0.125, padded[..., 2:, 2:]))
        logits = sum(weight * net(seen) for weight, view in views for seen in (view, view.flip(-1)))
    return float((logits.argmax(1) == classes).float().mean())


def test_each_second_epoch_has_the_mirror_image():
    from datasets.transforms import AlternatingFlip
    from runner.data.samples import Pipeline, draw_alternating

    image, flip = torch.arange(6.0).view(1, 2, 3), AlternatingFlip()
    pipeline = Pipeline({"flip": flip})

    def show(epoch: int, index: int) -> torch.Tensor:
        key = lambda *of: rng.derive_key(0, "train", *of)  # noqa: E731
        return pipeline.apply(
            (copy.copy(image), 0),
            uniforms=lambda name, draws: draw_alternating(key, name, epoch, np.array([index]), draws),
        )[0]

    shown = torch.stack([torch.stack([show(epoch, index) for epoch in range(4)]) for index in range(30)])

    assert torch.equal(shown[:, :2], shown[:, 2:])
    assert torch.equal(shown[:, 0], shown[:, 1].flip(-1))
    assert 5 < int((shown[:, 0] == image).flatten(1).all(1).sum()) < 25
