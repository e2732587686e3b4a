"""Which samples an epoch has: an argument `data_source` is the training split, with its labels as `targets`."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class WeightedClasses(Sampler[int]):
    """Draws samples with replacement, each class as often as its weight says.

    Args:
        data_source: a dataset with class indices `targets`, int64 [N].
        weights: of the classes; null: all alike, however many samples they have.
        num_samples: of an epoch; null: as many as the dataset has.

    Raises:
        ValueError: there are fewer weights than classes.
    """

    def __init__(
        self, data_source: Any, weights: Sequence[float] | None = None, num_samples: int | None = None
    ) -> None:
        targets = torch.as_tensor(data_source.targets)
        counts = torch.bincount(targets)
        wanted = torch.ones(len(counts)) if weights is None else torch.tensor(weights)
        if len(wanted) < len(counts):
            raise ValueError(f"there are {len(wanted)} weights and {len(counts)} classes")
        self.probabilities = (wanted[: len(counts)].double() / counts.clamp(min=1))[targets]
        self.num_samples = num_samples or len(targets)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        yield from torch.multinomial(self.probabilities, self.num_samples, replacement=True).tolist()


class Repeated(Sampler[int]):
    """Each sample `repetitions` times in a row, so that a batch has it under several augmentations.

    An epoch is as long as without: of each shuffle only the first samples come to turn (Hoffer et al. 2020; `RASampler`
    of torchvision's references, in one process).
    """

    def __init__(self, data_source: Any, repetitions: int = 3) -> None:
        self.length, self.repetitions = len(data_source), repetitions

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length)
        yield from order.repeat_interleave(self.repetitions)[: self.length].tolist()
