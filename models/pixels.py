"""A network that reads an image as a sequence of grey levels."""

from torch import Tensor, nn


class PixelEmbedding(nn.Module):
    """Each pixel's level, from 0 to `levels` - 1, becomes a vector of `width` numbers; one linear layer reads them all.

    Takes float images [N, ...] of `pixels` numbers in [0, 1], gives logits [N, num_classes].
    """

    def __init__(self, levels: int = 17, pixels: int = 64, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.levels = levels
        self.embedding = nn.Embedding(levels, width)
        self.fc = nn.Linear(pixels * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        level = (x.flatten(1) * (self.levels - 1)).round().long()
        logits: Tensor = self.fc(self.embedding(level).flatten(1))
        return logits
