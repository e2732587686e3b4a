"""Every command of `docs/cookbook/guides/predict_export.md` does what it says."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import run_in

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "predict_export.md").read_text()
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]
SLOW = ("torch_export", "onnx")  # to trace takes seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, which `RUN` stands for."""
    made = run_in(tmp_path_factory.mktemp("page"), "train.duration=1ep", "train.ema=0.9", "log=quiet")
    assert made.status == 0, made.err
    return str(made.folder)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.exhaustive) if any(word in line for word in SLOW) else line
        for line in LINES
    ],
)
def test_command(line, folder, runner):
    """The command ends with status 0."""
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image.save("image.png")
    Path("more_images").mkdir()
    image.save("more_images/one.png")
    np.save("rows.npy", np.zeros((3, 1, 8, 8)))
    ran = runner(*[folder if word == "RUN" else word for word in shlex.split(line)[3:]])

    assert ran.status == 0, ran.err
