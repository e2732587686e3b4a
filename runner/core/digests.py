"""Digests of tensors, batches and generator states: short hashes of their bytes."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from runner.core.layouts import is_strided, list_strided_parts
from runner.core.trees import iterate_tensors

LENGTH = 16  # hexadecimal digits of a digest


LARGE = 4 * 2**20  # bytes of a tensor that has a digest of its own, by a thread of its own


MOST_THREADS = 8


_OF_NUMPY = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16}


def get_bytes(tensor: Tensor) -> Any:
    """Return the bytes of a strided tensor, as a buffer on the CPU."""
    plain = tensor.detach() if tensor.requires_grad else tensor
    if plain.device.type != "cpu":
        plain = plain.cpu()
    if not plain.is_contiguous():
        plain = plain.contiguous()
    if plain.dtype not in _OF_NUMPY:  # complex numbers may be conjugated lazily, and NumPy knows no bfloat16
        plain = plain.resolve_conj().reshape(-1).view(torch.uint8)
    return plain.resolve_neg().numpy() if plain.is_neg() else plain.numpy()


def hash_tensor(tensor: Tensor) -> int:
    """Hash the bytes of a tensor to 32 bits (CRC-32): for probes of a step, where a digest takes too long."""
    return zlib.crc32(get_bytes(tensor))


def hash_rows(tensors: Sequence[Tensor]) -> list[int]:
    """Hash each of many tensors as `hash_tensor` does; those of one kind together, in half the time."""
    kinds = {(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) != 1 or not tensors[0].numel():
        return [hash_tensor(tensor) for tensor in tensors]
    content = memoryview(get_bytes(torch.stack([*tensors]))).cast("B")
    width = tensors[0].nbytes
    return [zlib.crc32(content[start : start + width]) for start in range(0, len(content), width)]


def hash_tree(tree: Any) -> str:
    """Digest a tree of tensors and plain values: its names, dtypes, shapes and bytes, in its order."""
    digest = hashlib.sha256()
    update_digest(digest, tree, _hash_large(tree))
    return digest.hexdigest()[:LENGTH]


def _hash_large(tree: Any) -> dict[int, bytes]:
    """Hash the large tensors of a tree by several threads; return their digests by `id`."""
    large = {id(one): one for one in iterate_tensors(tree) if is_strided(one) and one.nbytes >= LARGE}
    if not large:
        return {}
    with ThreadPoolExecutor(max_workers=min(len(large), MOST_THREADS)) as pool:
        found = pool.map(lambda one: hashlib.sha256(get_bytes(one)).digest(), large.values())
        return dict(zip(large, found, strict=True))


def update_digest(digest: Any, tree: Any, large: Mapping[int, bytes]) -> None:
    """Add a tree of tensors and plain values to a digest; of `large` tensors their own digests."""
    if isinstance(tree, Tensor):
        digest.update(_describe_kind(tree))
        if is_strided(tree):
            digest.update(large.get(id(tree)) or get_bytes(tree))
        else:
            for part in list_strided_parts(tree):
                digest.update(get_bytes(part))
    elif isinstance(tree, Mapping):
        for name, member in tree.items():
            digest.update(f"{name}:".encode())
            update_digest(digest, member, large)
    elif isinstance(tree, list | tuple):
        digest.update(f"[{len(tree)}]".encode())
        for member in tree:
            update_digest(digest, member, large)
    elif tree is None or isinstance(tree, bool | int | float | str):
        digest.update(repr(tree).encode())
    else:
        digest.update(type(tree).__qualname__.encode())  # no plain value: its `repr` may hold an address


def hash_generators() -> dict[str, str]:
    """Hash the states of torch's global generators: 10 µs, where all generators take 90."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.stack(torch.cuda.get_rng_state_all())
    return {name: f"{hash_tensor(state):08x}" for name, state in states.items()}


def hash_saved_generators(saved: Mapping[str, Any]) -> dict[str, str]:
    """Hash the states of all generators, as `rng.get_state` gives them, in the form of `hash_generators`."""
    hashes = {"torch": hash_tensor(saved["torch"])}
    if saved["cuda"]:
        hashes["cuda"] = hash_tensor(torch.stack(saved["cuda"]))
    for name in ("numpy", "python"):
        parts = saved[name]
        hashes[name] = zlib.crc32(repr([part for part in parts if not isinstance(part, Tensor)]).encode())
        for part in parts:
            if isinstance(part, Tensor):
                hashes[name] = zlib.crc32(get_bytes(part), hashes[name])
    return {name: f"{value:08x}" for name, value in hashes.items()}


def hash_parts(parts: Mapping[str, Any]) -> dict[str, str]:
    """Digest each part of a mapping that has anything in it."""
    return {name: hash_tree(part) for name, part in parts.items() if part is not None and not _is_empty(part)}


def hash_batch(batch: Any) -> dict[str, str]:
    """Digest each member of a batch, by its position or key; a batch that is one thing has the name `all`."""
    if isinstance(batch, Mapping):
        return {str(name): hash_tree(member) for name, member in batch.items()}
    if isinstance(batch, list | tuple):
        return {str(place): hash_tree(member) for place, member in enumerate(batch)}
    return {"all": hash_tree(batch)}


_KINDS: dict[tuple[Any, ...], bytes] = {}  # formatting takes longer than hashing a small tensor


def _describe_kind(tensor: Tensor) -> bytes:
    kind = (tensor.dtype, tensor.shape if is_strided(tensor) else ())
    if kind not in _KINDS:
        _KINDS[kind] = f"{tensor.dtype} {tuple(kind[1])}".encode()
    return _KINDS[kind]


def _is_empty(part: Any) -> bool:
    return isinstance(part, list | Mapping) and not part
