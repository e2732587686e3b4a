"""The default experiment's training as other tools do it: the same digits, the same CNN, the same batch size.

usage: python peers.py loop|tensorloop|lightning [--epochs N] [--batch B] [--threads T]
Prints one JSON line with `steps_per_s`, over the epochs after the first.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 1797


class Net(nn.Module):
    """Two convolutions of 16 and 32 channels, each pooled, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


class Digits(TensorDataset):
    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        super().__init__(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loop(epochs: int, batch: int, tick: Callable[[], None]) -> None:
    """The loop of the PyTorch tutorials."""
    model = Net()
    optimizer = sgd(model)
    loader = DataLoader(Digits(), batch_size=batch, shuffle=True)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        tick()


def tensorloop(epochs: int, batch: int, tick: Callable[[], None]) -> None:
    """Whole tensors, indexed: as little Python as a loop by hand can do with."""
    images, labels = Digits().tensors
    model = Net()
    optimizer = sgd(model)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[index]), labels[index])
            loss.backward()
            optimizer.step()
        tick()


def lightning(epochs: int, batch: int, tick: Callable[[], None]) -> None:
    """Lightning with everything off that can be off."""
    import logging
    import warnings

    import lightning as pl

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

        def on_train_epoch_end(self) -> None:
            tick()

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", **off)
    trainer.fit(Module(), DataLoader(Digits(), batch_size=batch, shuffle=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["loop", "tensorloop", "lightning"])
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    ends: list[float] = []
    train = {"loop": loop, "tensorloop": tensorloop, "lightning": lightning}[args.name]
    train(args.epochs, args.batch, lambda: ends.append(time.perf_counter()))
    steps = (len(ends) - 1) * -(-SAMPLES // args.batch)
    print(json.dumps({"name": args.name, "steps_per_s": round(steps / (ends[-1] - ends[0]), 1)}))
