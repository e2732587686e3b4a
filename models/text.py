"""A small transformer encoder that classifies padded texts."""

import math

import torch
from torch import Tensor, nn


class TextTransformer(nn.Module):
    """Transformer encoder over word ids, the mean of its outputs over the words, and a linear head.

    Takes int64 [N, T] with 0 for padding, gives logits [N, num_classes]; padding changes no output.

    Args:
        num_words: ids that there are, with padding.
        num_classes: outputs.
        width: of the embedding, a multiple of `heads`.
        depth: layers.
        heads: of attention.
        length: words of a text at most.
        dropout: rate within the layers.
    """

    def __init__(
        self,
        num_words: int,
        num_classes: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        length: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.places.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of padded texts."""
        padding = tokens == 0
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        hidden = self.layers(self.words(tokens) + places, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).to(hidden.dtype)
        logits: Tensor = self.head((hidden * kept).sum(1) / kept.sum(1).clamp(min=1))
        return logits
