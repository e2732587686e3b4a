"""The network of airbench94 (Jordan 2024, arXiv:2404.00498), and how it is initialised."""

from typing import Any

import torch
from torch import Tensor, nn


class WhiteningConv(nn.Conv2d):
    """Convolution whose filters decorrelate the patches of an image: each in one direction, and in the opposite one."""

    def __init__(self, kernel_size: int = 2) -> None:
        super().__init__(3, 2 * 3 * kernel_size**2, kernel_size)


class ConvGroup(nn.Module):
    """Two convolutions with batch norms whose scale is 1, and a pooling between them."""

    def __init__(self, inputs: int, outputs: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=momentum)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        made: Tensor = self.activation(self.norm2(self.conv2(x)))
        return made


class Airbench(nn.Module):
    """Images [N, 3, 32, 32] to logits [N, 10].

    Args:
        widths: channels of the three groups.
        momentum: of the batch norms' statistics, as PyTorch counts it: the share of the newest batch.
        scale: of the logits.
    """

    def __init__(
        self, widths: tuple[int, int, int] = (64, 256, 256), momentum: float = 0.4, scale: float = 1 / 9
    ) -> None:
        super().__init__()
        self.whiten = WhiteningConv()
        channels = (self.whiten.out_channels, *widths)
        groups = [ConvGroup(channels[at], channels[at + 1], momentum) for at in range(3)]
        self.groups = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(widths[-1], 10, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.groups(self.whiten(images))) * self.scale
        return logits


def whiten(module: nn.Module, batch: Any, eps: float = 5e-4) -> None:
    """Set a whitening convolution's filters from the images of a batch: eigenvectors of its patches' covariance.

    Each is divided by the root of its eigenvalue, which `eps` keeps from 0.
    """
    if not isinstance(module, WhiteningConv):
        return
    assert module.bias is not None
    module.bias.zero_()
    height, width = module.kernel_size
    patches = batch[0].float().unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    flat = patches.reshape(-1, module.in_channels * height * width)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    filters = (vectors / (values + eps).sqrt()).T.flip(0).view(-1, module.in_channels, height, width)
    module.weight.copy_(torch.cat([filters, -filters]))


def dirac_first(tensor: Tensor) -> Tensor:
    """Let the first filters pass on one input channel each; the others stay as they are."""
    nn.init.dirac_(tensor[: tensor.size(1)])
    return tensor


def standardize(tensor: Tensor) -> Tensor:
    """Scale a tensor to a standard deviation of 1."""
    return tensor.div_(tensor.std())
