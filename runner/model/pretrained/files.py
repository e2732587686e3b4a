"""Find or download a file of weights, read it without executing code, and find its tensors."""

import io
import json
import os
import pickletools
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

from runner.core.download import compute_sha256, fetch
from runner.core.errors import ABSENT, ConfigError, Kind, Mistake, RunError
from runner.core.files import open_regular, read_small
from runner.core.paths import PACKAGE
from runner.core.patterns import find_nearest
from runner.core.tensor_files import load_tensors

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


# Mappings looked into for one (twenty names count as one): a few that hold each other many times would never end.
MOST_SEARCHED = 20_000


MOST_JSON = 1 << 26  # bytes of an index of shards, or of a manifest


MOST_HEADER = 1 << 25  # bytes of a safetensors header: of a hundred thousand tensors it has ten million


MOST_NAMED = 1 << 26  # bytes of a pickle that are looked through for the names in it


SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".npz")


BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state)\.\w+"
)  # as the Hub's trainer


SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # its magic number, pickled


# Formats that are none of torch's, by their first bytes; `{}` stands for the file, quoted, `{{}}` without its ending.
FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "is compressed by gzip", "unpack it: `gunzip -k {file}`, and name what comes of it ({inner})"),
    (b"BZh", "is compressed by bzip2", "unpack it: `bunzip2 -k {file}`, and name what comes of it ({inner})"),
    (b"\xfd7zXZ\0", "is compressed by xz", "unpack it: `unxz -k {file}`, and name what comes of it ({inner})"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "unpack it: `unzstd {file}`, and name what comes of it ({inner})"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "unpack it: `unlz4 {file}`, and name what comes of it ({inner})"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it: `7z x {file}`, and name the file of weights in it"),
    (b"Rar!\x1a\x07", "is a RAR archive", "unpack it: `unrar x {file}`, and name the file of weights in it"),
    (
        b"\x93NUMPY",
        "is one array of NumPy (.npy), without a name",
        "save a mapping of names to tensors with torch.save",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "is an HDF5 file (Keras writes these)",
        "load it there, and save a mapping of names to tensors",
    ),
    (b"GGUF", "is a GGUF file (llama.cpp's)", "take the safetensors files that it was made from"),
)


@dataclass(frozen=True)
class LocatedWeights:
    """Found file of weights; `said` describes the search, `sha256` is the expected hash or its prefix."""

    file: Path
    said: list[str] = field(default_factory=list)
    sha256: str = ""


