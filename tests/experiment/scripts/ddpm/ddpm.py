import torch
from torch import nn
from torch.utils.data import Dataset


class Bars(Dataset):
    """Pictures of one bright bar."""

    def __init__(self, count=32):
        self.images = -torch.ones(count, 1, 8, 8)
        for index in range(count):
            self.images[index, :, index % 8] = 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return (self.images[index],)


class Denoiser(nn.Module):
    """The noise in a picture, from the picture and the time; `shares` says how much of it is left at a time."""

    def __init__(self, width=32, times=20):
        super().__init__()
        self.times = nn.Embedding(times, width)
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 64)
        self.register_buffer("shares", torch.cumprod(1 - torch.linspace(1e-2, 0.3, times), 0))

    def forward(self, images, times):
        hidden = nn.functional.silu(self.first(images.flatten(1)) + self.times(times))
        return self.last(hidden).view_as(images)


def denoise(batch, model, loss):
    (images,) = batch
    times = torch.randint(len(model.shares), (len(images),))
    noise, share = torch.randn_like(images), model.shares[times][:, None, None, None]
    return {"loss": loss(model(share.sqrt() * images + (1 - share).sqrt() * noise, times), noise), "size": len(images)}


def sample(model, count=4):
    images = torch.randn(count, 1, 8, 8)
    before = torch.cat([torch.ones(1), model.shares[:-1]])
    for time in reversed(range(len(before))):
        share, kept = model.shares[time], model.shares[time] / before[time]
        noise = model(images, torch.full((count,), time))
        images = (images - (1 - kept) / (1 - share).sqrt() * noise) / kept.sqrt()
        if time:
            images = images + ((1 - kept) * (1 - before[time]) / (1 - share)).sqrt() * torch.randn_like(images)
    return images / 2 + 0.5
