"""Find or download a file of weights: a path, a run, a folder of the Hub, a URL, a torchvision name."""

import json
import re
import shlex
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import hub

from runner.core.download import fetch
from runner.core.errors import ConfigError
from runner.core.files import read_small
from runner.core.paths import PACKAGE
from runner.core.patterns import find_nearest
from runner.model.pretrained.mistakes import make_error

MOST_JSON = 1 << 26  # bytes of an index of shards, or of a manifest


SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".npz")


BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state)\.\w+"
)  # as the Hub's trainer


SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class LocatedWeights:
    """Found file of weights; `said` describes the search, `sha256` is the expected hash or its prefix."""

    file: Path
    said: list[str] = field(default_factory=list)
    sha256: str = ""


def locate(path: str, *, sha256: str | None = None, builder: str = "", download: bool = True) -> LocatedWeights | None:
    """Find the file that `path` denotes.

    Args:
        path: a file (`conf/…` also means ours); a run directory (its `best.pt` where there is one, else `last.pt`;
            `RUN/last.pt` does too); an http(s) URL; a torchvision weights name, in full
            (`ResNet18_Weights.IMAGENET1K_V1`) or, where `builder` is torchvision's, short (`IMAGENET1K_V1`).
        sha256: what the content must have, hexadecimal; required of a URL.
        builder: the dotted path of the model's function, `torchvision.models.resnet18`.
        download: whether to fetch what is not in torch hub's cache.

    Returns:
        The file, or None where it would have to be downloaded first.

    Raises:
        ConfigError: there is no such file, name or hash.
        RunError: the download failed.
    """
    if re.match(r"https?://", path):
        if sha256 is None:
            raise make_error("must be given for a URL: a download is verified", path, key="sha256", kind="missing")
        name = Path(urllib.parse.urlparse(path).path).name or "weights"
        return _fetch_cached(path, f"{sha256[:16]}-{name}", sha256, download=download)
    local = _resolve_shipped(Path(path).expanduser())
    if local.is_dir():
        return _find_in_folder(local, sha256)
    if not local.exists() and local.name in {"best.pt", "last.pt"} and (local.parent / "checkpoints").is_dir():
        local = local.parent / "checkpoints" / local.name
    if local.exists():
        return LocatedWeights(local, [], sha256 or _read_recorded_sha256(local))
    if re.fullmatch(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*", path):
        url = _find_torchvision_url(path, builder)
        name = url.rpartition("/")[2]
        prefix = re.search(r"-([0-9a-f]{8,})\.", name)  # torch's convention for names of downloads
        return _fetch_cached(url, name, sha256 or (prefix.group(1) if prefix else ""), download=download)
    beside = sorted(p.name for p in local.parent.glob("*") if p.is_file()) if local.parent.is_dir() else []
    near = find_nearest(local.name, beside)
    remedy = f"did you mean `{local.parent / near}`?" if near else "paths are relative to the working directory"
    raise make_error(
        "must be a file, a run directory, a URL or a torchvision weights name", path, remedy, near, kind="file"
    )


def _resolve_shipped(file: Path) -> Path:
    """Resolve `conf/…` in the working directory, then in the folders that are shipped."""
    shipped = [root / file for root in (PACKAGE, PACKAGE.parent)] if file.parts[:1] == ("conf",) else []
    return next((place for place in [file, *shipped] if place.exists()), file)


def _find_in_folder(folder: Path, sha256: str | None) -> LocatedWeights:
    """Find weights in a folder: a run's best or last, an index of shards, or the only file."""
    checkpoints = folder if (folder / "manifest.json").exists() else folder / "checkpoints"
    for name in ("best.pt", "last.pt"):
        link = checkpoints / name
        if link.exists():
            return LocatedWeights(link, [f"{name} of the run {folder}"], sha256 or _read_recorded_sha256(link))
    if find_unpacked(folder) is not None:
        return LocatedWeights(folder, ["a file of torch.save, unpacked into a folder"], sha256 or "")
    entries = sorted(entry.name for entry in folder.iterdir())
    files = [name for name in entries if (folder / name).is_file()]
    indices = [name for name in files if name.endswith(".index.json")]
    weights = [name for name in files if name.endswith(SUFFIXES) and not BESIDE.fullmatch(name)]
    weights = [name for name in weights if not indices or not SHARD.fullmatch(name)]
    choice = [*indices, *weights]
    if len(choice) > 1:  # the Hub has the same weights in several formats
        choice = [name for name in choice if ".safetensors" in name] or choice
    if len(choice) == 1:
        return LocatedWeights(folder / choice[0], [f"{choice[0]} of the folder {folder}"], sha256 or "")
    rule = "must be a file, or a folder with one file of weights (a run directory, or one of the Hub)"
    if choice:
        names = ", ".join(choice[:8]) + (", …" if choice[8:] else "")
        near = str(folder / choice[0])
        raise make_error(
            f"{rule}, and it has {names}", str(folder), f"name the file: `pretrained.path={near}`", near, kind="file"
        )
    raise make_error(rule, str(folder), _suggest_remedy(folder, entries), kind="file")


def _suggest_remedy(folder: Path, entries: Sequence[str]) -> str:
    """Suggest a remedy for a folder without weights."""
    if ".metadata" in entries and any(name.endswith(".distcp") for name in entries):
        command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return f"it is a distributed checkpoint: `{command} {shlex.quote(str(folder))} weights.pt` makes one file of it"
    if "saved_model.pb" in entries:
        return "it is a SavedModel of TensorFlow: load it there, and save a mapping of names to tensors"
    below = [
        f"{name}/{inner.name}"
        for name in entries[:100]
        if (folder / name).is_dir()
        for inner in sorted((folder / name).iterdir())[:100]
        if inner.name.endswith(SUFFIXES)
    ]
    if below:
        return f"name the file: `pretrained.path={folder / below[0]}`" + (
            f" ({len(below)} are below it)" if below[1:] else ""
        )
    return f"it has {', '.join(entries[:8])}" if entries else "it is empty"


def find_unpacked(folder: Path) -> Path | None:
    """Find the folder, `folder` or its only subfolder, that is an unpacked archive of torch.save."""
    inner = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    for place in [folder, *(inner if len(inner) == 1 and inner[0].is_dir() else [])]:
        if (place / "data.pkl").is_file() and ((place / "version").is_file() or (place / "data").is_dir()):
            return place
    return None


def _read_recorded_sha256(file: Path) -> str:
    """Return the hash that a run's manifest records for its checkpoint; else empty."""
    real = file.resolve()
    try:
        entries = json.loads(read_small(real.parent / "manifest.json", MOST_JSON))["entries"]
        return next(str(entry["sha256"]) for entry in entries if entry["file"] == real.name)
    except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError):
        return ""


