import math

import pytest
import torch

from runner.train.state import Losses
from runner.train.step_outputs import StepOutputs


def outcome(**fields):
    return {"loss": torch.tensor(1.0), "output": torch.zeros(4, 2), "target": torch.zeros(4), "size": 4} | fields


def test_fields_are_means_weighted_by_the_samples():
    fields = StepOutputs()
    fields.add(outcome(f1=0.5, grad=torch.tensor(2.0, requires_grad=True), some=True), 4)
    fields.add(outcome(f1=torch.tensor(1.0), rows=torch.tensor([1, 2, 6]), none=None, objects=[1]), 12)

    assert fields.means() == {"f1": 0.875, "grad": 2.0, "some": 1.0, "rows": 3.0}
    fields.clear()
    assert fields.means() == {}


def test_a_word_is_the_last_one():
    fields = StepOutputs()
    for stage in ("warm", "warm", "hot"):
        fields.add(outcome(stage=stage), 4)

    assert (fields.words, fields.means()) == ({"stage": "hot"}, {})


def test_fields_are_saved_and_put_back_as_plain_data():
    fields, again = StepOutputs(), StepOutputs()
    fields.add(outcome(f1=torch.tensor(0.5), stage="warm"), 4)
    again.load_state_dict(fields.state_dict())
    for each in (fields, again):
        each.add(outcome(f1=1.0), 8)

    assert fields.state_dict() == again.state_dict()
    assert again.means()["f1"] == pytest.approx(2.5 / 3)
    assert fields.words == {"stage": "warm"}


def test_a_field_that_is_none_of_a_number_is_nan():
    fields = StepOutputs()
    fields.add(outcome(f1=math.nan), 4)

    assert math.isnan(fields.means()["f1"])


def test_an_outcome_without_fields_costs_one_look_at_its_keys(monkeypatch):
    losses = Losses()
    monkeypatch.setattr(losses, "fields", None)  # not even asked
    losses.add(outcome())

    assert losses.mean() == 1.0
