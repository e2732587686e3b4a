"""Malicious and broken files: none runs anything, none is loaded silently wrong, each is a clear error."""

import bz2
import encodings.cp437  # noqa: F401  zipfile imports it for names that are not UTF-8
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import random
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runner.core.errors import ConfigError
from runner.model.pretrained.load import prepare
from runner.model.pretrained.plan import Options

MODEL = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
STATE = {
    name: torch.rand(value.shape) if value.dim() else torch.tensor(5) for name, value in MODEL.state_dict().items()
}

# What a pickle may be made to call: each of these must never be looked up, let alone called.
CALLS = [
    "os system", "posix system", "os popen", "subprocess Popen", "subprocess getoutput", "builtins eval",
    "builtins exec", "builtins __import__", "builtins getattr", "builtins open", "builtins compile",
    "importlib import_module", "runpy run_path", "shutil rmtree", "socket socket", "ctypes CDLL", "webbrowser open",
    "pickle loads", "pickle _loads", "marshal loads", "torch load", "torch.hub load", "torch.jit load",
    "torch.package PackageImporter", "torch.utils.cpp_extension load", "torch.serialization load",
    "torch.storage _load_from_bytes", "functools partial", "operator attrgetter", "types FunctionType",
    "code interact", "pdb run", "pty spawn", "numpy load", "numpy.core.multiarray scalar", "canary pull",
    "collections namedtuple", "torch._C _load_from_file", "__builtin__ eval", "nt system",
    "torch._inductor.codecache _exec_with_source", "multiprocessing.util spawnv_passfds", "timeit timeit",
    "cProfile run", "torch.nn Linear", "torch.nn.modules.linear Linear", "__main__ Net", "builtins type",
    "builtins object",
]  # fmt: skip


def pickles(call):
    """The ways of the pickle machine to call something with an argument."""
    module, name = call.split()
    where, what = module.encode(), name.encode()
    argument = b"X\x04\x00\x00\x00evil"
    top = b"\x80\x04"
    stacked = b"\x8c" + bytes([len(where)]) + where + b"\x8c" + bytes([len(what)]) + what + b"\x93"
    called = b"c" + where + b"\n" + what + b"\n"
    yield "reduce", b"\x80\x02" + called + argument + b"\x85R."
    yield "stack_global", top + stacked + argument + b"\x85R."
    yield "inst", b"(" + argument + b"i" + where + b"\n" + what + b"\n."
    yield "obj", b"(" + called + argument + b"o."
    yield "newobj", b"\x80\x02" + called + argument + b"\x85\x81."
    yield "newobj_ex", top + stacked + argument + b"\x85}\x92."
    yield "build", b"\x80\x02" + called + b")\x81}b."
    in_dict = b"\x80\x02}X\x06\x00\x00\x000.bias" + called + argument + b"\x85Rs."
    yield "in a dict", in_dict


def zipped(data_pkl, original=None):
    """A torch.save archive whose pickle is another."""
    source = io.BytesIO()
    torch.save(STATE if original is None else original, source)
    result = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(result, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, data_pkl if record.filename.endswith("data.pkl") else old.read(record))
    return result.getvalue()


