"""Read a file of weights without executing code, its size, hash and archive verified first."""

import io
import json
import os
import pickletools
import re
import shlex
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core.download import compute_sha256
from runner.core.errors import RunError
from runner.core.files import open_regular, read_small
from runner.core.tensor_files import check_fits_in_memory, load_tensors
from runner.model.pretrained.contents import find_state
from runner.model.pretrained.locate import MOST_JSON, SUFFIXES, LocatedWeights, find_unpacked
from runner.model.pretrained.mistakes import escape_text, make_error

SAFE_NAMES = re.compile(r"torch\.\w+Storage|torch\._(utils|tensor)\._rebuild\w*|collections\.OrderedDict")


MOST_HEADER = 1 << 25  # bytes of a safetensors header: of a hundred thousand tensors it has ten million


MOST_NAMED = 1 << 26  # bytes of a pickle that are looked through for the names in it


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


def read(located: LocatedWeights, *, is_shard: bool = False) -> Any:
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
        check_fits_in_memory(file, size)
        if located.sha256:
            _verify_hash(file, located.sha256)
        if head.startswith(b"PK"):
            _verify_archive(file)
        elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            return _read_safetensors(file, int.from_bytes(head[:8], "little"))
        elif head.lstrip().startswith(b"{") and (shards := _read_index(file)):
            if is_shard:
                raise RunError(f"{file} is an index itself, and an index names files of tensors")
            return _read_shards(file, shards)
        else:
            _refuse_format(file, head)
        return load_tensors(file)
    except OSError as error:
        raise make_error(f"must be readable ({error.strerror or error})", str(file), kind="file") from error
    except MemoryError as error:
        raise make_error("must fit into this machine's memory", str(file), kind="unavailable") from error
    except RunError as error:
        rule = "must be a whole file of tensors: " + _describe_refusal(error, file).removeprefix(f"{file} ")
        raise make_error(rule, str(file), kind="file") from error


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
    place = find_unpacked(folder)
    assert place is not None
    archive = io.BytesIO()
    files = [entry for entry in sorted(place.rglob("*")) if entry.is_file() and not entry.name.startswith(".")]
    check_fits_in_memory(folder, sum(entry.stat().st_size for entry in files))
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
    check_fits_in_memory(index, sum((index.parent / name).stat().st_size for name in names))
    tensors: dict[str, Any] = {}
    for name in names:
        part, _ = find_state(read(LocatedWeights(index.parent / name), is_shard=True))
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
        raise make_error(
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
    shown = ", ".join(escape_text(name) for name in names[:6]) + (", …" if names[6:] else "")
    quoted = shlex.quote(str(file))
    if all(name.endswith(".npy") for name in names):
        command = f"`python -m runner convert {quoted} --trust`"
        raise RunError(f"{file} is an .npz of NumPy ({shown}): {command} makes a file of tensors of it")
    weights = [name for name in names if name.endswith(SUFFIXES)]
    name = f"`{escape_text(weights[0])}`" if len(weights) == 1 else "the file of weights in it"
    raise RunError(
        f"{file} is a zip archive with {shown} in it, and no file of torch.save itself: unpack it (`unzip {quoted}`), "
        f"and name {name}"
    )


def _read_safetensors(file: Path, header: int) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise make_error(
            "needs the package safetensors", str(file), "pip install safetensors", kind="unavailable"
        ) from error
    if header > MOST_HEADER:
        raise RunError(f"{file} has a header of {header:,} bytes: more than {MOST_HEADER:,} are not read")
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{file} is no whole safetensors file: {error}") from error
