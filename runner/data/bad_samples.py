"""Bad samples: detection, report, and leaving them out where `loader.bad_samples` allows it."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.core import safe_io
from runner.core.errors import RunError
from runner.core.layouts import is_strided, list_strided_parts
from runner.data.interfaces import Place, iterate_members

LISTED = "bad_samples.jsonl"  # in the run directory


@dataclass(frozen=True)
class BadSample:
    """A bad sample: one that the dataset cannot give, or whose values are invalid.

    Attributes:
        index: its number in the dataset; of an iterable one, how many came before it (from the same worker).
        error: what is wrong.
        file: its file, where that is known.
        worker: the worker that counted, where an iterable dataset's samples come from several.
        final: nothing comes after it, so it cannot be left out.
    """

    index: int
    error: str
    file: str = ""
    worker: int | None = None
    final: bool = False


@dataclass
class BadSamples:
    """Bad samples of a split: the first raises, or each is listed in a file and left out.

    Attributes:
        split: its name, for messages.
        skip: whether to leave bad samples out.
        limit: how many may be left out.
        folder: the run directory, where `bad_samples.jsonl` lists them.
        classes: a class index at `target` must be below it; None: nothing is known.
        target: the place of the class index.
    """

    split: str = "train"
    skip: bool = False
    limit: int = 100
    folder: Path | None = None
    classes: int | None = None
    target: Place | None = None
    found: set[int | tuple[int, int]] = field(default_factory=set)  # indices, with the worker where that counts

    def __post_init__(self) -> None:
        """Read the bad samples that the run listed before a resume; none is listed or counted again."""
        listed = None if self.folder is None else self.folder / LISTED
        if listed is not None and listed.exists():
            for text in safe_io.read_bytes(listed).splitlines():
                with contextlib.suppress(ValueError, LookupError, TypeError):  # a line that is torn, or is none of ours
                    line = safe_io.parse_json(text)
                    if line["split"] == self.split:
                        index = int(line["index"])
                        self.found.add(index if "worker" not in line else (int(line["worker"]), index))

    def note(self, fault: BadSample) -> None:
        """Record a bad sample.

        Raises:
            RunError: faults are errors here, or there are too many of them.
        """
        where = f" ({fault.file})" if fault.file else ""
        who = "" if fault.worker is None else f" of worker {fault.worker}"
        message = f"{self.split} sample {fault.index}{who}{where}: {fault.error}"
        if fault.final and self.skip:
            message += "; an iterable dataset that raised has no next sample, so this one cannot be skipped"
        if not self.skip or fault.final:
            raise RunError(message)
        key = fault.index if fault.worker is None else (fault.worker, fault.index)
        if key in self.found:
            return
        self.found.add(key)
        if self.folder is not None:
            line: dict[str, Any] = {"split": self.split, "index": fault.index, "file": fault.file, "error": fault.error}
            if fault.worker is not None:
                line["worker"] = fault.worker
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with os.fdopen(safe_io.open_regular(self.folder / LISTED, flags), "a") as file:
                file.write(json.dumps(line) + "\n")
        if len(self.found) > self.limit:
            text = f"more than {self.limit} bad samples (loader.bad_samples_limit); the last: {message}"
            raise RunError(text)

    def wrong(self, sample: Any) -> str:
        """Describe the first invalid value of a sample (NaN, infinity, label out of range); empty if none."""
        for place, member in iterate_members(sample):
            if (
                isinstance(member, Tensor)
                and member.is_floating_point()
                and not all(map(_is_finite, _get_numbers(member)))
            ):
                return f"member {place!r} has NaN or infinite numbers"
            if place == self.target and self.classes is not None:
                label = _as_class(member)
                if label is not None and not 0 <= label < self.classes:
                    return f"the label {label} is out of range: dataset.classes is {self.classes}"
        return ""


def _get_numbers(tensor: Tensor) -> list[Tensor]:
    return [tensor] if is_strided(tensor) else [part for part in list_strided_parts(tensor) if part.is_floating_point()]


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_quantized or bool(torch.isfinite(tensor).all())


def find_none(sample: Any) -> str:
    """Describe a sample that is None or has a None member, which torch's collate refuses; else empty."""
    if sample is None:
        return "the dataset gives None, which is no sample"
    places = [place for place, member in iterate_members(sample) if member is None]
    return f"member {places[0]!r} is None, which no batch can hold" if places else ""


def find_unjoinable(sample: Any, place: str = "") -> str:
    """Describe the first tensor of a sample that torch's default collate cannot join; empty if none."""
    if isinstance(sample, Tensor):
        if is_strided(sample):
            return ""
        kind = "nested" if sample.is_nested else str(sample.layout).removeprefix("torch.")
        what = f"member {place[1:-1]}" if place else "a sample"
        return (
            f"{what} is a {kind} tensor, which the default collate cannot join: give a `loader.collate_fn` of your own"
        )
    nested = isinstance(sample, Mapping | tuple | list)
    members = iterate_members(sample) if nested else ()
    return next(filter(None, (find_unjoinable(member, f"{place}[{name!r}]") for name, member in members)), "")


def make_empty_batch_error(split: str) -> RunError:
    """Make the error for a batch whose samples were all left out."""
    text = f"a batch of the {split} split has no sound sample: with `loader.bad_samples: skip`, make batches larger"
    return RunError(text)


def _as_class(member: Any) -> int | None:
    if isinstance(member, Tensor):
        return int(member) if member.numel() == 1 and not member.is_floating_point() else None
    return int(member) if isinstance(member, int | np.integer) else None


def find_file(dataset: Any, index: int) -> str:
    """Return a sample's file if the dataset lists `samples`, `files` or `paths`; else empty."""
    inner, rows = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and isinstance(rows, list | tuple) and index < len(rows):  # a Subset
        return find_file(inner, int(rows[index]))
    for name in ("samples", "files", "paths"):
        entries = getattr(dataset, name, None)
        if isinstance(entries, list | tuple) and index < len(entries):
            entry = entries[index]
            entry = entry[0] if isinstance(entry, tuple | list) and entry else entry
            if isinstance(entry, str | os.PathLike):
                return os.fspath(entry)
    return ""
