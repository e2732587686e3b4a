"""Raw inputs from files: images and arrays become samples as the dataset of a run gives them.

A stranger's file opens nothing else: images are read by Pillow's plain formats within its limit of pixels, arrays
without unpickling, and a link in a folder is followed only inside that folder.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.core import files
from runner.core.errors import RunError
from runner.data.interfaces import Place
from runner.data.samples import to_image

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
)
ARRAYS = frozenset({".npy", ".npz"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none of which starts a program
ARCHIVE_BYTES = 16 * 2**30  # an archive of arrays may become so large, or so many times its own size:
ARCHIVE_RATIO = 200
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's mode of an image with so many channels


@dataclass(frozen=True)
class RawSample:
    """Form of one raw sample's member, as `dataset.sample` states it: a PIL mode, or shape and dtype.

    Attributes:
        mode: of PIL images; empty for tensors.
        shape: of a tensor; None where it is not stated.
        dtype: of a tensor; None where it is not stated.
    """

    mode: str = ""
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass
class RawInputs:
    """Samples from files, as a dataset: a mapping or a tuple with the model's inputs at their places.

    Attributes:
        names: one of each sample: its file, with the row where the file holds several.
        files: the same, for messages about a sample.
    """

    places: Sequence[Place]
    names: list[str] = field(default_factory=list)
    readers: list[Callable[[], Mapping[Place, Any]]] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """Names of the samples, where a message looks for them."""
        return self.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        members = self.readers[index]()
        if any(isinstance(place, str) for place in members):
            return dict(members)
        size = max(int(place) for place in members) + 1
        return tuple(members.get(place) for place in range(size))

    def add(self, name: str, reader: Callable[[], Mapping[Place, Any]]) -> None:
        """Append a sample, which is read when it is asked for."""
        self.names.append(name)
        self.readers.append(reader)

    def add_rows(self, name: str, columns: Mapping[Place, Any], names: Sequence[str] = ()) -> None:
        """Append the rows of arrays of one length, one sample each."""
        for row in range(len(next(iter(columns.values())))):
            said = names[row] if row < len(names) else f"{name}[{row}]"
            self.add(said, lambda row=row: {place: rows[row] for place, rows in columns.items()})  # type: ignore[misc]


def find_files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the image files of a folder, and below it, sorted; each with what is wrong with it, or "".

    A link is followed where it leads to a file inside the folder; hidden files are passed over.
    """
    inside = path.resolve()
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if name.startswith(".") or file.suffix.lower() not in IMAGES:
                continue
            leaves = file.is_symlink() and not file.resolve().is_relative_to(inside)
            yield file, "is a link that leads out of its folder: name it by itself" if leaves else ""


