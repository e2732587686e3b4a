"""Artifacts of steps and actions: pictures, texts, sound, arrays and files, below `artifacts/`."""

import re
import shutil
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from runner.core.errors import RunError
from runner.core.files import write_atomic
from runner.log import images, summaries
from runner.log.logger import Logger
from runner.log.predictions import EvaluationMonitor

SOUND = frozenset({"audio", "rate"})
MOST = 1_000  # artifacts of one action or step


@dataclass
class Artifact:
    """Artifact ready to be written: the content of a file, or the file itself, and TensorBoard's messages."""

    name: str
    suffix: str
    content: bytes | Path
    shown: list[Any] = field(default_factory=list)


@dataclass
class Collected:
    """All that one action or step gave: numbers by name, and artifacts."""

    numbers: dict[str, float] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)


class FirstArtifacts(EvaluationMonitor):
    """Artifacts of the first batch of a split for which the step gives some."""

    near = True

    def __init__(self, split: str) -> None:
        self.split, self.collected = split, Collected()

    def add(self, _batch: Any, outcome: Mapping[str, Any]) -> None:
        if outcome.get("artifacts") is not None and not self.collected.artifacts:
            self.collected = collect_artifacts(self.split, outcome["artifacts"])


def collect_artifacts(name: str, value: Any) -> Collected:
    """Collect the artifacts in a value: one, or several in mappings and lists, under names below `name`.

    A number is a number; a str is a text; a `Path` is a file to copy; bytes are the content of a file. A PIL image, a
    matplotlib figure, and an array or tensor [H, W], [C, H, W] (1, 3 or 4 channels) or [N, C, H, W] (a sheet) are
    pictures, floats from 0 to 1 or bytes; `{"audio": [T] or [C, T] from -1 to 1, "rate": 16000}` is sound; other
    arrays are NPY files. None is nothing, and a function without arguments is called for its value.

    Raises:
        RunError: something else is in it, or too much.
    """
    collected = Collected()
    for place, member in _walk(name, value):
        if len(collected.artifacts) >= MOST:
            raise RunError(f"{name} gives more than {MOST:,} artifacts at once")
        if isinstance(member, Real) or (isinstance(member, Tensor | np.ndarray | np.generic) and member.ndim == 0):
            collected.numbers[place] = float(member)
        else:
            collected.artifacts.append(make_artifact(place, member))
    return collected


def _walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if callable(value) and not isinstance(value, Tensor | type) and not hasattr(value, "savefig"):
        value = value()
    if value is None:
        return
    if isinstance(value, Mapping) and value.keys() != SOUND:
        for key, member in value.items():
            yield from _walk(f"{name}/{key}", member)
    elif isinstance(value, list | tuple):
        for number, member in enumerate(value):
            yield from _walk(f"{name}/{number}", member)
    else:
        yield name, value


def make_artifact(name: str, value: Any) -> Artifact:
    """Make the artifact of a value, see `collect_artifacts`.

    Raises:
        RunError: it is nothing that can be kept.
    """
    if isinstance(value, str):
        return Artifact(name, ".txt", value.encode(errors="replace"), [summaries.make_text(name, value)])
    if isinstance(value, Path):
        if not value.is_file():
            raise RunError(f"{name} gives the file {value}, which does not exist")
        return Artifact(name, "".join(value.suffixes[-2:]) or ".bin", value)
    if isinstance(value, bytes | bytearray):
        return Artifact(name, ".bin", bytes(value))
    if isinstance(value, Mapping) and value.keys() == SOUND:
        return _make_sound(name, value["audio"], value["rate"])
    if callable(getattr(value, "savefig", None)):  # a figure of matplotlib
        content = BytesIO()
        value.savefig(content, format="png")
        return _make_picture(name, _open_picture(content))
    if callable(getattr(value, "convert", None)) and hasattr(value, "tobytes"):
        return _make_picture(name, value)
    array = _to_array(value)
    if array is None:
        rule = "a number, a text, a picture, a figure, sound, an array, a file (Path) or bytes"
        raise RunError(f"{name} gives {type(value).__name__}, and an artifact must be {rule}")
    picture = draw_picture(array)
    if picture is not None:
        return _make_picture(name, picture)
    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    return Artifact(name, ".npy", content.getvalue())