def _make_error(
    rule: str, value: object, remedy: str = "", suggestion: str = "", key: str = "path", kind: Kind = "value"
) -> ConfigError:
    shown = ABSENT if value is None else value
    return ConfigError([Mistake(f"pretrained.{key}", rule, shown, remedy=remedy, suggestion=suggestion, kind=kind)])


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
            raise _make_error("must be given for a URL: a download is verified", path, key="sha256", kind="missing")
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
    raise _make_error(
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
    if _find_unpacked(folder) is not None:
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
        raise _make_error(
            f"{rule}, and it has {names}", str(folder), f"name the file: `pretrained.path={near}`", near, kind="file"
        )
    raise _make_error(rule, str(folder), _suggest_remedy(folder, entries), kind="file")


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


def _find_unpacked(folder: Path) -> Path | None:
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
            raise _make_error(
                "must say whose weights it means, since the model is not torchvision's own",
                name,
                remedy,
                kind="missing",
            )
        choices: Any = models.get_model_weights(builder.rpartition(".")[2])
    except (ValueError, AttributeError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _make_error("must be a file or a torchvision weights name", name, str(error), kind="file") from error
    if member not in choices.__members__:
        known = list(choices.__members__)
        near = find_nearest(member, known)
        raise _make_error(
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


def read(located: LocatedWeights) -> Any:
    """Read tensors and plain containers from a file; nothing is executed.

    A zip archive (`torch.save`) is checked against its CRCs, as `torch.load` does not; all tensors are on the CPU. An
    index of shards (`….index.json`) stands for all that it names, a folder for the archive that was unpacked into it.

    Raises:
        ConfigError: the file is damaged, is no such file, needs unpickling, or has another hash.
    """
    file = located.file
    try:
        if file.is_dir():
            return _read_unpacked(file)
        with open_regular(file) as opened:
            head, size = opened.read(512), os.fstat(opened.fileno()).st_size
        _verify_size(file, size)
        if located.sha256:
            _verify_hash(file, located.sha256)
        if head.startswith(b"PK"):
            _verify_archive(file)
        elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            return _read_safetensors(file, int.from_bytes(head[:8], "little"))
        elif head.lstrip().startswith(b"{") and (shards := _read_index(file)):
            return _read_shards(file, shards)
        else:
            _refuse_format(file, head)
        return load_tensors(file)
    except OSError as error:
        raise _make_error(f"must be readable ({error.strerror or error})", str(file), kind="file") from error
    except MemoryError as error:
        raise _make_error("must fit into this machine's memory", str(file), kind="unavailable") from error
    except RunError as error:
        rule = "must be a whole file of tensors: " + _describe_refusal(error, file).removeprefix(f"{file} ")
        raise _make_error(rule, str(file), kind="file") from error


def _verify_size(file: Path, size: int) -> None:
    """Refuse a file larger than this machine's memory before a byte is read."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise RunError(f"{file} has {size:,} bytes, and this machine {memory:,} of memory")


def _refuse_format(file: Path, head: bytes) -> None:
    """Refuse a file that torch did not write; name its format and a remedy."""
    compressed_tar = re.fullmatch(r".+\.(tar\.\w+|tgz|tbz2?|txz)", file.name.lower())
    for magic, what, remedy in FORMATS:
        if head.startswith(magic):
            quoted = shlex.quote(str(file))
            if compressed_tar:
                raise RunError(
                    f"{file} is a compressed tar archive: unpack it (`tar xf {quoted}`), and name the file in it"
                )
            raise RunError(f"{file} {what}, which torch does not read: {remedy.format(file=quoted, inner=file.stem)}")
    if not head:
        return
    if head[:1] == b"\x80" and not head.startswith(TORCH_BEFORE_1_6):
        _refuse_pickle(file)
    if tarfile.is_tarfile(file):  # torch would make a folder for it before it refuses
        raise RunError(f"{file} is a tar archive: unpack it, and name the file in it")
    if head.lstrip().startswith((b"{", b"[")):
        raise RunError(f"{file} is text (JSON), not weights: name the file that has the tensors")


def _refuse_pickle(file: Path) -> None:
    """Refuse a pickle of Python's own `pickle.dump`; list the names it imports and a remedy.

    Raises:
        RunError: always, but for a broken one, which torch is left to describe.
    """
    names = _list_pickle_names(file)
    if names is None:
        return
    raise RunError(
        f"{file} is a plain pickle, which torch.save did not write; it asks for "
        f"{', '.join(names[:12]) or 'no objects'}; if you trust the file: "
        f"`python -m runner convert {shlex.quote(str(file))} --trust`"
    )


def _list_pickle_names(file: Path) -> list[str] | None:
    """List the names that a pickle would import, without importing them; None if it is broken."""
    with open_regular(file) as opened:
        content = opened.read(MOST_NAMED)
    names: set[str] = set()
    memo: dict[Any, str] = {}
    last, pushed = ["", ""], ""  # strings: the last two on the stack, and what the last operation left there
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            if opcode.name in {"GLOBAL", "INST"}:
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(last))
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed
            elif opcode.name.endswith("PUT"):
                memo[argument] = pushed
            else:
                left: Any = memo.get(argument, "") if opcode.name.endswith("GET") else argument
                pushed = left if isinstance(left, str) else ""
                last = [last[1], pushed] if pushed else last
    except Exception:  # noqa: BLE001  whatever a broken one leads to
        if len(content) < MOST_NAMED:
            return None
    return sorted(name for name in names if not SAFE_NAMES.fullmatch(name) and name.isprintable())


def _read_unpacked(folder: Path) -> Any:
    """Read an unpacked archive of torch.save as if it were packed again."""
    place = _find_unpacked(folder)
    assert place is not None
    archive = io.BytesIO()
    files = [entry for entry in sorted(place.rglob("*")) if entry.is_file() and not entry.name.startswith(".")]
    _verify_size(folder, sum(entry.stat().st_size for entry in files))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for entry in files:
            with open_regular(entry) as opened:
                packed.writestr(f"archive/{entry.relative_to(place)}", opened.read())
    return load_tensors(folder, content=archive)


def _read_index(index: Path) -> dict[str, str]:
    """Read an index of shards: tensor names and their files; empty if it is not an index.

    Raises:
        RunError: it names files elsewhere.
    """
    try:
        content = json.loads(read_small(index, MOST_JSON))
        found = content["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        return {}
    away = next((name for name in found.values() if Path(name).name != name or name == ".."), None)
    if away is not None:
        raise RunError(f"{index} names `{away}`, but the shards of an index lie beside it")
    return found


def _read_shards(index: Path, shards: Mapping[str, str]) -> dict[str, Any]:
    """Read all tensors of the files that an index names.

    Raises:
        ConfigError: one cannot be read.
        RunError: one is not there, or does not have what the index says.
    """
    names = sorted(set(shards.values()))
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise RunError(
            f"{index} needs {len(names)} shards beside it, and {', '.join(absent[:6])} is not there: fetch it"
        )
    _verify_size(index, sum((index.parent / name).stat().st_size for name in names))
    tensors: dict[str, Any] = {}
    for name in names:
        part, _ = find_state(read(LocatedWeights(index.parent / name)))
        if twice := part.keys() & tensors.keys():
            raise RunError(f"{index}: {name} has {min(twice)}, which another shard has too")
        if lacking := [tensor for tensor, of in shards.items() if of == name and tensor not in part]:
            raise RunError(f"{index} says that {name} has {lacking[0]}, and it has not: they are not of one save")
        tensors |= part
    return tensors


def _describe_refusal(error: RunError, file: Path) -> str:
    """Return the error's text, or the objects torch refuses if the error does not name them."""
    refused = re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", str(error.__cause__))
    if "Weights only load failed" not in str(error):
        return str(error)
    if refused is None or refused.group(1).isdigit():
        return "its pickle is damaged, or asks for more than tensors and plain containers"
    # Files of before PyTorch 1.6 are plain pickles: names stand in them as text.
    with open_regular(file) as opened:
        content = opened.read(MOST_NAMED)
    found = {b".".join(name).decode() for name in re.findall(rb"c([\w.]+)\n([\w.]+)\n", content)}
    names = sorted(name for name in found | {refused.group(1)} if not SAFE_NAMES.fullmatch(name))
    return (
        f"holds pickled objects ({', '.join(names[:12])}), and loading them would run code: only tensors, numbers, "
        "strings and plain containers are read; if you trust the file: "
        f"`python -m runner convert {shlex.quote(str(file))} --trust`"
    )


def _verify_hash(file: Path, sha256: str) -> None:
    actual = compute_sha256(file)
    if not actual.startswith(sha256):
        raise _make_error(
            f"must have the SHA-256 {sha256}",
            f"{file} with {actual}",
            "fetch it again, or correct the hash",
            kind="file",
        )


def _verify_archive(file: Path) -> None:
    """Verify the CRC of every record of an archive; torch.load accepted 300 of 300 flipped bits.

    Raises:
        RunError: one is wrong, or the archive is compressed: torch.save never does that, a decompression bomb does; or
            it is an archive of something else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _refuse_zip(file, records)
            if any(record.filename.endswith("/constants.pkl") for record in records):
                trust = f"if you trust it: `python -m runner convert {shlex.quote(str(file))} --trust`"
                raise RunError(f"{file} is a TorchScript archive, code and all: {trust}")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise RunError(f"{file} is a compressed archive, which torch.save does not write: pack it anew")
            if sum(record.file_size for record in records) > file.stat().st_size:
                raise RunError(f"{file} claims more bytes than it has: records of the archive overlap")
            if all(record.CRC == 0 for record in records if record.file_size):
                return  # written with torch.serialization.set_crc32_options(False)
            damaged = archive.testzip()
    except RunError:
        raise
    except Exception as error:  # zipfile raises whatever a broken header leads it to
        raise RunError(f"{file} is cut short or damaged: {error}") from error
    if damaged is not None:
        raise RunError(f"{file} is damaged: the CRC of its record {damaged} is wrong")


def _refuse_zip(file: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a zip archive without torch's pickle; describe its content."""
    names = [record.filename for record in records if not record.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/") and name.rpartition("/")[2] != ".DS_Store"]
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return
    if not names:
        raise RunError(f"{file} is an empty zip archive")
    shown = ", ".join(_escape_text(name) for name in names[:6]) + (", …" if names[6:] else "")
    quoted = shlex.quote(str(file))
    if all(name.endswith(".npy") for name in names):
        command = f"`python -m runner convert {quoted} --trust`"
        raise RunError(f"{file} is an .npz of NumPy ({shown}): {command} makes a file of tensors of it")
    weights = [name for name in names if name.endswith(SUFFIXES)]
    name = f"`{_escape_text(weights[0])}`" if len(weights) == 1 else "the file of weights in it"
    raise RunError(
        f"{file} is a zip archive with {shown} in it, and no file of torch.save itself: unpack it (`unzip {quoted}`), "
        f"and name {name}"
    )


def _escape_text(text: str) -> str:
    """Escape the unprintable characters of a foreign text for a message; cut it to 200 characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:200])


def _read_safetensors(file: Path, header: int) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise _make_error(
            "needs the package safetensors", str(file), "pip install safetensors", kind="unavailable"
        ) from error
    if header > MOST_HEADER:
        raise RunError(f"{file} has a header of {header:,} bytes: more than {MOST_HEADER:,} are not read")
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{file} is no whole safetensors file: {error}") from error


def find_state(raw: Any, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Find the state_dict in the content of a file: under `key`, or in the usual places.

    Args:
        raw: what `read` gave.
        key: a nested key, dotted where it is deeper (`checkpoint.model`); None searches.

    Returns:
        Names to tensors (`…_extra_state` may be anything), and what to tell: where it was, what was passed over.

    Raises:
        ConfigError: there is none, or more than one that may be meant; their keys are named.
    """
    path, place, state = _find_only_state(raw, key)
    said = [f"found under the key `{'.'.join(place)}`"] if place and place != path else []
    kept = {name: value for name, value in state.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    passed = [name for name in state if name not in kept]
    if passed:
        said.append(f"passed over what is no tensor: {', '.join(passed[:8])}{', …' if passed[8:] else ''}")
    return kept, said


def find_place(raw: Any, key: str | None = None) -> list[str]:
    """Find the nested keys that lead to the state_dict of `find_state`."""
    return _find_only_state(raw, key)[1]


def _find_only_state(raw: Any, key: str | None) -> tuple[list[str], list[str], Mapping[str, Any]]:
    """Return the path of the given key, the path of the only state_dict below it, and that state_dict."""
    path: list[str] = []
    if key is not None:
        raw, path = follow_key(raw, key)
    found = _search(raw, path)
    if len(found) != 1:
        raise _diagnose_no_state(raw, path, [".".join(place) for place, _ in found])
    return path, *found[0]


def follow_key(raw: Any, key: str, setting: str = "key") -> tuple[Any, list[str]]:
    """Return the value under a dotted key and its path; `setting` is the key of `pretrained` to blame."""
    node, left = raw, key.split(".")
    path: list[str] = []
    while left:
        # A key may itself contain dots: the longest that exists.
        names = [".".join(left[:end]) for end in range(len(left), 0, -1)]
        name = next((name for name in names if isinstance(node, Mapping) and name in node), None)
        if isinstance(node, list | tuple) and left[0].isdecimal() and int(left[0]) < len(node):
            path.append(left.pop(0))
            node = node[int(path[-1])]
            continue
        if name is None:
            known = [name for name in node if isinstance(name, str)] if isinstance(node, Mapping) else []
            known = [str(i) for i in range(len(node))] if isinstance(node, list | tuple) else known
            near = find_nearest(left[0], known)
            where = f"`{'.'.join(path)}`" if path else "the file"
            holds = f"{where} has {', '.join(known[:12]) or f'no keys ({type(node).__name__})'}"
            raise _make_error(
                "must be a key of the checkpoint",
                key,
                holds,
                ".".join([*path, near]) if near else "",
                setting,
                kind="no-match",
            )
        node, left = node[name], left[name.count(".") + 1 :]
        path.append(name)
    return node, path


def _search(node: Any, path: list[str]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Find mappings of tensors with their paths; usual places come first, averages of weights next.

    Raises:
        ConfigError: there are too many mappings to look into.
    """
    looked = 0

    def search(node: Any, path: list[str], depth: int) -> list[tuple[list[str], Mapping[str, Any]]]:
        nonlocal looked
        if not isinstance(node, Mapping) or not depth:
            return []
        looked += 1 + len(node) // 20
        if looked > MOST_SEARCHED:
            rule = "must be given: the file has too many mappings in which a state_dict may be"
            raise _make_error(rule, None, key="key", kind="missing")
        for usual in (USUAL, AVERAGES):
            found = [hit for name in usual if name in node for hit in search(node[name], [*path, name], depth - 1)]
            if found:
                return found
        if any(isinstance(value, Tensor) for value in node.values()) and all(isinstance(name, str) for name in node):
            return [(path, node)]
        inner = [n for n, m in node.items() if depth > 1 and isinstance(m, Mapping) and isinstance(n, str)]
        others = [name for name in inner if name not in AVERAGES and not NOT_WEIGHTS.fullmatch(name)]
        return [hit for name in others for hit in search(node[name], [*path, name], depth - 1)]

    return search(node, path, DEEPEST)


def _diagnose_no_state(raw: Any, path: Sequence[str], found: Sequence[str]) -> ConfigError:
    where = f"key `{'.'.join(path)}`" if path else "the file"
    if found:
        remedy = f"say which: `pretrained.key={found[0]}`"
        return _make_error(
            f"must be given: {where} holds more than one state_dict, {', '.join(found)}",
            None,
            remedy,
            key="key",
            kind="missing",
        )
    listed = _find_listed(raw)
    if listed:
        place = ".".join([*path, *listed])
        say = (
            f"`pretrained.key={place}` takes it"
            if len([*path, *listed]) > 1
            else f"`'pretrained.key=\"{place}\"'` takes it"
        )
    if isinstance(raw, Mapping):
        names = ", ".join(_escape_text(str(name)) for name in list(raw)[:12])
        holds = f"keys {names}, and none has tensors by name" if raw else "nothing: an empty dict"
        if listed:
            items = raw[listed[0]]
            kind = f"a {type(items).__name__} of {len(items)}"
            holds += f", but {kind} is under `{listed[0]}`, a mapping of tensors at [{listed[1]}]"
    elif isinstance(raw, list | tuple):
        holds = f"a {type(raw).__name__} of {len(raw)}" + (f", a mapping of tensors at [{listed[0]}]" if listed else "")
    else:
        holds = f"a {type(raw).__name__}"
    remedy = f"{say}; or save the mapping itself" if listed else ""
    return _make_error(
        f"must hold a state_dict (names and tensors), but {where} holds {holds}", None, remedy, kind="file"
    )


def _find_listed(raw: Any) -> list[str]:
    """Find the path of the first state_dict inside a list, for an error message; empty if there is none."""
    lists = {str(name): value for name, value in raw.items()} if isinstance(raw, Mapping) else {"": raw}
    for name, items in lists.items():
        if isinstance(items, list | tuple) and not NOT_WEIGHTS.fullmatch(name):
            inside = next(iter(_iterate_states(items[:1000])), None)
            if inside is not None:
                return [*([name] if name else []), str(inside)]
    return []


def _iterate_states(items: Sequence[Any]) -> Iterator[int]:
    return (i for i, item in enumerate(items) if isinstance(item, Mapping) and len(_search(item, [])) == 1)
