import torch
from torch import nn
from torch.utils.data import Dataset


class Rings(Dataset):
    """Points on a circle, with noise."""

    def __init__(self, count=40, seed=0):
        generator = torch.Generator().manual_seed(seed)
        angles = 6.28 * torch.rand(count, generator=generator)
        self.points = torch.stack([angles.cos(), angles.sin()], 1)
        self.points += 0.1 * torch.randn(count, 2, generator=generator)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index]


class GAN(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
        self.D = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(width, 1))


def step(batch, model, loss, update):
    noise = torch.randn(len(batch), 3)
    fake = model.G(noise)
    real, made = model.D(batch), model.D(fake.detach())
    d_loss = loss(real, torch.ones_like(real)) + loss(made, torch.zeros_like(made))
    update("D", d_loss)
    judged = model.D(fake)
    g_loss = loss(judged, torch.ones_like(judged))
    update("G", g_loss)
    return {"loss": (d_loss + g_loss).detach(), "d_loss": d_loss.detach(), "size": len(batch)}