def _to_array(value: Any) -> Any:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain.resolve_conj()).numpy()
    return value if isinstance(value, np.ndarray) and value.dtype != object else None


def draw_picture(array: Any) -> Any:
    """Draw an array [H, W], [C, H, W], [H, W, C] or [N, C, H, W] (a sheet); None for others."""
    from PIL import Image

    if (array.dtype != np.uint8 and array.dtype.kind != "f") or not array.size:
        return None
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        array = _place_in_rows(array)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return None
    if array.ndim == 2 and (1 in array.shape or (array.dtype != np.uint8 and not _is_shade(array))):
        return None
    plain = _to_bytes(array)
    return Image.fromarray(plain[..., 0] if plain.ndim == 3 and plain.shape[2] == 1 else plain)


def _place_in_rows(pictures: Any) -> Any:
    """Arrange pictures [N, C, H, W] in rows of up to 8, two white pixels apart, as [C, H, W]."""
    count, channels, height, width = pictures.shape
    columns = min(8, count)
    rows = -(-count // columns)
    white = 255 if pictures.dtype == np.uint8 else 1
    shape = (channels, rows * (height + 2) - 2, columns * (width + 2) - 2)
    sheet = np.full(shape, white, dtype=pictures.dtype)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + 2), number % columns * (width + 2)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def _is_shade(array: Any) -> bool:
    return bool((array >= 0).all() and (array <= 1).all())


def _to_bytes(array: Any) -> Any:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray((np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8))


def _open_picture(content: BytesIO) -> Any:
    from PIL import Image

    return Image.open(BytesIO(content.getvalue()))


def _make_picture(name: str, picture: Any) -> Artifact:
    shown = picture.convert("RGBA" if picture.mode in ("RGBA", "LA", "PA") else "RGB")
    png = images.encode_png(shown)
    return Artifact(name, ".png", png, [summaries.make_image(name, png, shown.width, shown.height)])


def _make_sound(name: str, samples: Any, rate: Any) -> Artifact:
    array = np.asarray(_to_array(samples) if isinstance(samples, Tensor) else samples, dtype=np.float64)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not 1 <= array.shape[0] <= 8 or int(rate) <= 0:
        shape = list(array.shape)
        raise RunError(f"{name} gives sound of the shape {shape} at a rate of {rate}: must be [T] or [channels, T]")
    plain = (np.nan_to_num(array).clip(-1, 1) * 32767).round().astype("<i2")
    content = BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(len(plain))
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(plain.T.tobytes())
    shown = [summaries.make_audio(name, content.getvalue(), int(rate), *plain.shape)]
    return Artifact(name, ".wav", content.getvalue(), shown)


def place_artifact(folder: Path, artifact: Artifact, step: int) -> Path:
    """Return the file of an artifact, `artifacts/<name>/step_<N><suffix>`, with a safe name."""
    parts = [re.sub(r"[^\w.=+-]", "_", part).strip(".") or "_" for part in artifact.name.split("/")]
    return folder.joinpath("artifacts", *parts, f"step_{step}{artifact.suffix}")


def write_artifacts(folder: Path, log: Logger, step: int, collected: Collected) -> None:
    """Write artifacts into the run directory, then show them in TensorBoard."""
    shown: list[Any] = []
    for artifact in collected.artifacts:
        file, content = place_artifact(folder, artifact, step), artifact.content
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, _make_writer(content))
        shown += artifact.shown
    if shown:
        log.show(step, shown)


def _make_writer(content: bytes | Path) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        if isinstance(content, bytes):
            file.write(content)
            return
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)

    return write
