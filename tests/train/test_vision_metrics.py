"""Metrics of segmentation and detection agree with their references."""

import contextlib
import io
import math

import pytest
import torch

from runner.train.metrics import Accuracy, BoxPrecision, MeanIoU


@pytest.mark.exhaustive  # torchmetrics takes seconds to import
def test_mean_iou_is_that_of_torchmetrics():
    """Over several batches, with pixels that do not count, and a class that nothing has."""
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    ours, theirs = MeanIoU(), torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255)
    for _ in range(3):
        output = torch.randn(2, 5, 6, 7, generator=generator)
        output[:, 4] = -9
        target = torch.randint(4, (2, 6, 7), generator=generator)
        target[:, 0] = 255
        ours.update(output, target)
        theirs.update(output, target)
    by_class = torch.tensor([ours.compute()])

    assert torch.allclose(by_class, theirs.compute()[None])
    assert math.isnan(MeanIoU().compute())


def test_mean_iou_by_hand_and_a_wrong_target():
    metric = MeanIoU()
    metric.update(torch.tensor([[[0.0, 1, 1, 0]], [[1.0, 0, 0, 1]]]).transpose(0, 1), torch.tensor([[1, 0, 1, 1]]))

    assert metric.compute() == pytest.approx((1 / 2 + 2 / 3) / 2)
    with pytest.raises(ValueError, match=r"must be its classes, not \[1, 1, 4\]"):
        metric.update(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4).long())


@pytest.mark.parametrize("wrong", [2, 3, -1, 200])
def test_mean_iou_refuses_a_class_that_the_output_does_not_have(wrong):
    """Also the first one after the last, where class 0 is found: its place in the matrix was that of the ignored."""
    metric = MeanIoU()
    metric.update(torch.tensor([[[1.0, 1], [0, 0]]]), torch.tensor([[wrong, 255]]))

    with pytest.raises(ValueError, match="1 targets are of no class of the output, which has 0 to 1"):
        metric.compute()


def test_accuracy_leaves_out_what_is_ignored():
    metric = Accuracy(ignore_index=-100)
    metric.update(torch.eye(3)[None].transpose(1, 2), torch.tensor([[0, 2, -100]]))
    state = metric.state_dict()

    assert metric.compute() == 0.5
    assert state == {"hits": 1.0, "count": 2}


def make_pictures(count, seed=0):
    """Make true boxes of pictures and boxes found near most of them, with scores that are never the same."""
    generator = torch.Generator().manual_seed(seed)
    found, true = [], []
    for _ in range(count):
        corners = torch.rand(int(torch.randint(0, 5, (), generator=generator)), 2, generator=generator) * 60
        boxes = torch.cat([corners, corners + 25 + 20 * torch.rand(len(corners), 2, generator=generator)], 1)
        labels = torch.randint(1, 4, (len(boxes),), generator=generator)
        near = boxes.repeat(2, 1) + 3 * torch.randn(2 * len(boxes), 4, generator=generator)
        kinds = labels.repeat(2).where(torch.rand(2 * len(boxes), generator=generator) < 0.8, 1)
        found.append({"boxes": near, "scores": torch.rand(len(near), generator=generator), "labels": kinds})
        true.append({"boxes": boxes, "labels": labels})
    return found, true


def test_box_precision_by_hand():
    """The better guess finds one of two boxes, the other none: precision 1 up to a recall of one half."""
    box, other = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60]])
    metric = BoxPrecision()
    assert math.isnan(metric.compute()["map"])
    found = {"boxes": torch.cat([box, other + 20]), "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 1])}
    metric.update([found], [{"boxes": torch.cat([box, other]), "labels": torch.tensor([1, 1])}])

    assert metric.compute() == pytest.approx(dict.fromkeys(("map", "map_50", "map_75"), 51 / 101))


def test_box_precision_without_boxes_found_is_zero():
    metric = BoxPrecision()
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    metric.update([none], [{"boxes": torch.ones(1, 4), "labels": torch.tensor([2])}])

    assert metric.compute() == {"map": 0, "map_50": 0, "map_75": 0}


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(5))
def test_box_precision_is_that_of_pycocotools(seed):
    pytest.importorskip("pycocotools", reason="the reference of mean average precision is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, true = make_pictures(30, seed)
    metric = BoxPrecision()
    for start in range(0, 30, 7):
        metric.update(found[start : start + 7], true[start : start + 7])

    def rows(pictures):
        for number, picture in enumerate(pictures):
            for place, (box, label) in enumerate(
                zip(picture["boxes"].tolist(), picture["labels"].tolist(), strict=True)
            ):
                x, y, right, low = box
                size = {"bbox": [x, y, right - x, low - y], "area": (right - x) * (low - y), "iscrowd": 0}
                score = {"score": picture["scores"][place].item()} if "scores" in picture else {}
                yield {"image_id": number, "category_id": label, **size, **score}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(30)],
            "categories": [{"id": label} for label in (1, 2, 3)],
            "annotations": [row | {"id": number} for number, row in enumerate(rows(true), 1)],
        }
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(list(rows(found))), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()

    assert [*metric.compute().values()] == pytest.approx(judged.stats[:3].tolist(), abs=1e-9)
