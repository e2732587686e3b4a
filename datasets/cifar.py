"""CIFAR in its binary format: plain bytes, without pickles."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset


class BinaryCIFAR(TensorDataset):
    """Images [3, 32, 32] of uint8 with their class, from files of CIFAR-10's binary version (Krizhevsky 2009).

    A record is one byte for the class and 3,072 for the image: its red, green and blue pixels, row by row.

    Args:
        root: folder of the files.
        train: the five training batches, else the test batch.

    Raises:
        ValueError: a file has no whole number of records, or a class is not below 10.
    """

    def __init__(self, root: str, train: bool = True) -> None:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
        records = torch.cat([read_records(Path(root) / name) for name in names])
        super().__init__(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())


def read_records(file: Path) -> Tensor:
    """Read the records [N, 3073] of a file.

    Raises:
        ValueError: they are none.
    """
    numbers = np.fromfile(file, np.uint8)
    if not numbers.size or numbers.size % 3073 or numbers[::3073].max() > 9:
        message = f"{file} is no batch of CIFAR-10: records of 3,073 bytes, the first of them a class from 0 to 9"
        raise ValueError(message)
    return torch.from_numpy(numbers.reshape(-1, 3073))
