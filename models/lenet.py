"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) in today's form: ReLU and max pooling."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Convolutions of 6 and 16 channels, linear layers of 120 and 84.

    Takes float images [N, in_channels, 32, 32], gives logits [N, num_classes].
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits
