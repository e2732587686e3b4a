"""Images with points on them, listed in a CSV file: the face landmarks of the PyTorch tutorial, and anything alike."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Landmarks(Dataset[dict[str, Any]]):
    """A sample is a dict: `image` uint8 [3, H, W] (tv_tensors.Image), `landmarks` float32 [K, 2] as x, y in pixels.

    The landmarks are tv_tensors.KeyPoints, so torchvision's v2 transforms move them with the image.

    Args:
        csv_file: a header, then rows of a file name and x, y of each point in turn.
        root: the folder of the images.

    Raises:
        ValueError: a row has an odd number of coordinates, or another number than the first.
    """

    def __init__(self, csv_file: str, root: str) -> None:
        with Path(csv_file).open(newline="", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
        self.files = [str(Path(root) / row[0]) for row in rows]
        for number, row in enumerate(rows, start=2):
            if len(row) != len(rows[0]) or len(row) % 2 == 0:
                count = len(rows[0]) - 1
                raise ValueError(f"{csv_file}:{number} has {len(row) - 1} coordinates, the first row has {count}")
        numbers = np.array([row[1:] for row in rows], dtype=np.float32)
        self.points = torch.from_numpy(numbers).view(len(rows), -1, 2)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image
        from torchvision import tv_tensors

        with Image.open(self.files[index]) as file:
            image = tv_tensors.Image(file.convert("RGB"))
        size = (image.shape[-2], image.shape[-1])
        return {"image": image, "landmarks": tv_tensors.KeyPoints(self.points[index].clone(), canvas_size=size)}
