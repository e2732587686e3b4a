"""A network whose forward is ordinary Python: its depth is drawn anew at each call."""

import random

import torch
from torch import Tensor, nn


class DynamicNet(nn.Module):
    """An input layer, one middle layer used between 0 and `most` times (always with the same weights), an output layer.

    As in PyTorch's tutorial "Control Flow + Weight Sharing". Takes [N, inputs], gives [N, outputs]. How often is drawn
    from Python's own generator.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, most: int = 3) -> None:
        super().__init__()
        self.most = most
        self.input_linear = nn.Linear(inputs, hidden)
        self.middle_linear = nn.Linear(hidden, hidden)
        self.output_linear = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.input_linear(x))
        for _ in range(random.randint(0, self.most)):  # noqa: S311  no secret
            hidden = torch.relu(self.middle_linear(hidden))
        output: Tensor = self.output_linear(hidden)
        return output
