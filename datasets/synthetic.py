"""Data made of random numbers: any size, no download."""

from collections.abc import Sequence

import torch
from torch.utils.data import TensorDataset


class SyntheticImages(TensorDataset):
    """Noise around one fixed pattern a class: easy to learn, and any size.

    A sample is (image `shape` float32, class int64). `seed` chooses labels and noise; the patterns are the same for all
    seeds.
    """

    def __init__(self, num_samples: int, shape: Sequence[int], num_classes: int = 10, seed: int = 0) -> None:
        patterns = torch.randn(num_classes, *shape, generator=torch.Generator().manual_seed(0))
        own = torch.Generator().manual_seed(1 + seed)
        labels = torch.randint(num_classes, (num_samples,), generator=own)
        noise = torch.randn(num_samples, *shape, generator=own)
        super().__init__(noise + 0.5 * patterns[labels], labels)


class RandomRegression(TensorDataset):
    """Inputs [num_samples, inputs] and targets [num_samples, outputs], both drawn from a normal distribution, float32.

    There is nothing to learn but the samples themselves, as in PyTorch's first tutorials.
    """

    def __init__(self, num_samples: int = 64, inputs: int = 1000, outputs: int = 10, seed: int = 0) -> None:
        own = torch.Generator().manual_seed(seed)
        drawn = torch.randn(num_samples, inputs, generator=own), torch.randn(num_samples, outputs, generator=own)
        super().__init__(*drawn)