def _find_torchvision_url(name: str, builder: str) -> str:
    from torchvision import models  # over a second, for those who use it

    family, _, member = name.rpartition(".")
    try:
        if family:
            return str(models.get_weight(name).url)
        if not builder.startswith("torchvision.models."):
            remedy = f"give it in full, like ResNet18_Weights.{name}"
            raise make_error(
                "must say whose weights it means, since the model is not torchvision's own",
                name,
                remedy,
                kind="missing",
            )
        choices: Any = models.get_model_weights(builder.rpartition(".")[2])
    except (ValueError, AttributeError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise make_error("must be a file or a torchvision weights name", name, str(error), kind="file") from error
    if member not in choices.__members__:
        known = list(choices.__members__)
        near = find_nearest(member, known)
        raise make_error(
            f"must be one of {', '.join(known)} for {builder}", name, near and f"did you mean `{near}`?", near
        )
    return str(choices[member].url)


def _fetch_cached(url: str, name: str, sha256: str, *, download: bool) -> LocatedWeights | None:
    file = Path(hub.get_dir()) / "checkpoints" / name
    if file.exists():
        return LocatedWeights(file, [f"{url}, found in torch hub's cache"], sha256)
    if not download:
        return None
    fetch(url, file, sha256)
    return LocatedWeights(file, [f"downloaded from {url}"], sha256)
