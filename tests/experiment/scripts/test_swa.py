"""The averaged weights of the script with `train.average` are those of torch's own tools."""

import torch

from tests.experiment.scripts.harness import install
from tests.support import read_result


def test_they_are_to_the_bit_with_the_statistics_of_update_bn(tmp_path):
    with install("swa", tmp_path) as script:
        folder = script.run()
        script.by_hand()
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["ema"]
    expected, accuracy = script.loop.AVERAGED

    assert {name: value.tolist() for name, value in expected.items()} == {
        name: value.tolist() for name, value in saved.items()
    }
    assert accuracy == read_result(folder)["metrics"]["val/accuracy"]