def legacy(data):
    """The format before 1.6: magic, version, system, object, storages."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, data, pickle.dumps([], 2)])


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def malicious():
    for number, call in enumerate(CALLS):
        for way, data in pickles(call):
            yield f"zip {call} {way}", zipped(data)
            if number % 3 == 0:
                yield f"legacy {call} {way}", legacy(data)
                yield f"pickle {call} {way}", data
    for name, data in {
        "extension code": b"\x80\x02\x82\x01.",
        "persistent id": b"\x80\x02X\x04\x00\x00\x00evilQ.",
        "persistent tuple": b"\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\nX\x01\x00\x00\x00sX\x01\x00\x00\x000tQ.",
        "memo bomb": b"\x80\x02" + b"]q\x00" + b"(h\x00h\x00h\x00h\x00e" * 20 + b".",
        "endless nesting": b"\x80\x02" + b"(" * 20000 + b".",
        "stack underflow": b"\x80\x02R.",
        "no stop": b"\x80\x02}",
        "wrong memo": b"\x80\x02h\x63.",
        "huge string": b"\x80\x02X\xff\xff\xff\x7f.",
        "nothing": b"",
    }.items():
        yield f"zip {name}", zipped(data)
        yield f"pickle {name}", data


def broken():
    good, old = saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)
    chance = random.Random(5)
    for size in sorted(chance.sample(range(len(good)), 40)):
        yield f"zip cut at {size}", good[:size]
    for size in sorted(chance.sample(range(len(old)), 25)):
        yield f"legacy cut at {size}", old[:size]
    for place in sorted(chance.sample(range(len(good)), 80)):
        yield (
            f"zip flipped at {place}",
            good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :],
        )
    pkl = zipfile.ZipFile(io.BytesIO(good)).read("archive/data.pkl")
    for place in sorted(chance.sample(range(2, len(pkl)), 40)):
        yield f"pickle in zip flipped at {place}", zipped(pkl[:place] + bytes([pkl[place] ^ 4]) + pkl[place + 1 :])
    small, large = b"K\x04K\x03\x86", b"K\x7fK\x7f\x86"
    assert small in pkl
    yield "a size beyond its storage", zipped(pkl.replace(small, large))
    yield "strides beyond the storage", zipped(pkl.replace(b"K\x03K\x01\x86", b"K\x7fK\x01\x86"))
    yield "a large offset", zipped(pkl.replace(b"QK\x00K\x04", b"QK\x7fK\x04"))
    yield "a record missing", _without(good, "archive/data/0")
    yield "a record cut", _changed(good, "archive/data/0", lambda data: data[:5])
    yield "a record longer", _changed(good, "archive/data/0", lambda data: data + bytes(100))
    yield "no pickle", _without(good, "archive/data.pkl")
    yield from _odd_containers(good)
    yield from _odd_contents()
    yield from _safetensors(chance)


def _odd_containers(good):
    yield "compressed", _changed(good, "", bytes, zipfile.ZIP_DEFLATED)
    yield "a bomb", _changed(good, "archive/data/0", lambda _: bytes(1 << 27), zipfile.ZIP_DEFLATED)
    yield "another byte order", _changed(good, "archive/byteorder", lambda _: b"middle")
    yield "an empty zip", b"PK\x05\x06" + bytes(18)
    yield "a zip of something else", _zip_of({"../../evil": b"x", "a.txt": b"y"})
    yield "TorchScript", _script()
    yield "empty", b""
    yield "a web page", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "a web page after space", b"\n\n  <HTML><head></head></HTML>"
    yield "an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "JSON", b'{"error": "not found"}'
    yield "YAML", b"weights: !!python/object/apply:os.system ['evil']\n"
    yield "gzip", gzip.compress(good)
    yield "bzip2", bz2.compress(good)
    yield "xz", lzma.compress(good)
    yield "zstd", b"\x28\xb5\x2f\xfd" + bytes(40)
    yield "7z", b"7z\xbc\xaf\x27\x1c" + bytes(40)
    yield "rar", b"Rar!\x1a\x07\x01\x00" + bytes(40)
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(40)
    yield "gguf", b"GGUF\x03" + bytes(40)
    yield "npy", _numpy(lambda file: np.save(file, np.ones(3)))
    yield "npz", _numpy(lambda file: np.savez(file, **{n: v.numpy() for n, v in STATE.items()}))
    yield "an npz that is a bomb", _numpy(lambda file: np.savez_compressed(file, a=np.zeros(1 << 18)))
    yield "a zip of a checkpoint", _zip_of({"best.pt": good, "__MACOSX/._best.pt": b""})
    yield "a pickle of arrays", pickle.dumps({"model": {name: value.numpy() for name, value in STATE.items()}})
    yield "a list of two", saved({"models": [STATE, STATE]})
    yield "records that overlap", _overlapping(good)
    yield "tar", _tar(good)
    yield "noise", random.Random(6).randbytes(5000)
    yield "zeros", bytes(5000)


def _numpy(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _overlapping(good):
    """Two hundred names in the directory of an archive for the same large record."""
    packed = _changed(good, "archive/data/0", lambda _: bytes(1 << 20))
    end = packed.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", packed[end + 12 : end + 20])
    at = packed.rindex(b"archive/data/0", start, end) - 46
    length = 46 + sum(struct.unpack("<HHH", packed[at + 28 : at + 34]))
    more = packed[at : at + length] * 200
    count = struct.unpack("<H", packed[end + 10 : end + 12])[0] + 200
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size + len(more), start, 0)
    return packed[:end] + more + tail


def _odd_contents():
    yield "a list", saved([STATE])
    yield "a tuple", saved((STATE, 3))
    yield "an empty dict", saved({})
    yield "an empty state_dict", saved({"state_dict": {}})
    yield "a number", saved(3)
    yield "a tensor", saved(torch.ones(3))
    yield "NaN", saved(STATE | {"2.bias": torch.tensor([1.0, float("nan")])})
    yield "an infinity", saved(STATE | {"2.bias": torch.tensor([1.0, float("inf")])})
    yield "half the keys", saved(dict(list(STATE.items())[::2]))
    yield "other keys", saved({f"{name}x": value for name, value in STATE.items()})
    yield "other shapes", saved({name: value[None] for name, value in STATE.items()})
    yield "integers for floats", saved({name: value.to(torch.int8) for name, value in STATE.items()})
    yield "numbers for tensors", saved(dict.fromkeys(STATE, 3.0))
    yield "keys that are numbers", saved(dict(enumerate(STATE.values())))
    yield "two of them", saved({"generator": STATE, "discriminator": STATE})
    yield "sparse", saved(STATE | {"2.bias": torch.tensor([1.0, 0]).to_sparse()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files exist
        yield "quantized", saved(STATE | {"2.bias": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
    yield "no data", saved({name: value.to("meta") for name, value in STATE.items()})
    yield "a class", saved(MODEL)
    yield "a class inside", saved({"state_dict": STATE, "model": MODEL})
    yield "more than its storage", saved(STATE | {"2.bias": torch.ones(1).expand(2**40)})
    yield "more than its storage, in shape", saved(STATE | {"2.weight": torch.ones(1).expand(2, 2**45)})
    yield "a set", saved({"state_dict": {1, 2}})
    yield "numpy", saved({"state_dict": {name: value.numpy() for name, value in STATE.items()}})


def _safetensors(chance):
    pytest.importorskip("safetensors")
    from safetensors.torch import save

    good = save(STATE)
    (length,) = struct.unpack("<Q", good[:8])
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]

    def file(head, body=data):
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + body

    first = next(name for name in header if name != "__metadata__")
    for size in sorted(chance.sample(range(len(good)), 20)):
        yield f"safetensors cut at {size}", good[:size]
    for place in sorted(chance.sample(range(8, 8 + length), 15)):
        yield f"safetensors header flipped at {place}", good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :]
    for name, change in {
        "dtype": {"dtype": "OBJECT"},
        "beyond the end": {"data_offsets": [0, 10**9]},
        "backwards": {"data_offsets": [8, 0]},
        "negative": {"data_offsets": [-8, 8]},
        "shape": {"shape": [10**9]},
        "overflow": {"shape": [2**62, 2**62]},
        "no shape": {"shape": None},
    }.items():
        yield f"safetensors {name}", file(header | {first: header[first] | change})
    yield "safetensors longest header", struct.pack("<Q", 2**63) + b"{" + data
    yield "safetensors of nothing", file({})
    yield "safetensors nested", file(b"{" + b'"a":{' * 100_000)
    yield "safetensors with a long header", file(b"{" + b" " * (1 << 25) + b"}")
    yield "safetensors of a list", file([1, 2])
    yield "safetensors of noise", file(b"{" + chance.randbytes(50))
    yield "safetensors with a gap", file(header, data + bytes(16))


def _changed(archive, name, change, compression=zipfile.ZIP_STORED):
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w", compression) as new:
        for record in old.infolist():
            data = old.read(record)
            new.writestr(record.filename, change(data) if record.filename == name else data)
    return result.getvalue()


def _without(archive, name):
    return _zip_of({r: d for r, d in _records(archive).items() if r != name})


def _records(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        return {name: old.read(name) for name in old.namelist()}


def _zip_of(records):
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as new:
        for name, data in records.items():
            new.writestr(name, data)
    return result.getvalue()


def _tar(data):
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as archive:
        entry = tarfile.TarInfo("../evil")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return result.getvalue()


def _script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


# What none of these files may cause, by the names of Python's audit events; and no import, compilation or execution.
FORBIDDEN = (
    "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.", "exec", "compile", "import", "code.",
    "builtins.input", "marshal.", "pickle.find_class", "urllib.", "tempfile.", "glob.",
)  # fmt: skip
ALLOWED = ("os.listdir", "os.scandir", "os.fspath")


class Watch:
    """An audit hook (they cannot be removed) that listens only while it is on."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if self.on and (
            (event.startswith(FORBIDDEN) and event not in ALLOWED)
            or (event == "open" and isinstance(arguments[1], str) and set("wxa+") & set(arguments[1]))
        ):
            self.seen.append((event, repr(arguments)[:200]))

    def __enter__(self):
        self.on, self.seen = True, []
        return self

    def __exit__(self, *_):
        self.on = False


