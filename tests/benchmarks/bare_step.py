"""The least that a script can do before its first optimizer step: torch, scikit-learn's digits, one batch."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:64], dtype=torch.float32).view(-1, 1, 8, 8) / 16
y = torch.tensor(labels[:64])
body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
model = nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
F.cross_entropy(model(x), y).backward()
optimizer.step()
