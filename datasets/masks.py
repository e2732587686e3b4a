"""Pictures with the class of each pixel, from a dataset of image files."""

from typing import Any

import torch
from torch.utils.data import Dataset


class SizedMasks(Dataset[tuple[Any, Any]]):
    """Pictures and masks of one size: (Image uint8 [3, S, S], Mask int64 [S, S]) of each pair of a dataset.

    Both are tv_tensors, so that torchvision's v2 transforms move them together (`transform.on: sample`). A picture is
    resized bilinearly, a mask to the class of the nearest pixel: no class is made up between two others.

    Args:
        source: dataset of (picture, mask), as `torchvision.datasets.VOCSegmentation` gives PIL images; the pixels of a
            mask are classes (of a palette's image, its indices).
        size: height and width.
    """

    def __init__(self, source: Dataset[tuple[Any, Any]], size: int = 256) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional

        picture, mask = self.source[index]
        sizes = [self.size, self.size]
        image = functional.resize(functional.to_image(picture.convert("RGB")), sizes, antialias=True)
        classes = tv_tensors.Mask(functional.pil_to_tensor(mask)[0].to(torch.int64))
        return image, functional.resize(classes, sizes)
