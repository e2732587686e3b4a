"""Built-in metrics; any object with `update(output, target)`, `compute()` and `reset()` works too.

The accumulators stay on the device of the data: nothing is read back before `compute`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor

WAITING = 2**18  # elements of output kept before they are counted


class Accuracy:
    """Share of samples whose target is among the `top_k` largest logits.

    `update` takes logits [N, C, ...] of any float dtype and class indices [N, ...], or shares of classes [N, C, ...] as
    MixUp and CutMix make them, of which the largest counts. Targets of the class `ignore_index` do not count. `compute`
    gives a number in [0, 1], NaN before any update.

    Small batches wait and are counted together: four small operators a step cost the small CNN 7% of its speed.
    """

    higher_is_better = True
    joins_batches = True  # of several batches one after the other it says what it says of them as one

    def __init__(self, top_k: int = 1, ignore_index: int | None = None) -> None:
        self.top_k, self.ignore_index = top_k, ignore_index
        self.reset()

    def reset(self) -> None:
        """Reset the counts."""
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.elements = 0
        self.hits: Tensor | float = 0.0
        self.count: Tensor | float = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch; neither tensor may be changed in place afterwards."""
        self.waiting.append((output, target))
        self.elements += output.numel()
        if self.elements >= WAITING:
            self._count_waiting()

    def compute(self) -> float:
        """Return the share of hits so far."""
        self._count_waiting()
        return float(self.hits) / float(self.count) if self.count else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return hits and count as plain numbers."""
        self._count_waiting()
        return {"hits": float(self.hits), "count": int(self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict."""
        self.reset()
        self.hits, self.count = state["hits"], state["count"]

    def _take_waiting(self) -> list[tuple[Tensor, Tensor]]:
        """Take the batches that wait, as one where their shapes allow that."""
        batches, self.waiting, self.elements = self.waiting, [], 0
        if len(batches) > 1 and len({(output.shape[1:], target.shape[1:]) for output, target in batches}) == 1:
            outputs, targets = zip(*batches, strict=True)
            return [(torch.cat(outputs), torch.cat(targets))]
        return batches

    def _count_waiting(self) -> None:
        for output, target in self._take_waiting():
            right, counts = self.compare(output, target)
            self.hits = self.hits + right.sum()
            self.count = self.count + (right.numel() if counts is None else counts.sum())

    def compare(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compare a batch; return which places are right, and which count where not all do."""
        classes = target.argmax(1) if target.shape == output.shape and target.is_floating_point() else target
        if self.top_k == 1:
            right = output.argmax(1) == classes
        else:
            right = (output.topk(self.top_k, dim=1).indices == classes.unsqueeze(1)).any(1)
        if right.shape != classes.shape:
            message = f"the target of an output {list(output.shape)} must be its classes, not {list(target.shape)}"
            raise ValueError(message)
        if self.ignore_index is None:
            return right, None
        counts = classes != self.ignore_index
        return right & counts, counts

    @staticmethod
    def count_together(metrics: Sequence["Accuracy"]) -> None:
        """Count what waits in several metrics at once, to the numbers that each alone would come to.

        Nothing is done, and each counts for itself later, where their batches or settings differ.
        """
        first = metrics[0]
        shapes = [[(output.shape, target.shape) for output, target in metric.waiting] for metric in metrics]
        differs = any(one.top_k != first.top_k or one.ignore_index != first.ignore_index for one in metrics)
        inner = {(output[1:], target[1:]) for output, target in shapes[0]}
        if differs or len(inner) != 1 or any(own != shapes[0] for own in shapes[1:]):
            return
        batches = [batch for metric in metrics for batch in metric.waiting]
        right, counts = first.compare(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        hits = right.view(len(metrics), -1).sum(1).tolist()
        sizes = [right.numel() // len(metrics)] * len(metrics)
        if counts is not None:
            sizes = counts.view(len(metrics), -1).sum(1).tolist()
        for metric, own, size in zip(metrics, hits, sizes, strict=True):
            metric.waiting, metric.elements = [], 0
            metric.hits, metric.count = metric.hits + own, metric.count + size


class MeanSquaredError:
    """Mean of the squared differences over all elements; `root=True` gives its square root.

    `update` takes two tensors of one shape. `compute` is NaN before any update.
    """

    higher_is_better = False

    def __init__(self, *, root: bool = False) -> None:
        self.root = root
        self.reset()

    def reset(self) -> None:
        """Reset the sums."""
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: the shapes differ, and not in ones in front alone.
        """
        if output.shape != target.shape and _strip_leading_ones(output) != _strip_leading_ones(target):
            message = f"output and target must have one shape, and have {list(output.shape)} and {list(target.shape)}"
            raise ValueError(message)
        self.total = self.total + (output - target).square().sum(dtype=torch.float64)
        self.count += target.numel()

    def compute(self) -> float:
        """Return the mean so far."""
        mean = float(self.total) / self.count if self.count else math.nan
        return math.sqrt(mean) if self.root else mean


def _strip_leading_ones(tensor: Tensor) -> list[int]:
    """Return a tensor's shape without its leading ones, which broadcasting adds."""
    return list(dropwhile(lambda size: size == 1, tensor.shape))


class MeanIoU:
    """Mean over classes of intersection over union, from one confusion matrix of a whole split.

    `update` takes logits [N, C, ...] and class indices [N, ...]; a class that neither output nor target has does not
    count. `compute` gives a number in [0, 1], NaN before any update.

    Args:
        ignore_index: class of the target that does not count (255 marks borders in Pascal VOC).
    """

    higher_is_better = True

    def __init__(self, ignore_index: int | None = 255) -> None:
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Reset the confusion matrix."""
        self.confusion: Tensor | None = None  # int64 [C + 1, C]: targets by outputs, in the last row those of no class

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: the target is no class index of each place of the output.
        """
        classes, found = output.shape[1], output.argmax(1)
        if found.shape != target.shape or target.is_floating_point():
            message = f"the target of an output {list(output.shape)} must be its classes, not {list(target.shape)}"
            raise ValueError(message)
        # What is of no class and what is ignored are counted in places of their own: nothing waits for the device.
        known = (target >= 0) & (target < classes)
        pairs = (target.long() * classes + found).where(known, classes * classes)
        if self.ignore_index is not None:
            pairs = pairs.where(target != self.ignore_index, (classes + 1) * classes)
        counts = pairs.new_zeros((classes + 1) * classes + 1).scatter_add_(
            0, pairs.flatten(), torch.ones_like(pairs.flatten())
        )
        matrix = counts[:-1].view(classes + 1, classes)
        self.confusion = matrix if self.confusion is None else self.confusion.to(matrix.device) + matrix

    def compute(self) -> float:
        """Return the mean over the classes so far.

        Raises:
            ValueError: a target was of a class that the output does not have.
        """
        if self.confusion is None:
            return math.nan
        whole = self.confusion.double().cpu()
        matrix, wrong = whole[:-1], int(whole[-1].sum())
        if wrong:
            classes = len(matrix)
            message = f"{wrong} targets are of no class of the output, which has 0 to {classes - 1}"
            raise ValueError(message)
        shared, union = matrix.diag(), matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return float((shared / union)[union > 0].mean())


class BoxPrecision:
    """Mean average precision of boxes as COCO defines it.

    That is with 101 recalls, boxes of all areas, at most 100 of them an image; there are no crowds.

    `update` takes lists with an item an image: of the output `boxes` [N, 4] (corners), `scores` [N], `labels` [N], of
    the target `boxes` and `labels`, as torchvision's detectors give and take them. `compute` gives `map` (mean over
    classes and overlaps of 0.5 to 0.95), `map_50` and `map_75`, NaN where no image has a box.
    """

    higher_is_better = True

    def __init__(self, max_boxes: int = 100) -> None:
        self.max_boxes = max_boxes
        self.thresholds = [0.5 + 0.05 * step for step in range(10)]
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.images: list[list[Tensor]] = []  # of each: boxes, scores, labels found; boxes and labels that are true

    def update(self, output: Sequence[Mapping[str, Tensor]], target: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the images of one batch.

        Raises:
            ValueError: there are not as many targets as outputs.
        """
        for found, true in zip(output, target, strict=True):
            parts = [found["boxes"], found["scores"], found["labels"], true["boxes"], true["labels"]]
            self.images.append([part.detach().cpu() for part in parts])

    def compute(self) -> dict[str, float]:
        """Return the means so far."""
        classes = sorted({int(label) for image in self.images for label in image[4].unique()})
        if not classes:
            return dict.fromkeys(("map", "map_50", "map_75"), math.nan)
        rows = torch.stack([self._measure_class(label) for label in classes]).mean(0)  # by threshold
        return {"map": float(rows.mean()), "map_50": float(rows[0]), "map_75": float(rows[5])}

    def _measure_class(self, label: int) -> Tensor:
        """Return the average precision of a class at each threshold of overlap, float64 [10]."""
        scores, hits, total = [], [], 0
        for boxes, score, labels, true_boxes, true_labels in self.images:
            mine, true = labels == label, true_boxes[true_labels == label].double()
            order = score[mine].sort(descending=True, stable=True).indices[: self.max_boxes]
            scores.append(score[mine][order])
            hits.append(_match_boxes(boxes[mine][order].double(), true, self.thresholds))
            total += len(true)
        order = torch.cat(scores).sort(descending=True, stable=True).indices
        found = torch.cat(hits, 1)[:, order].double().cumsum(1)
        precision = found / torch.arange(1, found.shape[1] + 1)
        precision = precision.flip(1).cummax(1).values.flip(1) if found.shape[1] else precision
        recalls = torch.arange(101, dtype=torch.float64) * 0.01  # rounded as COCO's own
        places = torch.searchsorted(found / total, recalls.expand(10, -1).contiguous())
        return torch.cat([precision, precision.new_zeros(10, 1)], 1).gather(1, places).mean(1)


def _match_boxes(boxes: Tensor, true: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Match boxes, best first, each with the free true box that it overlaps most.

    Returns bool [thresholds, boxes].
    """
    hits = torch.zeros(len(thresholds), len(boxes), dtype=torch.bool)
    if not len(boxes) or not len(true):
        return hits
    low, high = torch.maximum(boxes[:, None, :2], true[:, :2]), torch.minimum(boxes[:, None, 2:], true[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, true)]
    overlaps = shared / (areas[0][:, None] + areas[1] - shared)
    free = torch.ones(len(thresholds), len(true), dtype=torch.bool)
    least = torch.tensor(thresholds, dtype=torch.float64)
    for number, overlap in enumerate(overlaps):
        best, which = overlap.where(free, -1.0).max(1)
        hits[:, number] = best >= least.clamp(max=1 - 1e-10)
        rows = hits[:, number].nonzero()[:, 0]
        free[rows, which[rows]] = False
    return hits
