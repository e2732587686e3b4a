import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from torch import nn

from runner.log import images
from runner.log.predictions import ConfusionMatrix, Features, PRCurves, Samples, as_classes

SAID = []


@pytest.fixture
def said():
    SAID.clear()
    return SAID


def seen(look, batches, model=None):
    look.begin(model or nn.Linear(1, 1))
    for batch, output in batches:
        look.add(batch, {"loss": torch.tensor(0.0), "output": output, "target": batch[1], "size": len(output)})
    return look.values()


def classification(seed, classes=4, sizes=(30, 30, 7)):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        labels = torch.randint(classes, (size,), generator=generator)
        logits = torch.randn(size, classes, generator=generator) + 2 * nn.functional.one_hot(labels, classes)
        batches.append(((torch.rand(size, 1, 8, 8, generator=generator), labels), logits))
    return batches


def test_a_confusion_matrix_counts_as_sklearn_does(seed, said):
    batches = classification(seed)
    look = ConfusionMatrix("val", ["a", "b"], said.append)
    (value,) = seen(look, batches)
    labels = torch.cat([batch[1] for batch, _ in batches])
    predicted = torch.cat([output.argmax(1) for _, output in batches])

    assert look.counts.tolist() == confusion_matrix(labels, predicted).tolist()
    assert value.tag == "val/confusion_matrix"
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert picture.size == (value.image.width, value.image.height)


@pytest.mark.parametrize("classes", [1, 2, 21, 1000])
def test_a_confusion_matrix_of_any_size_is_drawn(classes):
    picture = images.draw_confusion_matrix(torch.eye(classes, dtype=torch.int64), ["long name"] * classes)

    assert max(picture.size) < 1300
    assert np.asarray(picture)[-12, -12].tolist() == [8, 48, 107]  # the last cell, all of its row


def test_pr_curves_are_those_of_sklearn_at_each_threshold(seed, said):
    batches = classification(seed)
    curves = {value.tag: value for value in seen(PRCurves("val", ["a", "b"], said.append), batches)}
    labels = torch.cat([batch[1] for batch, _ in batches])
    scores = torch.cat([output.softmax(1) for _, output in batches])

    assert sorted(curves) == ["val/pr/2", "val/pr/3", "val/pr/a", "val/pr/b", "val/pr/micro"]
    tp, fp, tn, fn, precision, recall = np.array(curves["val/pr/b"].tensor.float_val).reshape(6, 127)
    for place in (0, 20, 63, 100):
        positive = scores[:, 1] >= place / 126
        truth = labels == 1
        assert precision[place] == pytest.approx(precision_score(truth, positive, zero_division=0), rel=1e-6)
        assert recall[place] == pytest.approx(recall_score(truth, positive), rel=1e-6)
        assert tp[place] + fp[place] + tn[place] + fn[place] == len(labels)


@pytest.mark.parametrize(
    ("output", "target", "classes"),
    [
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]), [0, 1, 2, 2]),
        (torch.zeros(2, 3, 2), torch.tensor([[0, 1], [2, 2]]), [0, 1, 2, 2]),
        (torch.zeros(2, 3), torch.tensor([[0.9, 0.1, 0], [0, 0, 1]]), [0, 2]),
        (torch.tensor([-3.0, 3.0]), torch.tensor([0.0, 1.0]), [0, 1]),
        (torch.tensor([[0.1], [0.9]]), torch.tensor([0, 1]), [0, 1]),
    ],
)
def test_what_is_a_classification_and_its_classes(output, target, classes):
    scores, found = as_classes(output, target)

    assert found.tolist() == classes
    assert scores.sum(1).tolist() == pytest.approx([1] * len(classes))


def test_probabilities_stay_as_they_are():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])

    assert as_classes(scores, torch.tensor([0, 1]))[0] is not None
    assert torch.equal(as_classes(scores, torch.tensor([0, 1]))[0], scores)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.rand(4), torch.rand(4)),
        (torch.rand(4, 2), torch.rand(4, 2)),
        (torch.rand(4, 2), None),
        (None, torch.zeros(4)),
        (torch.rand(4, 2), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_what_is_none_is_said_to_be(output, target, said):
    batch = (torch.rand(4, 3), target)
    looks = [ConfusionMatrix("val", [], said.append), PRCurves("val", [], said.append)]
    looks += [Samples("val", 4, 0, [], said.append)] * (output is None)
    for look in looks:
        look.add(batch, {"loss": torch.tensor(0.0), "output": output, "target": target})

    assert [value for look in looks for value in look.values()] == []
    assert len(said) == len(looks)


def test_targets_that_a_loss_ignores_are_no_class(said):
    look = ConfusionMatrix("val", [], said.append)
    seen(look, [((None, torch.tensor([0, -100, 1])), torch.eye(3)[:, :2])])

    assert look.counts.sum() == 2


def test_images_are_shown_with_their_classes_and_only_so_many(seed):
    batches = classification(seed)
    (value,) = seen(Samples("val", 40, 0, ["zero", "one"], print), batches)
    sheet = Image.open(io.BytesIO(value.image.encoded_image_string))

    assert value.tag == "val/predictions"
    assert sheet.size == (8 * 68, 5 * 80)


@pytest.mark.parametrize("place", [0, [0], {"x": 0}])
def test_other_inputs_are_a_table(place):
    batch = (torch.rand(3, 5), torch.tensor([[0.5], [1.0], [2.0]]))
    (value,) = seen(Samples("val", 2, place, [], print), [(batch, batch[1] + 1)])

    text = value.tensor.string_val[0].decode()
    assert text.splitlines() == [
        "| sample | target | predicted |",
        "|---|---|---|",
        "| 0 | 0.5 | 1.5 |",
        "| 1 | 1 | 2 |",
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("number", [10, 32, 500])
def test_features_are_the_last_layers_input_with_labels_and_pictures(tmp_path, seed, said, number):
    model = Net()
    batches = [(batch, None) for batch, _ in classification(seed)]
    look = Features("val", number, 0, ["zero"], tmp_path, said.append)
    look.begin(model)
    with torch.no_grad():
        for batch, _ in batches:
            look.add(batch, {"output": model(batch[0]), "target": batch[1]})
        inputs = torch.cat([batch[0] for batch, _ in batches])[:number]
        expected = model.body(inputs).relu()

    look.end()
    assert look.values() == []
    assert not any(module._forward_pre_hooks for module in model.modules())
    tensors = np.loadtxt(tmp_path / "projector/val/tensors.tsv", delimiter="\t")
    assert tensors == pytest.approx(expected.numpy(), abs=1e-5)
    rows = (tmp_path / "projector/val/metadata.tsv").read_text().splitlines()
    labels = torch.cat([batch[1] for batch, _ in batches])[:number].tolist()
    assert rows[0] == "target\tpredicted"
    assert [row.split("\t")[0] for row in rows[1:]] == [str(label or "zero") for label in labels]
    config = (tmp_path / "projector_config.pbtxt").read_text()
    side = int(config.split("single_image_dim: ")[1].split()[0])
    with Image.open(tmp_path / "projector/val/sprite.png") as sprite:
        assert sprite.size == (side * int(np.ceil(len(labels) ** 0.5)),) * 2


def test_a_sprite_is_no_larger_than_the_projector_takes():
    sheet, side = images.draw_sprite([torch.zeros(3, 4, 4, dtype=torch.uint8)] * 40000, 48)

    assert (sheet.size, side) == ((8000, 8000), 40)
