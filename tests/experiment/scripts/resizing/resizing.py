import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset


class Rings(TensorDataset):
    def __init__(self, count=40, seed=0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        grid = torch.linspace(-1, 1, 16)
        rings = ((grid[None] ** 2 + grid[:, None] ** 2).sqrt()[None] - 0.3 - 0.4 * labels[:, None, None]).abs() < 0.1
        super().__init__(rings[:, None] + 0.3 * torch.randn(count, 1, 16, 16, generator=generator), labels)


class Grow:
    """Images that grow from `smallest` to `largest` until a step."""

    draws = 0

    def __init__(self, smallest, largest, progress, until: int):
        self.smallest, self.largest, self.progress, self.until = smallest, largest, progress, until

    def batched(self, images, _):
        share = min(1.0, self.progress.step / self.until)
        side = 4 * round((self.smallest + share * (self.largest - self.smallest)) / 4)
        return interpolate(images, (side, side), mode="bilinear", antialias=True)


class Net(nn.Sequential):
    def __init__(self):
        parts = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)
        super().__init__(*parts)
