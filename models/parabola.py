"""A bare function, to be minimised."""

import torch
from torch import Tensor, nn


class Parabola(nn.Module):
    """`a * x**2 + b * x + c`, whose one parameter is x; called without arguments, it gives its value, a scalar.

    With a > 0 the least value is c - b**2 / (4 * a), at x = -b / (2 * a).
    """

    def __init__(self, a: float = 1.0, b: float = 0.0, c: float = 0.0, x: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.c = a, b, c
        self.x = nn.Parameter(torch.tensor(float(x)))

    def forward(self) -> Tensor:
        return self.a * self.x**2 + self.b * self.x + self.c
