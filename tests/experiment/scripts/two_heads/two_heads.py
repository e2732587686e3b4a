import torch
from torch import nn
from torch.utils.data import Dataset


class Faces(Dataset):
    """Points with a class and an age."""

    def __init__(self, count=44, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(count, 5, generator=generator)
        self.kinds, self.ages = (self.points.sum(1) > 0).long(), self.points[:, 0] * 2

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return {"point": self.points[index], "kind": self.kinds[index], "age": self.ages[index]}


class TwoHeads(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Dropout(0.1))
        self.kind, self.age = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, points):
        hidden = self.body(points)
        return {"kind": self.kind(hidden), "age": self.age(hidden).squeeze(-1)}


def weigh(output, batch, share=0.5):
    kind = nn.functional.cross_entropy(output["kind"], batch["kind"])
    return kind + share * nn.functional.mse_loss(output["age"], batch["age"])


def learn_both(batch, model, loss):
    output = model(batch["point"])
    return {"loss": loss(output, batch), "output": output, "target": batch, "size": len(batch["point"])}