@pytest.fixture(scope="module")
def watch():
    return Watch()


def judge(name, data, folder, watch, **how):
    """Read the file as a user would: an error that says something, or exactly the tensors that were saved."""
    file = folder / "weights.pth"
    file.write_bytes(data)
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    made, said = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about sparse tensors and TypedStorage
        with watch:
            try:
                made = prepare(MODEL, str(file), Options("full"), **how)
            except ConfigError as error:
                said = str(error)
    assert not watch.seen, name
    assert all(torch.equal(before[key], value) for key, value in MODEL.state_dict().items()), name
    if made is None:
        assert "Weights only load failed" not in said, name
        assert said.startswith("1. pretrained"), name
        assert "Error:" not in said, name
        return said
    assert made.tensors.keys() == STATE.keys(), name
    assert all(torch.equal(value, STATE[key]) for key, value in made.tensors.items()), name
    return ""


def warm(folder, watch):
    """Whatever torch imports at its first loading and first refusal."""
    for data in (
        saved(STATE),
        saved(MODEL),
        b"",
        saved(STATE)[:200],
        legacy(b"\x80\x02}."),
        saved(STATE | {"0.bias": torch.eye(2).to_sparse()}),
    ):
        try:
            judge("warming", data, folder, watch)
        except AssertionError:
            watch.seen.clear()


