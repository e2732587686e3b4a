"""Shards in the layout of WebDataset: tar files whose members of one name are a sample (`0001.jpg`, `0001.cls`)."""

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "ppm")
LARGEST = 2**30  # bytes of a member


class TarShards(IterableDataset[dict[str, Any]]):
    """Samples of tar files, read from their beginning without unpacking; a sample is a dict of decoded members.

    Images become PIL images (RGB), `cls` a number, `npy` a tensor, `json` what it holds, `txt` a text, anything else
    bytes. Nothing is unpickled. Of several workers each reads its own shards, so there should be at least as many.

    Args:
        shards: paths, with `{000..009}` for numbers and `*` in the name of the file.
        members: names of a sample's members to their endings, several with `|`: `{image: jpg|png, label: cls}`.
        shuffle: samples that are kept to draw from, in another order of shards each epoch; 0 keeps the order.

    Raises:
        ValueError: there are no shards, or a sample lacks a member, with its shard and name.
    """

    def __init__(self, shards: str | Sequence[str], members: Mapping[str, str], shuffle: int = 0) -> None:
        self.shards = list_shards(shards)
        self.members, self.shuffle = dict(members), shuffle

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        mine = self.shards if worker is None else self.shards[worker.id :: worker.num_workers]
        if self.shuffle:
            mine = [mine[place] for place in torch.randperm(len(mine)).tolist()]
        samples = (decode_members(row, self.members) for shard in mine for row in read_shard(shard))
        yield from shuffle_stream(samples, self.shuffle) if self.shuffle else samples


class DecodedMembers(IterableDataset[dict[str, Any]]):
    """Samples of the library `webdataset` (or of anything that yields bytes by ending), decoded as `TarShards` does.

    Args:
        source: iterable of mappings of endings to bytes, `webdataset.WebDataset` for instance.
        members: names of a sample's members to their endings.
    """

    def __init__(self, source: Iterable[Mapping[str, Any]], members: Mapping[str, str]) -> None:
        self.source, self.members = source, dict(members)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (decode_members(row, self.members) for row in self.source)


def list_shards(shards: str | Sequence[str]) -> list[str]:
    """List the paths that patterns of shards name, in order.

    Raises:
        ValueError: a pattern names no file.
    """
    found: list[str] = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        paths = [path for one in expand_braces(pattern) for path in _list_matches(Path(one))]
        if not paths:
            raise ValueError(f"there are no shards {pattern}")
        found += paths
    return found


def _list_matches(path: Path) -> list[str]:
    return sorted(map(str, path.parent.glob(path.name))) if re.search(r"[*?\[]", path.name) else [str(path)]


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..009}` to ten paths, and `{a,b}` to two."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    words = match[1].split(",")
    if ends is not None:
        words = [str(number).zfill(len(ends[1])) for number in range(int(ends[1]), int(ends[2]) + 1)]
    return [path for word in words for path in expand_braces(pattern[: match.start()] + word + pattern[match.end() :])]


def read_shard(path: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar file: bytes by ending, with `__key__` and `__url__`."""
    with tarfile.open(path, "r|*") as archive:
        files = ((*_split_name(entry.name), entry) for entry in archive if entry.isfile())
        for key, group in itertools.groupby(files, key=lambda named: named[0]):
            sample: dict[str, Any] = {"__key__": key, "__url__": path}
            for _, ending, entry in group:
                if entry.size > LARGEST:
                    raise ValueError(f"{path}: {entry.name} has {entry.size:,} bytes, more than {LARGEST:,}")
                file = archive.extractfile(entry)
                assert file is not None
                sample[ending] = file.read()
            yield sample


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's name to the sample's and its ending, at the first dot of the file's own name."""
    folder, _, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}/{stem}", ending.lower()


def decode_members(sample: Mapping[str, Any], members: Mapping[str, str]) -> dict[str, Any]:
    """Decode the members of a sample by their endings.

    Raises:
        ValueError: the sample lacks one of them, or it cannot be decoded.
    """
    place = f"{sample.get('__url__', '')}: sample {sample.get('__key__', '')}".lstrip(": ")
    made = {}
    for name, endings in members.items():
        ending = next((one for one in endings.lower().split("|") if one in sample), None)
        if ending is None:
            have = ", ".join(key for key in sample if not key.startswith("__"))
            raise ValueError(f"{place} has no member {endings}: it has {have}")
        try:
            made[name] = decode_member(ending.rpartition(".")[2], sample[ending])
        except (ValueError, OSError) as error:
            raise ValueError(f"{place}: its {ending} cannot be read: {error}") from error
    return made


def decode_member(ending: str, content: Any) -> Any:
    """Decode the bytes of a member by its ending; what is no bytes is decoded already."""
    if not isinstance(content, bytes):
        return content
    if ending in IMAGES:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    if ending == "npy":
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
    if ending in ("cls", "cls2", "index", "inx", "id"):
        return int(content)
    if ending == "json":
        return json.loads(content)
    return content.decode() if ending in ("txt", "text", "transcript") else content


def shuffle_stream(samples: Iterable[Any], kept: int) -> Iterator[Any]:
    """Yield samples in random order from a buffer of `kept` of them, with draws of the global generator."""
    waiting: list[Any] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) > kept:
            place = int(torch.randint(len(waiting), ()))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
    while waiting:
        place = int(torch.randint(len(waiting), ()))
        waiting[place], waiting[-1] = waiting[-1], waiting[place]
        yield waiting.pop()
