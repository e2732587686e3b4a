"""Weights from anywhere: find the file or download it, read it without running anything, find the tensors in it."""

import json
import re
import shlex
import tarfile
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, hub

from runner.download import digest, fetch
from runner.errors import ABSENT, ConfigError, Mistake, RunError
from runner.files import load_tensors
from runner.patterns import nearest

# Where people keep a model's state_dict in a checkpoint, and where a moving average of it.
USUAL = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
    *("model_weights", "net_state_dict", "network_state_dict", "params_state_dict"),
)
AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "params_ema")
NOT_WEIGHTS = re.compile(
    r".*(optim|sched|scaler|rng|random|loss|metric|hyper|config|args|callback|loop|epoch).*", re.IGNORECASE
)
SAFE_NAMES = re.compile(r"torch\.\w+Storage|torch\._(utils|tensor)\._rebuild\w*|collections\.OrderedDict")
DEEPEST = 4  # nestings searched for a state_dict


@dataclass(frozen=True)
class Located:
    """A file of weights; `said` tells how it was found, `sha256` what is known of its content (or of its beginning)."""

    file: Path
    said: list[str] = field(default_factory=list)
    sha256: str = ""


def _wrong(rule: str, value: object, remedy: str = "", suggestion: str = "", key: str = "path") -> ConfigError:
    shown = ABSENT if value is None else value
    return ConfigError([Mistake(f"pretrained.{key}", rule, shown, remedy=remedy, suggestion=suggestion)])


def locate(path: str, *, sha256: str | None = None, builder: str = "", download: bool = True) -> Located | None:
    """The file that `path` means.

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
            raise _wrong("must be given for a URL: a download is verified", path, key="sha256")
        name = Path(urllib.parse.urlparse(path).path).name or "weights"
        return _cached(path, f"{sha256[:16]}-{name}", sha256, download=download)
    local = _found(Path(path).expanduser())
    if local.is_dir():
        return _in_run(local, sha256)
    if not local.exists() and local.name in {"best.pt", "last.pt"} and (local.parent / "checkpoints").is_dir():
        local = local.parent / "checkpoints" / local.name
    if local.exists():
        return Located(local, [], sha256 or _recorded_sha256(local))
    if re.fullmatch(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*", path):
        url = _torchvision_url(path, builder)
        name = url.rpartition("/")[2]
        prefix = re.search(r"-([0-9a-f]{8,})\.", name)  # torch's convention for names of downloads
        return _cached(url, name, sha256 or (prefix.group(1) if prefix else ""), download=download)
    beside = sorted(p.name for p in local.parent.glob("*") if p.is_file()) if local.parent.is_dir() else []
    near = nearest(local.name, beside)
    remedy = f"did you mean `{local.parent / near}`?" if near else "paths are relative to the working directory"
    raise _wrong("must be a file, a run directory, a URL or a torchvision weights name", path, remedy, near)


def _found(file: Path) -> Path:
    """`conf/…` is looked for in the working directory and then, as options are, in what is shipped."""
    package = Path(__file__).parent
    shipped = [root / file for root in (package, package.parent)] if file.parts[:1] == ("conf",) else []
    return next((place for place in [file, *shipped] if place.exists()), file)


def _in_run(folder: Path, sha256: str | None) -> Located:
    checkpoints = folder if (folder / "manifest.json").exists() else folder / "checkpoints"
    for name in ("best.pt", "last.pt"):
        link = checkpoints / name
        if link.exists():
            return Located(link, [f"{name} of the run {folder}"], sha256 or _recorded_sha256(link))
    raise _wrong("must be a file, or a run directory with checkpoints/best.pt or last.pt", str(folder))


def _recorded_sha256(file: Path) -> str:
    """The hash that a run's manifest has of its checkpoint; empty elsewhere."""
    real = file.resolve()
    try:
        entries = json.loads((real.parent / "manifest.json").read_bytes())["entries"]
        return next(str(entry["sha256"]) for entry in entries if entry["file"] == real.name)
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return ""


