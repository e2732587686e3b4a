# ruff: noqa: E501, ARG005  tables: one attack a line, and functions that are lists
"""Files of a stranger: pickles, archives and tables that would run, write, hang or fill the memory."""

import bz2
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import torch

CALLS = [
    "os system", "posix system", "subprocess Popen", "builtins eval", "builtins exec", "builtins getattr",
    "builtins open", "builtins __import__", "importlib import_module", "runpy run_path", "shutil rmtree",
    "ctypes CDLL", "pickle loads", "marshal loads", "torch load", "torch.hub load", "torch.jit load",
    "torch.storage _load_from_bytes", "torch.utils.cpp_extension load", "functools partial", "operator attrgetter",
    "types FunctionType", "pty spawn", "numpy load", "evil_package pull", "evil_module Model", "torch.nn Linear",
    "collections namedtuple", "__main__ Net", "builtins type",
]  # fmt: skip


def _pickles(call):
    """The ways of the pickle machine to call something."""
    module, name = (word.encode() for word in call.split())
    argument = b"X\x04\x00\x00\x00evil"
    stacked = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"
    called = b"c" + module + b"\n" + name + b"\n"
    return {
        "reduce": b"\x80\x02" + called + argument + b"\x85R.",
        "stack_global": stacked + argument + b"\x85R.",
        "inst": b"(" + argument + b"i" + module + b"\n" + name + b"\n.",
        "obj": b"(" + called + argument + b"o.",
        "newobj": b"\x80\x02" + called + argument + b"\x85\x81.",
        "newobj_ex": stacked + argument + b"\x85}\x92.",
        "build": b"\x80\x02" + called + b")\x81}b.",
        "build a state": b"\x80\x02" + called + b")\x81}X\x01\x00\x00\x00aK\x01sb.",
        "in a dict": b"\x80\x02}X\x06\x00\x00\x000.bias" + called + argument + b"\x85Rs.",
        "persistent": b"\x80\x02" + called + argument + b"\x85RQ.",
    }


