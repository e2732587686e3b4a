"""What a script says at its end (perplexity, overlap of boxes, an error) is what the plain script says."""

import json

import pytest

from tests.experiment.scripts.harness import install
from tests.support import read_result

VALUES = {
    "word_language_model": ("val/perplexity", "test/perplexity"),
    "two_heads": ("val/accuracy", "val/rmse"),
    "detection": ("val/overlap",),
}


@pytest.mark.parametrize(
    "name", ["two_heads", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in VALUES if name != "two_heads")]
)
def test_values_of_evaluations_are_those_of_the_plain_script(name, tmp_path):
    with install(name, tmp_path) as script:
        found = read_result(script.run())
        script.by_hand()
    expected = json.loads((tmp_path / "plain" / "result.json").read_text())

    assert {key: found["metrics"][key] for key in VALUES[name]} == pytest.approx(
        {key: expected[key] for key in VALUES[name]}, rel=1e-6
    )


@pytest.mark.exhaustive
def test_reinforce_ends_by_its_reward(tmp_path):
    with install("reinforce", tmp_path) as script:
        found = read_result(script.run())

    assert found["status"] == "completed"
    assert "train.stop_when: train/running is 0.8" in found["stopped"]
    assert found["train"]["train/running"] > 0.8
    assert 10 < found["steps"] < 300