@functools.cache  # a zip archive has the time in it
def files():
    """Contents and names, each content once."""
    return {data: name for name, data in [*malicious(), *broken()]}.items()


def test_none_of_the_bad_files_runs_anything_or_loads_silently_wrong(tmp_path, watch):
    """960 of them, in 4 seconds."""
    warm(tmp_path, watch)
    refused = {data for data, name in files() if judge(name, data, tmp_path, watch)}
    assert len(files()) >= 300
    assert all(data in refused or "flipped" in name for data, name in files())
    assert len(refused) > 0.9 * len(files())  # a flipped bit in a header field that nobody reads does no harm


CLEAR = {
    "a web page": "is a web page, not a file of tensors",
    "empty": "is empty",
    "an LFS pointer": "is a Git LFS pointer",
    "a list": "holds a list of 1, a mapping of tensors at [0]",
    "a list of two": "`pretrained.key=models.0` takes it",
    "gzip": "is compressed by gzip",
    "bzip2": "is compressed by bzip2",
    "xz": "is compressed by xz",
    "zstd": "is compressed by zstd",
    "7z": "is a 7z archive",
    "rar": "is a RAR archive",
    "hdf5": "is an HDF5 file",
    "gguf": "is a GGUF file",
    "npy": "is one array of NumPy",
    "npz": "is an .npz of NumPy",
    "an npz that is a bomb": "is an .npz of NumPy",
    "a zip of a checkpoint": "is a zip archive with best.pt in it",
    "a pickle of arrays": "asks for numpy._core.multiarray._reconstruct, numpy.dtype, numpy.ndarray",
    "records that overlap": "records of the archive overlap",
    "JSON": "is text (JSON), not weights",
    "safetensors with a long header": "has a header of",
    "an empty dict": "holds nothing: an empty dict",
    "NaN": "2.bias holds NaN",
    "half the keys": "are: 0.bias",
    "a class": "torch.nn.modules.container.Sequential",
    "zip os system reduce": "os.system",
    "legacy os system reduce": "os.system",
    "tar": "is a tar archive",
    "compressed": "is a compressed archive",
    "a record cut": "is cut short or damaged",
    "TorchScript": "TorchScript",
}