def read_image(path: Path, form: RawSample) -> Any:
    """Read an image as the dataset would give it: a PIL image of the form's mode, or a tensor [C, H, W].

    A tensor of floating point has its pixels scaled to [0, 1].

    Raises:
        ValueError: it is no image, has too many pixels, or cannot be a tensor of the stated dimensions.
        OSError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    mode = form.mode or _choose_mode(form.shape)
    with files.open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        try:
            with Image.open(file, formats=FORMATS) as opened:
                image = opened.convert(mode)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f"has more pixels than the {Image.MAX_IMAGE_PIXELS:,} that are taken for an image"
            ) from error
        except UnidentifiedImageError as error:
            raise ValueError(f"is no image of the formats {', '.join(FORMATS)}") from error
        except (SyntaxError, EOFError) as error:  # Pillow's, of a broken file
            raise ValueError(f"is damaged: {error}") from error
    if form.mode or form.shape is None:
        return image
    pixels = to_image(image)
    pixels = pixels if len(form.shape) == 3 else pixels[0]
    dtype = form.dtype or torch.float32
    return pixels.to(dtype) / 255 if dtype.is_floating_point else pixels.to(dtype)


def _choose_mode(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "RGB"  # as torchvision reads images
    if len(shape) == 2:
        return "L"
    if len(shape) != 3 or shape[0] not in CHANNELS:
        raise ValueError(f"is an image, and a sample of the run is a tensor {list(shape)}")
    return CHANNELS[shape[0]]


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the arrays of an `.npz` by name, or that of an `.npy` under "", without unpickling.

    Raises:
        ValueError: it holds objects, claims more numbers than it has bytes, or unpacks to far more than its size.
        OSError: it cannot be read.
    """
    if path.suffix.lower() == ".npz":
        _refuse_archive_bomb(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    with files.open_regular(path):  # no pipe
        pass
    return {"": np.load(path, mmap_mode="r", allow_pickle=False)}


def _refuse_archive_bomb(path: Path) -> None:
    import zipfile

    with files.open_regular(path) as file:
        packed = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
        except zipfile.BadZipFile as error:
            raise ValueError(f"is no archive of arrays: {error}") from error
    if size > max(100 * 2**20, min(ARCHIVE_BYTES, ARCHIVE_RATIO * packed)):
        raise ValueError(f"has {packed:,} bytes and becomes {size:,}, as a bomb does: save it anew with `numpy.savez`")


def as_rows(array: Any, form: RawSample, place: Place) -> Any:
    """View an array as raw samples: [N, ...], or one sample of the stated shape.

    Raises:
        ValueError: it has another shape than the stated sample, or no numbers.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"holds {array.dtype}, no numbers")
    stated = form.shape
    if form.mode:  # one image [H, W] or [H, W, C], or several
        image = 2 + (len(form.mode) > 1)
        if array.ndim == image:
            array = array[None]
        if array.ndim != image + 1 or array.dtype != np.uint8 or (image == 3 and array.shape[-1] != len(form.mode)):
            want = "[N, H, W]" if image == 2 else f"[N, H, W, {len(form.mode)}]"
            raise ValueError(f"must hold {form.mode} images as uint8 {want}, and is {array.dtype} {list(array.shape)}")
        return PilRows(array, form.mode)
    if stated is not None and array.shape == stated:
        array = array[None]
    if array.ndim == 0:
        raise ValueError("is a single number, and a batch of samples has a first dimension")
    if stated is not None and len(array.shape) != len(stated) + 1:
        raise ValueError(f"must be [N, {', '.join(map(str, stated))}] at {place!r}, and is {list(array.shape)}")
    return TensorRows(array, form.dtype)


@dataclass(frozen=True)
class TensorRows:
    """Rows of an array as tensors of a dtype; without one, doubles become single precision."""

    array: Any
    dtype: torch.dtype | None

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> Tensor:
        made = torch.from_numpy(np.array(self.array[row]))
        wanted = self.dtype or (torch.float32 if made.dtype == torch.float64 else made.dtype)
        if made.is_floating_point() and not wanted.is_floating_point and not torch.equal(made, made.round()):
            raise ValueError(f"holds fractions, and a sample of the run has {wanted}")
        return made.to(wanted)


@dataclass(frozen=True)
class PilRows:
    """Rows of an array as PIL images of a mode."""

    array: Any
    mode: str

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> Any:
        from PIL import Image

        return Image.fromarray(np.array(self.array[row])).convert(self.mode)


def count_rows(columns: Mapping[Place, Any]) -> int:
    """Count the rows of arrays, which must be equally many.

    Raises:
        ValueError: they are not.
    """
    sizes = {place: len(rows) for place, rows in columns.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{place} {size:,}" for place, size in sizes.items())
        raise ValueError(f"has arrays of different lengths: {listed}")
    return next(iter(sizes.values()), 0)


def as_input_tensor(value: Any) -> Tensor:
    """Convert a transformed input to a tensor.

    Raises:
        RunError: it is still an image, or something else that makes no batch.
    """
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if hasattr(value, "convert"):
        raise RunError("transform.eval leaves a PIL image, which no model takes")
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"transform.eval gives {type(value).__name__}, which no batch can hold") from error
