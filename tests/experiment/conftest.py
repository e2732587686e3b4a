"""Fixtures of whole runs: the files that shipped experiments read."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty random images in the files and the format of CIFAR-10, with their own checksums, which are verified."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def listed(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str) -> list[str]:
        images = generator.integers(0, 256, (30, 3072), dtype=np.uint8)
        return listed(name, {"data": images, "labels": generator.integers(0, 10, 30).tolist()})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{number}") for number in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = listed("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})


@pytest.fixture
def binary_cifar10(tmp_path: Path) -> None:
    """Thirty random images in each file of CIFAR-10's binary version."""
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = generator.integers(0, 256, (30, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{name}.bin")


@pytest.fixture
def image_folder(tmp_path: Path) -> None:
    """Three images of different sizes in each of two classes, where the ImageFolder experiments look."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number, split in enumerate(("train", "val")):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / "images" / split / name
            folder.mkdir(parents=True)
            for size in (40, 50, 60):
                pixels = generator.integers(0, 256, (size, size + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{size}.png")
