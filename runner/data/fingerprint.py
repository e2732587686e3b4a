"""Fingerprints of splits: hashes that tell one data set from another, and what they leave out."""

import hashlib
import inspect
import math
import os
import re
import weakref
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.core.errors import describe_error
from runner.core.layouts import is_strided, list_strided_parts
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Fingerprint, Indices
from runner.data.whole_dataset import DatasetTensors, find_dataset_tensors

FINGERPRINT_BYTES = 256 * 2**20  # of more data, rows at equal distances
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the `repr` of an object that has none of its own


def compute_fingerprint(source: Any, indices: Indices) -> Fingerprint:
    """Compute the SHA-256 of a split's data and of its sample indices.

    All bytes of whole tensors (of more than 256 MB, rows at equal distances); eight raw samples of anything else.
    """
    digest = hashlib.sha256(indices.tobytes())
    whole = source if isinstance(source, DatasetTensors) else find_dataset_tensors(source)
    if whole is not None:
        for tensor in whole.tensors.values():
            rows = tensor[:: max(1, math.ceil(tensor.nbytes / FINGERPRINT_BYTES))]
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            _update_from_strided(digest, rows)
        return Fingerprint(digest.hexdigest())
    digest.update(f"{type(source).__qualname__} {len(source)}".encode())
    hasher = _SampleHasher(digest)
    with rng.stream(rng.derive_key(0, "fingerprint")), watch_reading():
        for index in indices[:: max(1, len(indices) // 8)][:8].tolist():
            try:
                sample = source[index]
            except Exception as error:  # noqa: BLE001  a user's dataset; the sample is reported when it is used
                hasher.leave_out(f"sample {index}", f"which cannot be read ({describe_error(error)})", "unreadable")
                continue
            hasher.add(sample, "sample")
    return Fingerprint(digest.hexdigest(), tuple(hasher.left_out))


def hash_value(value: Any) -> str:
    """Return the SHA-256 of a value: tensors, arrays and numbers, nested in containers and plain objects."""
    digest = hashlib.sha256()
    _SampleHasher(digest).add(value, "value")
    return digest.hexdigest()


class _SampleHasher:
    """Hasher of raw samples; notes each member whose content it cannot read."""

    def __init__(self, digest: Any) -> None:
        self.digest = digest
        self.left_out: list[str] = []
        self._open: set[int] = set()  # the objects that it is inside of

    def leave_out(self, place: str, why: str, mark: str) -> None:
        """Note a part that is left out, and hash `mark` in its place."""
        said = f"{place}, {why}"
        if said not in self.left_out:
            self.left_out.append(said)
        self.digest.update(f"left out: {mark}".encode())

    def add(self, value: Any, place: str) -> None:
        """Hash a value: tensors, arrays, images and numbers, nested in containers and plain objects."""
        kind = type(value).__qualname__
        if id(value) in self._open:
            self.digest.update(b"itself")
            return
        self._open.add(id(value))
        try:
            self._add(value, place)
        except Exception:  # noqa: BLE001  a tensor or an object of a kind that has no bytes
            self.leave_out(f"`{place}`", f"whose {kind} cannot be hashed", kind)
        finally:
            self._open.discard(id(value))

    def _add(self, value: Any, place: str) -> None:
        if isinstance(value, Mapping):
            for name, member in value.items():
                self.add(name, f"{place}[{name!r}]")
                self.add(member, f"{place}[{name!r}]")
        elif isinstance(value, tuple | list):
            for number, member in enumerate(value):
                self.add(member, f"{place}[{number}]")
        elif isinstance(value, AbstractSet):
            for member in sorted(value, key=repr):
                self.add(member, place)
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif getattr(getattr(value, "dtype", None), "hasobject", False):  # the bytes of such an array are addresses
            self.add(value.tolist(), place)
        elif hasattr(value, "tobytes"):  # arrays, images
            self.digest.update(value.tobytes())
        else:
            self._add_object(value, place)

    def _add_tensor(self, tensor: Tensor) -> None:
        if is_strided(tensor):
            _update_from_strided(self.digest, tensor)
            return
        tensor = tensor.detach()
        if tensor.layout is torch.sparse_coo:
            tensor = tensor.coalesce()  # the same numbers in the same order
        self.digest.update(f"{tensor.layout} {tensor.dtype} {'' if tensor.is_nested else list(tensor.shape)}".encode())
        for part in list_strided_parts(tensor):
            self.digest.update(f"{part.dtype} {list(part.shape)}".encode())
            _update_from_strided(self.digest, part)

    def _add_object(self, value: Any, place: str) -> None:
        text = repr(value)
        kind = type(value).__qualname__
        names = [field.name for field in fields(value)] if is_dataclass(value) and not isinstance(value, type) else []
        names = names or [*getattr(value, "__dict__", {}), *_list_slots(value)]
        if inspect.isroutine(value) or isinstance(value, type | weakref.ref):
            self.digest.update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', kind)}".encode())
        elif names and type(value).__module__ != "builtins" and not isinstance(value, os.PathLike | Enum):
            self.digest.update(kind.encode())
            for name in names:
                if hasattr(value, name):
                    self.digest.update(name.encode())
                    self.add(getattr(value, name), f"{place}.{name}")
        elif ADDRESS.search(text):
            self.leave_out(f"`{place}`", f"whose {kind} cannot be hashed", kind)
        else:
            self.digest.update(text.encode())


def _update_from_strided(digest: Any, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _list_slots(value: Any) -> list[str]:
    slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
    return [name for names in slots for name in ([names] if isinstance(names, str) else names)]
