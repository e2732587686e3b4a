import torch
from torch import nn
from torch.utils.data import Dataset


class Blobs(Dataset):
    def __init__(self, count=40, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(count) % 3
        self.inputs = torch.randn(count, 4, generator=generator) + 2 * nn.functional.one_hot(self.targets, 4)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


class Net(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))
