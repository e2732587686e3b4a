"""Randomness keyed by name: every stream is a function of (seed, names), never of what ran before.

Per-sample numbers come from a counter-based hash, so order and augmentation depend neither on the number of workers nor
on the batch a sample happens to be in.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_U64 = np.uint64


def derive_key(seed: int, *names: str | int) -> int:
    """Derive the 63-bit key of the stream `(seed, *names)` by BLAKE2b; `('a', 1)` and `('a1',)` differ."""
    text = repr((seed, *names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_all(stream_key: int) -> None:
    """Seed the global generators of torch (every device), NumPy and Python."""
    torch.default_generator.manual_seed(stream_key)  # 1 µs, where torch.manual_seed takes 83
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(stream_key)
    np.random.seed(stream_key & 0xFFFFFFFF)  # noqa: NPY002  user code draws from the global generator
    random.seed(stream_key)


def get_state() -> dict[str, Any]:
    """Return all global generator states in a form that `torch.load(weights_only=True)` opens."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, words, position, has_gauss, gauss = numpy_state
    version, internal, gauss_next = random.getstate()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
        "numpy": [str(name), torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
    }


def mark_state() -> dict[str, Any]:
    """Copy the generator states on the CPU as they are, to be compared: half the time of `get_state`."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, words, *rest = numpy_state
    marks = {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": (name, words.tobytes(), *rest)}
    return {**marks, "python": random.getstate()}


def set_state(saved: dict[str, Any]) -> None:
    """Restore the generator states that `get_state` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    name, words, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = saved["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python on exit."""
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def stream(stream_key: int) -> Iterator[None]:
    """Draw from the stream of this key inside; restore the global generators on exit."""
    with fork_rng():
        seed_all(stream_key)
        yield


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply SplitMix64's finalizer (Steele, Lea, Flood 2014): bijective on 64 bits, passes BigCrush."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def _hash(stream_key: int | npt.NDArray[np.uint64], counters: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    keys = np.atleast_1d(np.asarray(stream_key, _U64))
    with np.errstate(over="ignore"):
        return _mix(_mix(counters.astype(np.uint64) * _U64(0x9E3779B97F4A7C15)) ^ _mix(keys))


def draw_uniforms(stream_key: int | npt.NDArray[np.uint64], indices: npt.NDArray[np.int64], draws: int) -> torch.Tensor:
    """Draw uniform float32 in [0, 1), [len(indices), draws]; row i depends on (key, indices[i]) alone.

    `stream_key` may have a key for each row.
    """
    rows = _hash(stream_key, indices)[:, None]
    with np.errstate(over="ignore"):
        words = _mix(rows + np.arange(1, draws + 1, dtype=np.uint64)[None] * _U64(0x9E3779B97F4A7C15))
    return torch.from_numpy((words >> _U64(40)).astype(np.float32) * np.float32(2**-24))


def draw_permutation(stream_key: int, length: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(length), int64, the same on every platform and version."""
    return np.argsort(_hash(stream_key, np.arange(length))).astype(np.int64)
