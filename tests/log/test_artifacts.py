"""Artifacts become files that any program opens, and messages for TensorBoard."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runner.core.errors import RunError
from runner.log.artifacts import collect_artifacts, place_artifact, write_artifacts


def open_picture(artifact):
    return np.array(Image.open(io.BytesIO(artifact.content)))


def test_pictures_keep_their_pixels():
    one = torch.linspace(0, 1, 12).view(1, 3, 4)
    colours = torch.arange(36, dtype=torch.uint8).view(3, 3, 4)
    found = collect_artifacts("a", {"grey": one, "plane": one[0].numpy(), "colours": colours, "bf16": one.bfloat16()})
    grey, plane, rgb, half = map(open_picture, found.artifacts)

    expected = (one[0] * 255).round().byte().numpy()
    assert all((expected == picture[..., 0]).all() for picture in (grey, plane))
    assert (colours.movedim(0, -1).numpy() == rgb).all()
    assert half.shape == (3, 4, 3)
    assert [artifact.shown[0].image.width for artifact in found.artifacts] == [4] * 4


def test_several_pictures_are_a_sheet():
    sheet = open_picture(collect_artifacts("a", torch.rand(9, 3, 5, 6)).artifacts[0])

    assert sheet.shape == (2 * 7 - 2, 8 * 8 - 2, 3)
    assert (sheet[5:7] == 255).all()


def test_values_beyond_white_are_white():
    sheet = open_picture(collect_artifacts("a", torch.tensor([[[-1.0, 2.0, float("nan")]] * 2])).artifacts[0])

    assert sheet[0, :, 0].tolist() == [0, 255, 0]


def test_sound_is_a_wav_file():
    (artifact,) = collect_artifacts("a", {"audio": torch.tensor([[0.0, 1.0, -1.0]] * 2), "rate": 8000}).artifacts
    with wave.open(io.BytesIO(artifact.content)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 3)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, 0, 32767, 32767, -32767, -32767]
    assert artifact.shown[0].audio.sample_rate == 8000


class Figure:
    """As matplotlib's: it saves itself."""

    def savefig(self, file, format):  # noqa: A002  matplotlib's word
        Image.new("RGBA", (3, 2)).save(file, format=format)


def test_everything_else_is_a_file_of_its_kind(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n")
    given = {
        "note": "hello",
        "figure": Figure(),
        "table": tmp_path / "table.csv",
        "raw": b"\0\1",
        "array": torch.arange(3),
        "data": np.array([[1.0, 20.0], [3.0, 4.0]]),
        "later": lambda: ["x", None],
        "none": None,
    }
    found = collect_artifacts("a", given)
    suffixes = {artifact.name: artifact.suffix for artifact in found.artifacts}

    assert suffixes == {
        "a/note": ".txt",
        "a/figure": ".png",
        "a/table": ".csv",
        "a/raw": ".bin",
        "a/array": ".npy",
        "a/data": ".npy",
        "a/later/0": ".txt",
    }
    assert np.load(io.BytesIO(found.artifacts[4].content)).tolist() == [0, 1, 2]


def test_numbers_are_no_files():
    found = collect_artifacts("fid", {"": 1, "x": torch.tensor(2.5), "y": np.float32(3), "z": {"deep": True}})

    assert found.numbers == {"fid/": 1.0, "fid/x": 2.5, "fid/y": 3.0, "fid/z/deep": 1.0}
    assert found.artifacts == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "a/x gives object, and an artifact must be a number, a text"),
        (Path("nowhere.png"), r"a/x gives the file nowhere\.png, which does not exist"),
        ({"audio": torch.zeros(2, 3, 4), "rate": 1}, r"must be \[T\] or \[channels, T\]"),
        (["a"] * 1001, "more than 1,000 artifacts"),
        (np.array([object()]), "gives ndarray"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(value, says):
    with pytest.raises(RunError, match=says):
        collect_artifacts("a", {"x": value})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "artifacts/a/b/step_3.txt"),
        ("a/../../b", "artifacts/a/_/_/b/step_3.txt"),
        ("a/.ssh/x y", "artifacts/a/ssh/x_y/step_3.txt"),
        ("a//c\0d", "artifacts/a/_/c_d/step_3.txt"),
    ],
)
def test_no_name_leaves_the_folder(name, expected, tmp_path):
    artifact = collect_artifacts(name, "text").artifacts[0]

    assert str(place_artifact(tmp_path, artifact, 3).relative_to(tmp_path)) == expected


def test_a_file_is_written_whole_and_again(tmp_path):
    shown = []
    log = type("Log", (), {"show": lambda _, step, values: shown.append((step, len(values)))})()
    for text in ("first", "second"):
        write_artifacts(tmp_path, log, 4, collect_artifacts("a", [text, b"raw"]))

    assert (tmp_path / "artifacts/a/0/step_4.txt").read_text() == "second"
    assert shown == [(4, 1), (4, 1)]
