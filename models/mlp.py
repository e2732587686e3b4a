"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers of the given `sizes` (inputs first, outputs last) with ReLU between them.

    Takes float tensors [N, ...] whose further dimensions hold sizes[0] numbers, gives [N, sizes[-1]].
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        output: Tensor = self.layers(x)
        return output
