"""Made-up pictures of discs and squares, with the class of each pixel or with boxes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

KINDS = ("background", "disc", "square")


class _Shapes(Dataset[tuple[Any, Any]]):
    """Pictures of one to three discs and squares of random places, sizes and brightness, on noise."""

    classes = KINDS

    def __init__(self, count: int = 200, size: int = 64, seed: int = 0) -> None:
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw picture uint8 [3, S, S], mask int64 [S, S], boxes float32 [K, 4] and their classes int64 [K]."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        picture = torch.randint(0, 60, (3, self.size, self.size), generator=generator)
        mask = torch.zeros(self.size, self.size, dtype=torch.int64)
        rows, columns = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        boxes, labels = [], []
        for _ in range(pick(1, 4)):
            half = pick(self.size // 10, self.size // 5)
            y, x = pick(half, self.size - half), pick(half, self.size - half)
            label = pick(1, 3)
            far = (
                (rows - y).abs().maximum((columns - x).abs())
                if label == 2
                else ((rows - y) ** 2 + (columns - x) ** 2) ** 0.5
            )
            inside = far <= half
            picture[:, inside] = torch.randint(110, 256, (3, 1), generator=generator)
            mask[inside] = label
            boxes.append([x - half, y - half, x + half + 1, y + half + 1])
            labels.append(label)
        return picture.to(torch.uint8), mask, torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)


class ShapeMasks(_Shapes):
    """Discs and squares with the class of each pixel: (Image uint8 [3, S, S], Mask int64 [S, S]), 0 is the background.

    Both are tv_tensors, so that torchvision's v2 transforms move them together (`transform.on: sample`).

    Args:
        count: of the pictures.
        size: height and width.
        seed: of what they show.
    """

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        picture, mask, _, _ = self.draw(index)
        return tv_tensors.Image(picture), tv_tensors.Mask(mask)


class ShapeBoxes(_Shapes):
    """Discs and squares with boxes: (Image uint8 [3, S, S], {boxes: BoundingBoxes [K, 4], labels: int64 [K]}).

    Classes are 1 (disc) and 2 (square), since 0 is the background of torchvision's detectors.

    Args:
        count: of the pictures.
        size: height and width.
        seed: of what they show.
    """

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        picture, _, boxes, labels = self.draw(index)
        size = (self.size, self.size)
        made = tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
        return tv_tensors.Image(picture), {"boxes": made, "labels": labels}
