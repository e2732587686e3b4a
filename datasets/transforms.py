"""Transforms of our own.

A transform with `draws` (the uniform numbers it needs for a sample) and `batched(images, uniforms)` runs on whole
batches where the data is in memory; any other callable runs sample by sample. With `alternates` its draws are those of
one epoch: u in each even one, and 1 - u in each odd one.
"""

from collections.abc import Sequence
from typing import Any

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


class AlternatingFlip:
    """Mirror an image left to right in each second epoch: half of the images begin with it, drawn once for all epochs.

    Every two epochs then show each image in both ways (Jordan 2024, arXiv:2404.00498, section 3.6).
    """

    draws = 1
    alternates = True  # it gets u in even epochs and 1 - u in odd ones, of a key without the epoch

    def batched(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Mirror those of the images [N, C, H, W] whose uniform [N, 1] is below a half."""
        mirrored = (uniforms < 0.5).view(-1, *[1] * (images.dim() - 1))
        return torch.where(mirrored, images.flip(-1), images)

    def __call__(self, image: Tensor) -> Tensor:
        """Mirror one image [C, H, W] or not, drawing from torch's global generator: as any random flip."""
        return self.batched(image[None], torch.rand(1, self.draws))[0]


def shift_and_mirror(images: Tensor, pixels: int = 1) -> list[tuple[float, Tensor]]:
    """Views of images [N, C, H, W] with their weights, for an average over them: mirrored ones, and shifted ones.

    As they are (half of the weight), moved up and left, and moved down and right; each of the three also mirrored.
    """
    height, width = images.shape[-2:]
    padded = pad(images, [pixels] * 4, mode="reflect")
    moved = [padded[..., at : at + height, at : at + width] for at in (0, 2 * pixels)]
    views = [(0.25, images), *((0.125, some) for some in moved)]
    return [(weight, view) for weight, some in views for view in (some, some.flip(-1))]


class Rescale:
    """Resize the image of a dict sample, and move its landmarks with it (PyTorch's data loading tutorial).

    Args:
        output_size: height and width, or the length of the shorter side.

    A sample has `image` [C, H, W] and `landmarks` [K, 2] as x, y; tv_tensors or plain tensors.
    """

    def __init__(self, output_size: int | Sequence[int]) -> None:
        self.output_size = output_size

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with its image and landmarks in the new size."""
        from torchvision.transforms.v2 import functional

        height, width = sample["image"].shape[-2:]
        if isinstance(self.output_size, int):
            shorter = min(height, width)
            size = [int(self.output_size * height / shorter), int(self.output_size * width / shorter)]
        else:
            size = list(self.output_size)
        image = functional.resize(sample["image"], size, antialias=True)
        ratio = torch.tensor([size[1] / width, size[0] / height])
        return {**sample, "image": image, "landmarks": _points(sample["landmarks"] * ratio, size)}


class RandomCrop:
    """Crop the image of a dict sample at a random place, and move its landmarks with it.

    Args:
        output_size: height and width, or one number for both; at most those of the image.
    """

    def __init__(self, output_size: int | Sequence[int]) -> None:
        self.size = [output_size, output_size] if isinstance(output_size, int) else list(output_size)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The cropped sample; row and column are drawn from torch's global generator, in this order."""
        image, (height, width) = sample["image"], self.size
        if image.shape[-2] < height or image.shape[-1] < width:
            raise ValueError(f"the image {list(image.shape[-2:])} is smaller than the crop {self.size}")
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        points = sample["landmarks"] - torch.tensor([float(left), float(top)])
        cropped = image[..., top : top + height, left : left + width]
        return {**sample, "image": cropped, "landmarks": _points(points, self.size)}


class ToTensor:
    """Image and landmarks of a dict sample as plain float32 tensors, the image [C, H, W] in [0, 1]."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample as plain tensors."""
        image, points = (torch.as_tensor(sample[name]) for name in ("image", "landmarks"))
        scale = 255 if image.dtype == torch.uint8 else 1
        plain = {"image": image.float() / scale, "landmarks": points.float()}
        return {**sample, **{name: tensor.as_subclass(Tensor) for name, tensor in plain.items()}}


def _points(points: Tensor, size: Sequence[int]) -> Tensor:
    from torchvision import tv_tensors

    moved: Tensor = tv_tensors.KeyPoints(points.as_subclass(Tensor), canvas_size=(size[0], size[1]))
    return moved
