"""Check datasets of torchvision that download by themselves: where to, and what verifies it.

torchvision compares an MD5 at most, and lists no SHA-256. What `dataset.downloads` names is verified by its SHA-256.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.check.imports import TargetError, import_object
from runner.config.check.places import find_outside
from runner.core.errors import Mistake

Path_ = tuple[str | int, ...]


# Classes whose downloads have no checksum of any kind, or only some of them (torchvision 0.20 to 0.26).
UNVERIFIED = {"FGVCAircraft", "Kinetics", "Kitti", "LFWPairs", "LFWPeople", "Middlebury2014Stereo", "SBU"}


INSTEAD = "list the file under `dataset.downloads` with its SHA-256"


@dataclass(frozen=True)
class OwnDownload:
    """Dataset of torchvision that a config tells to download.

    Attributes:
        path: of the component.
        name: of the class.
        root: the folder that it downloads to.
    """

    path: Path_
    name: str
    root: str


def find_own_downloads(path: Path_, value: Any, trust: Sequence[str] = ()) -> Iterator[OwnDownload]:
    """Find the datasets of torchvision, also nested ones, that would download."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from find_own_downloads((*path, index), inner, trust)
    if not isinstance(value, dict):
        return
    if isinstance(value.get("_target_"), str):
        yield from _judge_dataset(path, value, trust)
    for name, inner in value.items():
        yield from find_own_downloads((*path, name), inner, trust)


def _judge_dataset(path: Path_, node: dict[str, Any], trust: Sequence[str]) -> Iterator[OwnDownload]:
    try:
        target = import_object(node["_target_"], trust)
    except TargetError:  # said already
        return
    if not isinstance(target, type) or not target.__module__.startswith("torchvision.datasets."):
        return
    names = list(inspect.signature(target).parameters)
    given = dict(zip(names, node.get("_args_", []), strict=False)) | node
    if given.get("download"):
        yield OwnDownload(path, target.__name__, str(given.get("root", "")))


def check_own_download(
    found: OwnDownload, is_argument: Callable[[Path_], bool], trust: Sequence[str] = ()
) -> Iterator[Mistake]:
    """Yield the mistakes of a dataset that downloads; what stands on the command line is its user's own."""
    key = ".".join(map(str, found.path))
    if not is_argument((*found.path, "root")):
        yield from find_outside(f"{key}.root", found.root, trust)
    if found.name in UNVERIFIED and not is_argument((*found.path, "download")):
        rule = f"fetches files that nothing verifies ({found.name} has no checksums of all of them)"
        remedy = f"{INSTEAD}, or say `{key}.download=true` on the command line, where it is your own"
        yield Mistake(f"{key}.download", rule, value=True, remedy=remedy)


def describe_own_download(found: OwnDownload) -> str:
    """Describe how what a dataset downloads is verified."""
    key = ".".join(map(str, found.path))
    return f"{key}.download: torchvision verifies what comes into {found.root} by MD5 alone; for a SHA-256 {INSTEAD}"
