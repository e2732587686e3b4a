"""Data made of random numbers: any size, no download."""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.data import TensorDataset


class SyntheticImages(TensorDataset):
    """Normal noise whose class is the largest of `num_classes` fixed random projections: a rule that can be learned.

    A sample is (image `shape` float32, class int64). `seed` chooses the images; the rule is the same for all seeds.
    """

    def __init__(self, num_samples: int, shape: Sequence[int], num_classes: int = 10, seed: int = 0) -> None:
        images = torch.randn(num_samples, *shape, generator=torch.Generator().manual_seed(1 + seed))
        rule = torch.randn(prod(shape), num_classes, generator=torch.Generator().manual_seed(0))
        super().__init__(images, (images.flatten(1) @ rule).argmax(1))
