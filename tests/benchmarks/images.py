"""Images per second of CIFAR-shaped batches of 128: crop with padding 4, flip, normalise; one process, one thread.

usage: python images.py ours|pil|gather [--samples N] [--epochs N]
Prints one JSON line with `images_per_s`, the best epoch after the first. `pil` is torchvision's transforms in a
DataLoader, `gather` a batched crop by hand.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

BATCH = 128
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
TRANSFORMS = {
    "crop": v2.RandomCrop(32, padding=4),
    "flip": v2.RandomHorizontalFlip(),
    "image": v2.ToImage(),
    "scale": v2.ToDtype(torch.float32, scale=True),
    "normalize": v2.Normalize(MEAN, STD),
}


def cifar(samples: int) -> CIFAR10:
    """torchvision's dataset over random images, without its files."""
    dataset: CIFAR10 = CIFAR10.__new__(CIFAR10)
    generator = np.random.default_rng(0)
    dataset.data = generator.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    dataset.targets = generator.integers(0, 10, samples).tolist()
    dataset.transform = dataset.target_transform = dataset.transforms = None
    dataset.root = Path()
    return dataset


def ours(dataset: CIFAR10) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """The runner's split, as a config builds it."""
    from runner.data import batches as data_batches
    from runner.data import interfaces
    from runner.data.samples import Pipeline, Placement, Stream

    settings = interfaces.LoaderSettings(batch_size=BATCH, shuffle=True)
    place = Placement(torch.device("cpu"))
    return data_batches.make_split(dataset, None, Pipeline(TRANSFORMS), Stream(0, "train"), place, settings).batches


def pil(dataset: CIFAR10) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """A DataLoader with the same transforms on PIL images."""
    dataset.transform = v2.Compose(list(TRANSFORMS.values()))
    dataset.transforms = None
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True)
    return lambda _: iter(loader)


def gather(dataset: CIFAR10) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """One flat gather a batch of the padded bytes, by hand."""
    images = torch.nn.functional.pad(torch.from_numpy(dataset.data).permute(0, 3, 1, 2), [4] * 4).contiguous()
    labels = torch.tensor(dataset.targets)
    scale = 1 / (255 * torch.tensor(STD).view(1, 3, 1, 1))
    shift = -torch.tensor(MEAN).view(1, 3, 1, 1) / torch.tensor(STD).view(1, 3, 1, 1)
    places = torch.arange(32)

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(labels)).split(BATCH):
            drawn = torch.rand(len(rows), 3)
            offsets, flipped = (drawn[:, :2] * 9).long(), drawn[:, 2:] < 0.5
            down = offsets[:, :1] + places
            across = offsets[:, 1:] + torch.where(flipped, 31 - places, places)
            flat = (down[:, :, None] * 40 + across[:, None, :]).view(len(rows), 1, -1).expand(-1, 3, -1)
            picked = images.index_select(0, rows).flatten(2).gather(2, flat).view(-1, 3, 32, 32)
            yield picked.float().mul_(scale).add_(shift), labels[rows]

    return batches


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["ours", "pil", "gather"])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches = {"ours": ours, "pil": pil, "gather": gather}[args.name](cifar(args.samples))
    speeds = []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in batches(epoch))
        speeds.append(count / (time.perf_counter() - start))
    print(json.dumps({"name": args.name, "images_per_s": round(max(speeds[1:]))}))