def _torchvision_url(name: str, builder: str) -> str:
    from torchvision import models  # over a second, for those who use it

    family, _, member = name.rpartition(".")
    try:
        if family:
            return str(models.get_weight(name).url)
        if not builder.startswith("torchvision.models."):
            remedy = f"give it in full, like ResNet18_Weights.{name}"
            raise _wrong("must say whose weights it means, since the model is not torchvision's own", name, remedy)
        choices: Any = models.get_model_weights(builder.rpartition(".")[2])
    except (ValueError, AttributeError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _wrong("must be a file or a torchvision weights name", name, str(error)) from error
    if member not in choices.__members__:
        known = list(choices.__members__)
        near = nearest(member, known)
        raise _wrong(f"must be one of {', '.join(known)} for {builder}", name, near and f"did you mean `{near}`?", near)
    return str(choices[member].url)


def _cached(url: str, name: str, sha256: str, *, download: bool) -> Located | None:
    file = Path(hub.get_dir()) / "checkpoints" / name
    if file.exists():
        return Located(file, [f"{url}, found in torch hub's cache"], sha256)
    if not download:
        return None
    fetch(url, file, sha256)
    return Located(file, [f"downloaded from {url}"], sha256)


def read(located: Located) -> Any:
    """What the file holds: tensors and plain containers, nothing else, nothing executed.

    A zip archive (`torch.save`) is checked against its CRCs, as `torch.load` does not; all tensors are on the CPU.

    Raises:
        ConfigError: the file is damaged, is no such file, needs unpickling, or has another hash.
    """
    file = located.file
    try:
        if located.sha256:
            _verify_hash(file, located.sha256)
        with file.open("rb") as opened:
            head = opened.read(9)
        if head.startswith(b"PK"):
            _verify_archive(file)
        elif len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
            return _read_safetensors(file)
        elif head and tarfile.is_tarfile(file):  # torch would make a folder for it before it refuses
            raise RunError(f"{file} is a tar archive: unpack it, and name the file in it")
        return load_tensors(file)
    except OSError as error:
        raise _wrong(f"must be readable ({error.strerror or error})", str(file)) from error
    except RunError as error:
        rule = "must be a whole file of tensors: " + _what_is_wrong(error, file).removeprefix(f"{file} ")
        raise _wrong(rule, str(file)) from error


def _what_is_wrong(error: RunError, file: Path) -> str:
    """The error's text; where torch only says that it refuses, what it refuses."""
    refused = re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", str(error.__cause__))
    if "Weights only load failed" not in str(error):
        return str(error)
    if refused is None or refused.group(1).isdigit():
        return "its pickle is damaged, or asks for more than tensors and plain containers"
    # Files of before PyTorch 1.6 are plain pickles: names stand in them as text.
    found = {b".".join(name).decode() for name in re.findall(rb"c([\w.]+)\n([\w.]+)\n", file.read_bytes())}
    names = sorted(name for name in found | {refused.group(1)} if not SAFE_NAMES.fullmatch(name))
    return (
        f"holds pickled objects ({', '.join(names[:12])}), and loading them would run code: only tensors, numbers, "
        f"strings and plain containers are read; if you trust the file: "
        f"`python -m runner convert {shlex.quote(str(file))} --trust`"
    )


def _verify_hash(file: Path, sha256: str) -> None:
    actual = digest(file)
    if not actual.startswith(sha256):
        raise _wrong(f"must have the SHA-256 {sha256}", f"{file} with {actual}", "fetch it again, or correct the hash")


def _verify_archive(file: Path) -> None:
    """Every byte of the archive by its CRC; 300 of 300 flipped bits pass torch.load.

    Raises:
        RunError: one is wrong, or the archive is compressed: torch.save never does that, a decompression bomb does.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                trust = f"if you trust it: `python -m runner convert {shlex.quote(str(file))} --trust`"
                raise RunError(f"{file} is a TorchScript archive, code and all: {trust}")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise RunError(f"{file} is a compressed archive, which torch.save does not write: pack it anew")
            if all(record.CRC == 0 for record in records if record.file_size):
                return  # written with torch.serialization.set_crc32_options(False)
            damaged = archive.testzip()
    except RunError:
        raise
    except Exception as error:  # zipfile raises whatever a broken header leads it to
        raise RunError(f"{file} is cut short or damaged: {error}") from error
    if damaged is not None:
        raise RunError(f"{file} is damaged: the CRC of its record {damaged} is wrong")


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise _wrong("needs the package safetensors", str(file), "pip install safetensors") from error
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{file} is no whole safetensors file: {error}") from error


def find_state(raw: Any, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The state_dict in what a file holds: under `key`, or where it usually is.

    Args:
        raw: what `read` gave.
        key: a nested key, dotted where it is deeper (`checkpoint.model`); None searches.

    Returns:
        Names to tensors (`…_extra_state` may be anything), and what to tell: where it was, what was passed over.

    Raises:
        ConfigError: there is none, or more than one that may be meant; their keys are named.
    """
    path: list[str] = []
    if key is not None:
        raw, path = _descend(raw, key)
    found = _search(raw, path)
    if len(found) != 1:
        raise _no_state(raw, path, [".".join(place) for place, _ in found])
    place, state = found[0]
    said = [f"found under the key `{'.'.join(place)}`"] if place and place != path else []
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    passed = [name for name in state if name not in kept]
    if passed:
        said.append(f"passed over what is no tensor: {', '.join(passed[:8])}{', …' if passed[8:] else ''}")
    return kept, said


def _descend(raw: Any, key: str) -> tuple[Any, list[str]]:
    node, left = raw, key.split(".")
    path: list[str] = []
    while left:
        # A key may itself contain dots: the longest that exists.
        names = [".".join(left[:end]) for end in range(len(left), 0, -1)]
        name = next((name for name in names if isinstance(node, Mapping) and name in node), None)
        if name is None:
            known = [name for name in node if isinstance(name, str)] if isinstance(node, Mapping) else []
            near = nearest(left[0], known)
            where = f"`{'.'.join(path)}`" if path else "the file"
            holds = f"{where} has {', '.join(known[:12]) or f'no keys ({type(node).__name__})'}"
            raise _wrong("must be a key of the checkpoint", key, holds, ".".join([*path, near]) if near else "", "key")
        node, left = node[name], left[name.count(".") + 1 :]
        path.append(name)
    return node, path


def _search(node: Any, path: list[str], depth: int = DEEPEST) -> list[tuple[list[str], Mapping[str, Any]]]:
    """All mappings of tensors that may be meant, with their paths; the usual places first, averages after them."""
    if not isinstance(node, Mapping) or not depth:
        return []
    for usual in (USUAL, AVERAGES):
        found = [hit for name in usual if name in node for hit in _search(node[name], [*path, name], depth - 1)]
        if found:
            return found
    if any(isinstance(value, Tensor) for value in node.values()) and all(isinstance(name, str) for name in node):
        return [(path, node)]
    others = [n for n in node if isinstance(n, str) and n not in AVERAGES and not NOT_WEIGHTS.fullmatch(n)]
    return [hit for name in others for hit in _search(node[name], [*path, name], depth - 1)]


def _no_state(raw: Any, path: Sequence[str], found: Sequence[str]) -> ConfigError:
    where = f"key `{'.'.join(path)}`" if path else "the file"
    if found:
        remedy = f"say which: `pretrained.key={found[0]}`"
        return _wrong(
            f"must be given: {where} holds more than one state_dict, {', '.join(found)}", None, remedy, key="key"
        )
    if isinstance(raw, Mapping):
        names = ", ".join(str(name) for name in list(raw)[:12])
        holds = f"keys {names}, and none has tensors by name" if raw else "nothing: an empty dict"
    elif isinstance(raw, list | tuple):
        inside = next(iter(_inside(raw)), None)
        holds = f"a {type(raw).__name__} of {len(raw)}" + (
            f", a mapping of tensors at [{inside}]" if inside is not None else ""
        )
        holds += "; save the mapping itself"
    else:
        holds = f"a {type(raw).__name__}"
    return _wrong(f"must hold a state_dict (names and tensors), but {where} holds {holds}", None)


def _inside(items: Sequence[Any]) -> Iterator[int]:
    return (i for i, item in enumerate(items) if isinstance(item, Mapping) and len(_search(item, [])) == 1)
