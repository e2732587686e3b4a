"""Samples after each epoch are those of the plain script, with the averaged weights, pixel by pixel."""

import numpy as np
from PIL import Image

from tests.experiment.scripts.harness import install


def test_the_samples_of_each_epoch_are_those_of_the_plain_script(tmp_path):
    with install("ddpm", tmp_path) as script:
        folder = script.run()
        script.by_hand()
    kept = {path.name: np.array(Image.open(path))[..., 0] for path in (folder / "artifacts" / "samples").iterdir()}
    drawn = {f"step_{n}.png": np.array(Image.open(tmp_path / "plain" / f"samples_{n}.png")) for n in (4, 8, 12)}

    assert kept.keys() == drawn.keys()
    assert all(np.array_equal(kept[name], drawn[name]) for name in drawn)
