"""Pictures of runs as thumbnails: of `artifacts/`, of TensorBoard's files, and of `show`.

The files may come from a stranger: each is opened within limits, decoded by Pillow as one of a few plain formats, and
encoded anew. An SVG of `show` stays as it is: a browser shows it as a picture, without scripts and without requests.
"""

import base64
import contextlib
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.sweep.report.html.columns import escape_text

MOST_RUNS = 12  # whose pictures are shown


MOST_OF_A_RUN = 24


MOST_BYTES = 20_000_000  # of one picture's file


MOST_SVG_BYTES = 100_000


MOST_PIXELS = 40_000_000


MOST_FILE_BYTES = 300_000_000  # of one of TensorBoard's files


LONGEST_SIDE = 640  # pixels of a thumbnail


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


_SHOWN = {*_SUFFIXES, ".svg"}  # `show schedule` draws one


_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class FoundPicture:
    """Picture of a run: its name, its step (None where it has none) and the content of its file."""

    name: str
    step: int | None
    content: bytes


def make_pictures(
    runs: Sequence[tuple[int, Path, str]], budget: int, shown: Path = Path("outputs/show")
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make thumbnails of the pictures of runs: of each name the latest step; return them and notes.

    Args:
        runs: number in the report, folder and name of each run, the most important first.
        budget: bytes of the thumbnails in the page.
        shown: folder with what `show` has drawn, by the name of the run.
    """
    made: list[dict[str, Any]] = []
    left = 0
    given: list[tuple[int | None, FoundPicture]] = []
    with_pictures = 0
    for run, folder, _ in runs:
        found = list(_find_latest(folder)) if with_pictures < MOST_RUNS else []
        with_pictures += bool(found)
        given += [(run, picture) for picture in found]
    for name in dict.fromkeys(name for _, _, name in runs):
        if re.fullmatch(r"[\w.+=-]+", name) and name.strip("."):
            given += [(None, replace(one, name=f"show/{name}/{one.name}")) for one in _list_shown(shown / name)]
    for number, picture in given:
        thumbnail = make_thumbnail(picture.content)
        if thumbnail is None or len(thumbnail["src"]) > budget:
            left += thumbnail is not None
            continue
        budget -= len(thumbnail["src"])
        made.append({"run": number, "name": escape_text(picture.name), "step": picture.step, **thumbnail})
    notes = [f"{left:,} pictures are left out to keep the file small"] if left else []
    if with_pictures >= MOST_RUNS < len(runs):
        notes.append(f"pictures are of the first {MOST_RUNS} runs that have some")
    return made, notes


def _find_latest(folder: Path) -> Iterator[FoundPicture]:
    """Find the pictures of a run, of each name the latest step."""
    latest: dict[str, FoundPicture] = {}
    for picture in (*_list_artifacts(folder), *_list_tensorboard(folder / "tb")):
        if picture.name not in latest and len(latest) >= MOST_OF_A_RUN:
            continue
        if picture.name not in latest or (picture.step or 0) >= (latest[picture.name].step or 0):
            latest[picture.name] = picture
    yield from latest.values()


def _list_artifacts(folder: Path) -> Iterator[FoundPicture]:
    """Yield the latest picture of each folder below `artifacts/`; no link is followed."""
    waiting, count = [folder / "artifacts"], 0
    while waiting and count < 1_000:
        place = waiting.pop(0)
        latest: tuple[int, Path] | None = None
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                count += 1
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False) and path.suffix.lower() in _SUFFIXES:
                    match = _STEP.match(entry.name)
                    step = int(match[1]) if match and len(match[1]) < 16 else 0
                    latest = max(latest or (-1, path), (step, path))
        if latest is not None:
            with contextlib.suppress(OSError):
                content = safe_io.read_bytes(latest[1], MOST_BYTES)
                yield FoundPicture(str(place.relative_to(folder / "artifacts")), latest[0], content)


def _list_shown(folder: Path) -> Iterator[FoundPicture]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_file(follow_symlinks=False) and Path(e.name).suffix in _SHOWN]
        for name in sorted(names)[:MOST_OF_A_RUN]:
            with contextlib.suppress(OSError):
                yield FoundPicture(name, None, safe_io.read_bytes(folder / name, MOST_BYTES))


# ---- TensorBoard's files: records of length, checksum, `Event`, checksum; in it fields of tag and content


def _list_tensorboard(folder: Path) -> Iterator[FoundPicture]:
    """Yield every picture in the event files of a run."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if ".tfevents." in e.name and e.is_file(follow_symlinks=False))
    except OSError:
        return
    for name in names[-4:]:
        with contextlib.suppress(OSError, ValueError, struct.error), safe_io.open_read(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            while file.tell() + 16 < size <= MOST_FILE_BYTES:
                length = struct.unpack("<Q", file.read(12)[:8])[0]
                if length > min(MOST_BYTES, size):
                    break
                data = file.read(length)
                file.read(4)
                if b"\x89PNG" in data or b"\xff\xd8\xff" in data:
                    yield from _parse_event(data)


def _parse_event(data: bytes) -> Iterator[FoundPicture]:
    fields = list(_list_fields(data))
    step = next((value for number, value in fields if number == 2 and isinstance(value, int)), 0)
    for summary in (value for number, value in fields if number == 5 and isinstance(value, bytes)):
        for message in (value for number, value in _list_fields(summary) if number == 1 and isinstance(value, bytes)):
            parts = dict(_list_fields(message))
            tag, image = parts.get(1), parts.get(4)
            content = dict(_list_fields(image)).get(4) if isinstance(image, bytes) else None
            if isinstance(tag, bytes) and isinstance(content, bytes):
                yield FoundPicture(tag.decode(errors="replace"), step, content)


def _list_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a Protocol Buffers message. Raises ValueError."""
    at = 0
    while at < len(data):
        key, at = _parse_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _parse_varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _parse_varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("a field of an unknown kind")
        if at + length > len(data):
            raise ValueError("a field that is cut off")
        yield key >> 3, data[at : at + length]
        at += length


def _parse_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that is cut off")


def make_thumbnail(content: bytes) -> dict[str, Any] | None:
    """Make a thumbnail of a picture: `src` (a data URL), `width`, `height`; None of what is none."""
    from PIL import Image

    if content.startswith(b"<svg "):
        return _make_drawing(content)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return None
            picture = opened.convert("RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB")
    except Exception:  # noqa: BLE001  Pillow raises anything for a damaged file
        return None
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=82, method=1)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"src": source, "width": picture.width, "height": picture.height}


def _make_drawing(content: bytes) -> dict[str, Any] | None:
    """Make a picture of an SVG: a browser runs no script of one in an `img`, and loads nothing for it."""
    size = re.match(rb'<svg [^>]*?\bwidth="(\d{1,4})" height="(\d{1,4})"', content)
    if size is None or len(content) > MOST_SVG_BYTES:
        return None
    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return {"src": source, "width": int(size[1]), "height": int(size[2])}