@functools.cache
def _saved():
    source = io.BytesIO()
    torch.save({"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4)}, source)
    return source.getvalue()


def _archive(data_pkl=None, *, compress=zipfile.ZIP_STORED, rename=None, extra=None):
    """A torch.save archive with another pickle, other names, or more records."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved())) as old, zipfile.ZipFile(result, "w", compress) as new:
        for record in old.infolist():
            content = old.read(record)
            if data_pkl is not None and record.filename.endswith("data.pkl"):
                content = data_pkl
            name = record.filename if rename is None else rename(record.filename)
            new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return result.getvalue()


def _tensor(shape, *, stride=None, kind="FloatStorage", size=12, offset=0, key="0"):
    """The pickle of a mapping with one tensor, as torch.save writes it, that claims what it likes."""
    stride = stride or [1] * len(shape)

    def number(value):
        raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    text = b"X" + struct.pack("<I", len(key)) + key.encode()
    persistent = (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind.encode()
        + b"\n"
        + text
        + b"X\x03\x00\x00\x00cpu"
        + number(size)
        + b"tQ"
    )
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + number(offset) + numbers(shape) + numbers(stride)
    return b"\x80\x02}X\x06\x00\x00\x000.bias" + rebuilt + b"\x89ccollections\nOrderedDict\n)RtRs."


def weights():
    """Names, contents, and the size of a sparse file (None: as it is)."""
    kinds = itertools.cycle(["reduce", "stack_global", "inst", "obj", "newobj", "newobj_ex", "build", "build a state",
                             "in a dict", "persistent"])  # fmt: skip
    for call in CALLS:
        for _ in range(2):
            kind = next(kinds)
            content = _pickles(call)[kind]
            yield f"{call} by {kind}, zipped", _archive(content), None
        yield f"{call} by {kind}, bare", content, None
        next(kinds)
    for name, content in {
        "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "deep tuples": b"\x80\x02N" + b"\x85" * 200_000 + b".",
        "a memo bomb": b"\x80\x02]q\x00" + b"".join(
            b"](" + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(12)) + b".",
        "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
        "a long integer": b"\x80\x02\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000 + b".",
        "a length that is not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "a frame of nothing": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "an unknown opcode": b"\x80\x02\xff.",
        "no stop": b"\x80\x02}",
        "an empty stack": b"\x80\x02.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"Pevil\n.",
        "a buffer out of band": b"\x80\x05\x97.",
        "only text": b"cos\nsystem\n(S'touch owned'\ntR.",
        "a tensor that claims a petabyte": _tensor([2**50]),
        "a tensor of negative size": _tensor([-5]),
        "a tensor beyond its storage": _tensor([1000]),
        "a tensor of overlapping strides": _tensor([2**20, 2**20], stride=[0, 0]),
        "a tensor with a far offset": _tensor([4], offset=2**60),
        "a storage that claims a petabyte": _tensor([4], size=2**50),
        "a storage of negative size": _tensor([4], size=-1),
        "a storage elsewhere": _tensor([4], key="../../evil"),
        "a storage of no kind": _tensor([4], kind="Evil"),
        "a storage that is a function": _tensor([4], kind="load"),
        "many dimensions": _tensor([1] * 5_000),
    }.items():  # fmt: skip
        yield name, _archive(content), None
        yield f"{name}, bare", content, None
    yield "names that lead away", _archive(rename=lambda name: "../" * 5 + name), None
    yield "absolute names", _archive(rename=lambda name: "/etc/" + name), None
    yield "a compressed archive", _archive(compress=zipfile.ZIP_DEFLATED), None
    yield (
        "a compression bomb",
        _archive(compress=zipfile.ZIP_DEFLATED, extra={"archive/data/9": bytes(5_000_000)}),
        None,
    )
    yield "TorchScript", _archive(extra={"archive/constants.pkl": b"N.", "archive/code/x.py": b"import os"}), None
    yield "two pickles", _archive(extra={"other/data.pkl": _pickles("os system")["reduce"]}), None
    yield "an evil byteorder", _archive(extra={"archive/byteorder2": b"evil"}), None
    yield "a flipped bit", _saved().replace(b"weight", b"Weight", 1), None
    yield "torn", _saved()[: len(_saved()) // 2], None
    yield "an empty zip", b"PK\x05\x06" + bytes(18), None
    yield "a zip of an exe", _archive(rename=lambda name: name.replace("data.pkl", "evil.exe")), None
    for name, header in {
        "a safetensors header of 4 GB": struct.pack("<Q", 2**32) + b'{"a":1}',
        "a safetensors header of everything": struct.pack("<Q", 2**64 - 1) + b'{"a":1}',
        "a deep safetensors header": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
        "safetensors beyond the file": _safetensors(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ),
        "safetensors of a huge shape": _safetensors(
            {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}}
        ),
        "safetensors that overlap": _safetensors(
            {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "abc"}
        ),
        "safetensors of no dtype": _safetensors({"a": {"dtype": "Evil", "shape": [2], "data_offsets": [0, 8]}}),
        "safetensors of negative offsets": _safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
    }.items():
        yield name, header, None
    yield "an index that leads away", json.dumps({"weight_map": {"a": "../../etc/passwd"}}).encode(), None
    yield "an index of itself", json.dumps({"weight_map": {"a": "w.pt"}}).encode(), None
    yield "a deep index", b'{"weight_map":' * 50_000, None
    yield "gzip", gzip.compress(b"x" * 1000), None
    yield "a tar", archive_of({"x": b"y"}), None
    yield "empty", b"", None
    yield "a web page", b"<!doctype html><script>alert(1)</script>", None
    yield "escapes", b"\x1b]0;owned\x07" * 100, None
    yield "a sparse terabyte", b"PK\x03\x04", 2**40
    yield "a sparse terabyte of pickle", b"\x80\x02", 2**40
    yield "a sparse terabyte of safetensors", struct.pack("<Q", 2**30) + b"{", 2**40
    yield "a NumPy archive of objects", _npz(np.array([{"a": 1}], dtype=object)), None


def _safetensors(header):
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(8)


def _npz(array):
    result = io.BytesIO()
    np.savez(result, a=array)
    return result.getvalue()


def lay(file, content, sparse):
    """Write a file; beyond its content it is a hole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if sparse:
        os.truncate(file, sparse)


def put_checkpoint(folder, content, sparse):
    """Put a file in the place of a run's last checkpoint, with a manifest that vouches for it."""
    manifest = folder / "checkpoints" / "manifest.json"
    rows = json.loads(manifest.read_text())["entries"]
    lay(folder / "checkpoints" / rows[-1]["file"], content, sparse)
    rows[-1]["sha256"] = hashlib.sha256(content).hexdigest()
    from runner.train import checkpoint

    manifest.write_text(json.dumps({"entries": rows, "sha256": checkpoint._hash_rows(rows)}))


SPECIAL = {
    "a pipe": lambda file, box: os.mkfifo(file),
    "zeros without an end": lambda file, box: file.symlink_to("/dev/zero"),
    "random numbers without an end": lambda file, box: file.symlink_to("/dev/urandom"),
    "a terminal": lambda file, box: file.symlink_to("/dev/tty"),
    "a link to itself": lambda file, box: file.symlink_to(file.name),
    "a link to nothing": lambda file, box: file.symlink_to(box.victim / "nothing"),
    "a link to a folder": lambda file, box: file.symlink_to(box.victim / "folder"),
    "an empty folder": lambda file, box: file.mkdir(),
    "a folder with a pipe": lambda file, box: (file.mkdir(), os.mkfifo(file / "x.pt")),
    "a folder with a pickle": lambda file, box: (
        file.mkdir(), (file / "data.pkl").write_bytes(_pickles("os system")["reduce"]), (file / "version").write_text("3"),
        (file / "data").mkdir()),
    "a folder with a pipe as its pickle": lambda file, box: (
        file.mkdir(), os.mkfifo(file / "data.pkl"), (file / "version").write_text("3"), (file / "data").mkdir()),
    "a folder with links": lambda file, box: (
        file.mkdir(), (file / "data.pkl").symlink_to("/dev/zero"), (file / "version").write_text("3")),
}  # fmt: skip


def archive_of(members, kind="w"):
    """A tar of regular files."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return result.getvalue()


def _tar_of(*members):
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"evil"))
    return result.getvalue()


def _zip_of(members, *, compress=zipfile.ZIP_STORED, mode=0):
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", compress) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = compress, mode << 16
            archive.writestr(info, content)
    return result.getvalue()


ZEROS = 120_000_000  # beyond what may be unpacked whatever its ratio


def archives():
    """Names of archives that must not be unpacked, and their contents or what makes them."""
    away = ["../x", "a/../../x", "..", "a/../../../victim/x", "./../x"]
    for name in away:
        yield f"tar {name}", archive_of({"fine": b"x", name: b"evil"})
        yield f"zip {name}", _zip_of({"fine": b"x", name: b"evil"})
    yield "zip /etc/x", _zip_of({"/etc/x": b"evil"})
    yield "zip with backslashes", _zip_of({"..\\..\\x": b"evil"})
    links = {
        "a link outside": [("l", tarfile.SYMTYPE, "../../victim")],
        "an absolute link": [("l", tarfile.SYMTYPE, "/etc")],
        "through a link": [("l", tarfile.SYMTYPE, "."), ("l/x", tarfile.REGTYPE, "")],
        "through a link outside": [("l", tarfile.SYMTYPE, "../../victim"), ("l/x", tarfile.REGTYPE, "")],
        "a hard link outside": [("l", tarfile.LNKTYPE, "../../victim/notes.txt")],
        "an absolute hard link": [("l", tarfile.LNKTYPE, "/etc/passwd")],
        "a hard link through a link": [("d", tarfile.SYMTYPE, "."), ("l", tarfile.LNKTYPE, "d/../../x")],
        "replacing a link": [("l", tarfile.SYMTYPE, "x"), ("l", tarfile.REGTYPE, "")],
        "a pipe": [("p", tarfile.FIFOTYPE, "")],
        "a device": [("d", tarfile.CHRTYPE, "")],
        "a disk": [("d", tarfile.BLKTYPE, "")],
        "a link to itself and through it": [("l", tarfile.SYMTYPE, "l"), ("l/x", tarfile.REGTYPE, "")],
    }
    for name, members in links.items():
        yield f"tar with {name}", _tar_of(*members)
    for name, mode in {"a link": 0o120777, "a device": 0o020666, "a pipe": 0o010666}.items():
        yield f"zip with {name}", _zip_of({"l": b"../../victim"}, mode=mode)
    yield "a zip bomb", lambda: _zip_of({"zeros": bytes(ZEROS)}, compress=zipfile.ZIP_DEFLATED)
    yield "a gzip bomb", lambda: gzip.compress(bytes(ZEROS), 6)
    yield "a bzip2 bomb", lambda: bz2.compress(bytes(ZEROS), 1)
    yield "a tar of a bomb", lambda: gzip.compress(archive_of({"zeros": bytes(ZEROS)}), 6)
    yield "no archive", b"hello"
    yield "a torn tar", archive_of({"x": b"y" * 5000})[:1000]
    yield "a torn gzip", gzip.compress(b"x" * 5000)[:30]
    yield "a torn zip", _zip_of({"x": b"y" * 5000})[:100]
    yield "a tar that claims a petabyte", _claims(2**49)


def _claims(size):
    info = tarfile.TarInfo("x")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _npy(descr, shape, data=b"", *, fortran=False):
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def tables():
    """Tables by what is wrong with them: the file's name and its content."""
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object))
    evil = _npy("|O", (1,), pickle.dumps(1)[:2] + b"cos\nsystem\n(S'touch owned'\ntR.")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("t.npy", evil)
        archive.writestr("../../x.npy", evil)
    return {
        "an npy of objects": ("t.npy", objects.getvalue()),
        "an npy with a pickle": ("t.npy", evil),
        "an npz with a pickle": ("t.npz", inner.getvalue()),
        "an npy that claims a petabyte": ("t.npy", _npy("<f4", (2**48,))),
        "an npy of negative size": ("t.npy", _npy("<f4", (-5,))),
        "an npy whose header is code": ("t.npy", b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('id')  \n"),
        "an npy with a deep header": ("t.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535),
        "a csv with NUL": ("t.csv", b"t,x\n1,\0\n2,3\n"),
        "a csv with a huge cell": ("t.csv", b"t,x\n1," + b"9" * 1_000_000 + b"\n"),
        "a csv with escapes": ("t.csv", b"t,\x1b[2J\n1,\x1b]0;owned\x07\n"),
        "a csv of formulas": ("t.csv", b"t,x\n=cmd|' /C calc'!A0,1\n1,2\n"),
        "a csv that is not text": ("t.csv", bytes(range(256)) * 40),
        "a csv without rows": ("t.csv", b"t,x\n"),
        "an empty csv": ("t.csv", b""),
        "a parquet that is none": ("t.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"),
        "an npz that is none": ("t.npz", b"PK\x03\x04" + b"\xff" * 100),
        "a pickle": ("t.pkl", pickle.dumps({"a": 1})),
    }
