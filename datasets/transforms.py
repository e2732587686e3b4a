"""Transforms of our own.

A transform with `draws` (the uniform numbers it needs for a sample) and `batched(images, uniforms)` runs on whole
batches where the data is in memory; any other callable runs sample by sample.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


class RandomShift:
    """Move an image by up to `pixels` whole pixels in both directions; zeros come in from the border.

    The same as a random crop of the image's own size after padding with `pixels` zeros.
    """

    draws = 2

    def __init__(self, pixels: int = 1) -> None:
        self.pixels = pixels

    def batched(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Shift images [N, C, H, W] of any dtype by uniforms [N, 2] in [0, 1); the result has the same shape."""
        count, channels, height, width = images.shape
        padded_width = width + 2 * self.pixels
        offsets = (uniforms * (2 * self.pixels + 1)).long()  # rows, columns
        rows = offsets[:, :1] + torch.arange(height, device=images.device)
        columns = offsets[:, 1:] + torch.arange(width, device=images.device)
        places = (rows[:, :, None] * padded_width + columns[:, None, :]).view(count, 1, -1)
        padded = pad(images, [self.pixels] * 4).flatten(2)
        return padded.gather(2, places.expand(-1, channels, -1)).view(images.shape)

    def __call__(self, image: Tensor) -> Tensor:
        """Shift one image [C, H, W], drawing from torch's global generator."""
        return self.batched(image[None], torch.rand(1, self.draws))[0]
