"""A step that takes the loss of the model itself: where it finds it, what metrics get, what it weighs."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from runner.train.steps import take_model_loss


class Net(nn.Module):
    """Calls back with whatever it was given."""

    def __init__(self, made):
        super().__init__()
        self.made, self.given = made, None

    def forward(self, *args, **kwargs):
        self.given = (args, kwargs)
        return self.made


LOSS, LOGITS = torch.tensor(2.0), torch.zeros(3, 4)
LABELS = torch.tensor([0, 1, 2])


class Made(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize("made", [{"loss": LOSS, "logits": LOGITS, "hidden": ()}, (LOSS, LOGITS), Made(LOSS, LOGITS)])
def test_the_loss_in_a_mapping_or_first_in_a_tuple(made):
    net = Net(made)
    outcome = take_model_loss({"ids": torch.ones(3, 5), "labels": LABELS}, net)

    assert outcome["loss"] == 2
    assert outcome["output"] is LOGITS
    assert outcome["target"] is LABELS
    assert outcome["size"] == 3
    assert net.given[1].keys() == {"ids", "labels"}


def test_a_mapping_of_losses_is_summed_and_each_is_logged():
    """As torchvision's detectors give them; an evaluation gives boxes, and no loss."""
    images, targets = [torch.zeros(1, 2, 2)] * 2, [{"boxes": torch.zeros(1, 4)}] * 2
    parts = {"box": torch.tensor(1.0, requires_grad=True), "class": torch.tensor([2.0])}
    net = Net(parts)
    outcome = take_model_loss([images, targets], net)
    evaluated = take_model_loss([images, targets], Net([{"scores": LOGITS}] * 2).eval())

    assert (outcome["loss"].item(), outcome["box"].item(), outcome["class"].item()) == (3, 1, 2)
    assert outcome["loss"].requires_grad
    assert "output" not in outcome
    assert net.given[0] == (images, targets)
    assert evaluated.keys() == {"output", "target", "size"}
    assert evaluated["target"] is targets


@pytest.mark.parametrize("kind", [lambda made: made, lambda made: {"scores": made}, lambda made: (made, LOGITS)])
def test_the_output_of_one_sample_is_no_loss_in_an_evaluation(kind):
    """The last batch of a split may have one sample and an output [N] of the shape [1]; in training, [1] is a loss."""
    batch, made = [torch.zeros(1, 2), torch.zeros(1)], kind(torch.ones(1))
    evaluated = take_model_loss(batch, Net(made).eval())

    assert evaluated.keys() == {"output", "target", "size"}
    assert evaluated["output"] is made
    assert take_model_loss(batch, Net(made))["loss"].item() == 1


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("ids", ((1,), {})),
        (["ids", "mask"], ((1, 2), {})),
        ({"input_ids": "ids"}, ((), {"input_ids": 1})),
        (None, ((), {"ids": 1, "mask": 2})),
    ],
)
def test_which_members_the_model_gets(place: Any, given: Any):
    net = Net(LOSS)
    assert take_model_loss({"ids": 1, "mask": 2}, net, input=place)["loss"] == 2
    assert net.given == given


def test_a_model_without_a_loss_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"returns a dict with logits, loss; .*`labels`"):
        take_model_loss({"ids": torch.ones(3, 5)}, Net({"logits": LOGITS, "loss": None}))


def test_tokens_that_are_ignored_weigh_nothing_and_classes_come_first():
    logits, labels = torch.randn(2, 5, 4), torch.tensor([[1, 2, -100, -100, -100], [3, 1, 0, 2, -100]])
    outcome = take_model_loss({"labels": labels}, Net({"loss": LOSS, "logits": logits}), class_dim=-1)

    assert (outcome["size"].item(), outcome["loss_is"]) == (6, "mean")
    assert torch.equal(outcome["output"], logits.transpose(1, 2))


def test_a_language_model_is_compared_with_the_next_token():
    logits, labels = torch.randn(2, 5, 4), torch.tensor([[1, 2, 3, -100, -100], [3, 1, 0, 2, 1]])
    outcome = take_model_loss({"labels": labels}, Net({"loss": LOSS, "logits": logits}), class_dim=-1, shift=True)

    assert torch.equal(outcome["output"], logits[:, :-1].transpose(1, 2))
    assert torch.equal(outcome["target"], labels[:, 1:])
    assert outcome["size"] == 6
