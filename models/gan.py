"""A small generative adversarial network, and the step that trains its two halves against each other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise [N, latent] to images [N, 1, 8, 8] between 0 and 1."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.latent = latent
        self.layers = nn.Sequential(
            nn.Linear(latent, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 64), nn.Sigmoid()
        )

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(noise)
        return images.view(-1, 1, 8, 8)


class Discriminator(nn.Module):
    """Images [N, 1, 8, 8] to logits [N]: above 0 where they look real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits[:, 0]


class GAN(nn.Module):
    """Both halves; called with images it judges them, and `draw` makes some."""

    def __init__(self, latent: int = 16, width: int = 128) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(latent, width), Discriminator(width)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(images)
        return logits

    def draw(self, count: int) -> Tensor:
        """So many images [count, 1, 8, 8], from noise of torch's own generator."""
        device = next(self.generator.parameters()).device
        images: Tensor = self.generator(torch.randn(count, self.generator.latent, device=device))
        return images


def adversarial(batch: Any, model: GAN, loss: Callable[..., Any], update: Callable[..., Any]) -> dict[str, Any]:
    """Train the discriminator on real and drawn images, then the generator on what the discriminator says.

    The losses of Goodfellow et al. (2014), the generator's in the form that does not saturate.

    Args:
        batch: images first.
        model: both halves.
        loss: of logits and shares of the real, such as BCEWithLogitsLoss.
        update: steps the optimizer of a name, `generator` or `discriminator`, by a loss; nothing in an evaluation.
    """
    real = batch[0]
    drawn = model.draw(len(real))
    ones, zeros = torch.ones(len(real), device=real.device), torch.zeros(len(real), device=real.device)
    d_loss = (loss(model(real), ones) + loss(model(drawn.detach()), zeros)) / 2
    update("discriminator", d_loss)
    g_loss = loss(model(drawn), ones)
    update("generator", g_loss)
    whole = (d_loss + g_loss).detach()
    return {"loss": whole, "d_loss": d_loss.detach(), "g_loss": g_loss.detach(), "size": len(real)}
