import torch
from torch import nn
from torch.utils.data import Dataset


class Squares(Dataset):
    """Pictures of one to three bright squares, with their boxes and labels as torchvision's detectors take them."""

    def __init__(self, count=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.numbers = torch.randint(1, 4, (count,), generator=generator).tolist()
        self.corners = [torch.randint(0, 11, (number, 2), generator=generator) for number in self.numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        image = torch.zeros(1, 16, 16)
        for x, y in self.corners[index].tolist():
            image[:, y : y + 5, x : x + 5] = 1
        boxes = torch.cat([self.corners[index], self.corners[index] + 5], 1).float()
        return image, {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}


def collate(samples):
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class Detector(nn.Module):
    """Losses by name of images and targets while it trains, boxes and scores of each image otherwise."""

    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 5, 4, 2), nn.ReLU(), nn.Conv2d(width, 5, 1))

    def forward(self, images, targets=None):
        made = self.body(torch.stack(images)).flatten(2)
        cells = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).flip(1) * 4 + 2
        if self.training:
            parts = [self.compare(one, cells, target) for one, target in zip(made, targets, strict=True)]
            return {
                "objectness": torch.stack([a for a, _ in parts]).mean(),
                "box": torch.stack([b for _, b in parts]).mean(),
            }
        boxes = [torch.cat([cells, cells], 1) + one[1:].t() for one in made]
        return [{"boxes": box, "scores": one[0].sigmoid()} for box, one in zip(boxes, made, strict=True)]

    def compare(self, made, cells, target):
        middles = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
        nearest = torch.cdist(middles, cells).argmin(1)
        wanted = torch.zeros(len(cells)).scatter(0, nearest, 1)
        offsets = target["boxes"] - torch.cat([cells, cells], 1)[nearest]
        box = nn.functional.smooth_l1_loss(made[1:].t()[nearest], offsets)
        return nn.functional.binary_cross_entropy_with_logits(made[0], wanted), box


def detect(batch, model, loss):
    images, targets = batch
    if model.training:
        parts = model(images, targets)
        return {"loss": sum(parts.values()), "size": len(images), **parts}
    return {"output": model(images), "target": targets, "size": len(images)}


class Overlap:
    """Mean over all true boxes of the largest overlap with a box that is found."""

    higher_is_better = True

    def __init__(self, score=0.3):
        self.score = score
        self.reset()

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, output, target):
        for found, true in zip(output, target, strict=True):
            boxes, wanted = found["boxes"][found["scores"] > self.score], true["boxes"]
            self.count += len(wanted)
            if len(boxes):
                low = torch.maximum(wanted[:, None, :2], boxes[:, :2])
                high = torch.minimum(wanted[:, None, 2:], boxes[:, 2:])
                shared = (high - low).clamp(min=0).prod(2)
                area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
                self.total += float((shared / (25 + area - shared)).amax(1).double().sum())

    def compute(self):
        return self.total / self.count if self.count else float("nan")
