import torch
from torch import nn
from torch.utils.data import Dataset


class Rings(Dataset):
    """Points on a circle, with noise."""

    def __init__(self, count=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        angles = 6.28 * torch.rand(count, generator=generator)
        self.points = torch.stack([angles.cos(), angles.sin()], 1)
        self.points += 0.1 * torch.randn(count, 2, generator=generator)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index]


class WGAN(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))


def gradient_penalty(critic, real, fake):
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.norm(2, dim=1) - 1) ** 2).mean()


class Step:
    def __init__(self, n_critic, weight):
        self.n_critic, self.weight = n_critic, weight

    def __call__(self, batch, model, loss, update, progress):
        fake = model.generator(torch.randn(len(batch), 3))
        loss = model.critic(fake.detach()).mean() - model.critic(batch).mean()
        if update:
            loss = loss + self.weight * gradient_penalty(model.critic, batch, fake.detach())
            update("critic", loss)
            if progress.step % self.n_critic == 0:
                update("generator", -model.critic(fake).mean())
        return {"loss": loss.detach(), "size": len(batch)}
