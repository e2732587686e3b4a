"""UCI's handwritten digits, in a file of their own."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

FILE = Path(__file__).with_suffix(".npz")  # its source and licence: digits.txt


class Digits(TensorDataset):
    """1,797 grey images of 8x8 in ten classes (UCI, Alpaydin and Kaynak 1998), in the order of scikit-learn.

    A sample is (image [1, 8, 8] float32 in [0, 1], class int64).
    """

    def __init__(self) -> None:
        with np.load(FILE, allow_pickle=False) as arrays:
            images, classes = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["classes"])
        super().__init__(images[:, None].float() / 16, classes.long())