def test_an_error_says_what_is_wrong(tmp_path, watch):
    found = {name: data for data, name in files()}
    for name, words in CLEAR.items():
        said = judge(name, found[name], tmp_path, watch)
        assert words in said, name
        if name in {"a class", "zip os system reduce"}:
            assert f"python -m runner convert {tmp_path / 'weights.pth'} --trust" in said


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "sparse"])
def test_what_is_no_file_or_larger_than_the_memory_is_refused_at_once(tmp_path, kind):
    """Opening a pipe waits for its writer for ever; /dev/zero has no end."""
    file = tmp_path / "w.pt"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "sparse":
        with file.open("wb") as opened:
            opened.truncate(1 << 42)
    else:
        file = Path("/dev/zero") if kind == "device" else file
        if kind != "device":
            file.symlink_to("/dev/zero")
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        prepare(MODEL, str(file), Options("full"), sha256="0" * 64)
    assert time.monotonic() - begun < 2
    words = "of memory" if kind == "sparse" else "no regular file"
    assert words in str(caught.value)


def test_pipes_beside_the_weights_are_not_waited_for(tmp_path):
    """A manifest, an index or a shard that is one."""
    safetensors = pytest.importorskip("safetensors.torch")
    os.mkfifo(tmp_path / "manifest.json")
    torch.save(STATE, tmp_path / "best.pt")
    assert prepare(MODEL, str(tmp_path / "best.pt"), Options("full")).loaded == len(STATE)
    (tmp_path / "hub").mkdir()
    safetensors.save_file(STATE, tmp_path / "hub" / "b.safetensors")
    index = {"weight_map": {"0.weight": "a.safetensors", "0.bias": "b.safetensors"}}
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    os.mkfifo(tmp_path / "hub" / "a.safetensors")
    with pytest.raises(ConfigError, match="no regular file"):
        prepare(MODEL, str(tmp_path / "hub" / "model.safetensors.index.json"), Options("full"))
    os.mkfifo(tmp_path / "other.index.json")
    with pytest.raises(ConfigError, match="no regular file"):
        prepare(MODEL, str(tmp_path / "other.index.json"), Options("full"))


def test_every_flipped_bit_of_a_modern_file_is_noticed(tmp_path, watch):
    """torch.load takes 300 of 300; the archive's CRCs show them. Other formats have none: there a SHA-256 does it."""
    warm(tmp_path, watch)
    chance = random.Random(1)
    data = saved(STATE)
    at = data.index(STATE["0.weight"].numpy().tobytes())
    for place in range(at, at + 48, 4):
        flipped = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        assert "CRC" in judge("flipped", flipped, tmp_path, watch)
    old = saved(STATE, _use_new_zipfile_serialization=False)
    right = hashlib.sha256(old).hexdigest()
    assert not judge("whole", old, tmp_path, watch, sha256=right)
    flipped = old[:-3] + bytes([old[-3] ^ 1]) + old[-2:]
    assert "must have the SHA-256" in judge("flipped", flipped, tmp_path, watch, sha256=right)
