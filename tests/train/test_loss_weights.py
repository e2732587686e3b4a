"""Losses and fields have weights: no result depends on how samples came in batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.core.errors import RunError
from runner.train.loss_weights import compute_divisor, is_summed, read_kind
from runner.train.optimizer_step.accumulated import AccumulatedStep
from runner.train.state import Losses
from runner.train.step_outputs import StepOutputs

TOKENS = torch.randint(5, (12, 6), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([6, 1, 3, 2, 6, 5, 1, 1, 4, 2, 6, 3])
SCORES = torch.randn(12, 6, 5, generator=torch.Generator().manual_seed(1))
TOKENS[torch.arange(6) >= LENGTHS[:, None]] = -100
SIZES = (1, 3, 7, 12)


def tell(rows, kind):
    """What a step says of these sequences: their mean loss of a token, or the sum of it."""
    loss = F.cross_entropy(SCORES[rows].flatten(0, 1), TOKENS[rows].flatten(), reduction=kind)
    right = (SCORES[rows].argmax(-1) == TOKENS[rows])[TOKENS[rows] != -100]
    field = {"value": right.double().mean(), "weight": right.numel()}
    return {"loss": loss, "loss_is": kind, "size": (TOKENS[rows] != -100).sum(), "right": field}


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_means_do_not_depend_on_the_batch_size(kind):
    whole = F.cross_entropy(SCORES.flatten(0, 1), TOKENS.flatten()).item()
    right = (SCORES.argmax(-1) == TOKENS)[TOKENS != -100].double().mean().item()
    found = []
    for size in SIZES:
        losses = Losses()
        for rows in torch.arange(12).split(size):
            losses.add(tell(rows, kind))
        found.append([losses.mean(), losses.fields.means()["right"]])

    assert found == [pytest.approx([whole, right], rel=1e-6)] * 4


def test_sums_of_whole_numbers_are_equal_to_the_bit():
    found = set()
    for size in SIZES:
        losses = Losses()
        for rows in torch.arange(12).split(size):
            losses.add({"loss": LENGTHS[rows].sum().float(), "loss_is": "sum", "size": len(rows)})
        found.add(losses.mean())

    assert found == {float(LENGTHS.double().mean())}


def test_a_loss_is_a_sum_or_a_mean():
    assert [read_kind({"loss_is": "sum"}, sums=False), read_kind({"loss_is": "mean"}, sums=True)] == [True, False]
    assert read_kind({}, sums=True)
    with pytest.raises(RunError, match="must be mean or sum, but is 'total'"):
        read_kind({"loss_is": "total"}, sums=False)


def test_a_batch_that_counts_nothing_is_left_out_of_a_mean():
    fields = StepOutputs()
    fields.add({"f": {"value": torch.tensor(float("nan")), "weight": 0}}, 3)
    fields.add({"f": {"value": 2.0, "weight": torch.tensor(5)}}, 3)

    assert fields.means() == {"f": 2.0}


def test_weights_are_saved_and_put_back():
    fields, again = StepOutputs(), StepOutputs()
    fields.add({"f": {"value": 1.0, "weight": torch.tensor(3)}}, 9)
    again.load_state_dict(fields.state_dict())
    for each in (fields, again):
        each.add({"f": {"value": 5.0, "weight": 1}}, 9)

    assert fields.means() == again.means() == {"f": 2.0}


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, rows):
        return SCORES[rows] + self.shift


def said(rows, model, loss):
    """A step that counts tokens, and says so."""
    return {
        "loss": loss(model(rows).flatten(0, 1), TOKENS[rows].flatten()),
        "loss_is": "sum" if is_summed(loss) else "mean",
        "size": (TOKENS[rows] != -100).sum(),
    }


def unsaid(rows, model, loss):
    """One as `supervised`: the size is that of the batch, and the loss has ignored what is padded."""
    output = model(rows).movedim(-1, 1)
    return {"loss": loss(output, TOKENS[rows]), "output": output, "target": TOKENS[rows], "size": len(rows)}


@pytest.mark.parametrize(("step", "reduction"), [(said, "mean"), (said, "sum"), (unsaid, "mean"), (unsaid, "sum")])
@pytest.mark.parametrize("size", [1, 5])
def test_accumulated_gradients_are_those_of_one_batch(step, reduction, size):
    model, loss = Scores(), nn.CrossEntropyLoss(reduction=reduction)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batches = [*torch.arange(12).split(size)]
    outcome = AccumulatedStep(model, loss, step, optimizer, count=len(batches)).backward(batches)
    whole = Scores()
    expected = step(torch.arange(12), whole, loss)
    expected["loss"].backward()

    assert torch.allclose(model.shift.grad, whole.shift.grad, atol=1e-6)
    assert outcome["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    assert int(outcome["size"]) == int(expected["size"])


@pytest.mark.parametrize(
    ("loss", "target", "expected"),
    [
        (nn.CrossEntropyLoss(), torch.zeros(4, dtype=torch.long), None),
        (nn.CrossEntropyLoss(), TOKENS, 40.0),
        (nn.CrossEntropyLoss(ignore_index=0), torch.tensor([0, 1, 2, 0]), 2.0),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), torch.tensor([0, 1, 1]), 7.0),
        (nn.MSELoss(), torch.zeros(4, dtype=torch.long), None),
        (None, torch.zeros(4), None),
    ],
)
def test_the_divisor_of_a_classification(loss, target, expected):
    found = compute_divisor(loss, target)
    assert expected == (found if found is None else float(found))


@pytest.mark.parametrize(
    "loss",
    [
        "loss.reduction=sum",
        "loss.ignore_index=3",
        pytest.param("dataset.class_weights=[1,2,3,4,5,6,7,8,9,0.5]", marks=pytest.mark.exhaustive),
    ],
)
def test_an_evaluation_does_not_depend_on_its_batch_size(loss, runner):
    """With the supervised step, whatever its loss divides by; `reduction: sum` is said as a mean over samples."""
    values = []
    for size in (1, 7, 100):
        ran = runner("train.duration=0st", "dataset.limit=20", f"loader.eval.batch_size={size}", loss, "log=quiet")
        values.append(ran.result["metrics"]["val/loss"])

    assert values == [pytest.approx(values[0], rel=1e-6)] * 3
