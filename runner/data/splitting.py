"""Split a dataset's indices, compare class names between splits, and weigh classes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.core import rng
from runner.data.interfaces import Indices

MANY = 20  # samples from which as many classes as samples are no classes


CLASSES_SHOWN = 12  # names in an error


MOST_CLASSES = 100_000  # whose names a record keeps


HIDDEN_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def split_indices(
    length: int,
    fractions: Mapping[str, float],
    seed: int,
    labels: Sequence[int] | Tensor | None = None,
    *,
    folds: int | None = None,
    fold: int | None = None,
) -> dict[str, Indices]:
    """Split range(length) into `fractions` by name and `train`, by a keyed shuffle of each class.

    With `folds`, what the fractions leave is dealt out to that many folds, and `val` is fold number `fold`: the folds
    are disjoint, differ by at most one sample a class, and the fractions' splits are the same for all of them. Without
    a `fold`, all of them are `train`.

    Raises:
        ValueError: a split would be empty.
    """
    classes = np.zeros(length, np.int64) if labels is None else np.asarray(labels)
    folds = folds if fold is not None else None
    names = ["train", *fractions, *(["val"] if folds else [])]
    parts: dict[str, list[Indices]] = {name: [] for name in names}
    dealt = 0  # where the next class begins to deal, so that small remainders spread over the folds
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        members = members[rng.draw_permutation(rng.derive_key(seed, "split", int(label)), len(members))]
        taken = 0
        for name, fraction in fractions.items():
            count = round(fraction * len(members))
            parts[name].append(members[taken : taken + count])
            taken += count
        rest = members[taken:]
        if folds:
            mine = (np.arange(len(rest)) + dealt) % folds == fold
            dealt += len(rest)
            parts["val"].append(rest[mine])
            rest = rest[~mine]
        parts["train"].append(rest)
    split = {name: np.sort(np.concatenate(members)) for name, members in parts.items()}
    for name, indices in split.items():
        if not len(indices) and labels is not None and length >= MANY and len(np.unique(classes)) * 2 > length:
            message = f"{length} samples have {len(np.unique(classes))} different labels: `dataset.stratify=false`"
            raise ValueError(message)
        if not len(indices):
            message = f"the {name} split is empty: {length} samples, fractions {dict(fractions)}"
            raise ValueError(message)
    return split


def compare_classes(datasets: Mapping[str, Any]) -> None:
    """Compare the class names of every split with those of train: each name has one index.

    Raises:
        ValueError: a split has a class that train does not have, or has it under another index; or a hidden folder
            is a class.
    """
    known: tuple[str, dict[str, int]] | None = None
    for split in sorted(datasets, key="train".__ne__):
        for dataset, indices in _find_named_classes(datasets[split]):
            hidden = [name for name in indices if _is_hidden(dataset, name)]
            if hidden:
                folder = Path(dataset.root) / hidden[0]
                raise ValueError(f"{split} has {folder} as the class {indices[hidden[0]]}: remove this hidden folder")
            if known is None and split == "train":
                known = (split, indices)
            if known is None or indices.items() <= known[1].items():
                continue
            strange = [repr(name) for name in indices if name not in known[1]]
            moved = [name for name in indices if known[1].get(name, indices[name]) != indices[name]]
            said = [f"train has no {', '.join(strange[:CLASSES_SHOWN])}"] if strange else []
            said += (
                [f"{moved[0]!r} is {indices[moved[0]]} in {split} and {known[1][moved[0]]} in train"] if moved else []
            )
            message = (
                f"the classes of {split} are not those of train: {'; '.join(said)}. "
                f"{split}: {_format_classes(indices)}; train: {_format_classes(known[1])}. "
                "Each split needs the class names of train (an empty folder counts with `allow_empty: true`), "
                "or whole numbers as labels"
            )
            raise ValueError(message)


def _find_named_classes(dataset: Any) -> Iterator[tuple[Any, dict[str, int]]]:
    """Yield each nested dataset that names its classes, with the index of each name."""
    indices, names = getattr(dataset, "class_to_idx", None), getattr(dataset, "classes", None)
    if isinstance(indices, Mapping) and all(isinstance(index, int) for index in indices.values()):
        yield dataset, {str(name): index for name, index in indices.items()}
    elif isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        yield dataset, {name: index for index, name in enumerate(names)}
    else:
        inner = getattr(dataset, "datasets", None)
        members = inner if isinstance(inner, list | tuple) else [getattr(dataset, "dataset", None)]
        for member in members:
            if member is not None and member is not dataset:
                yield from _find_named_classes(member)


def describe_names(dataset: Any) -> dict[str, list[str]]:
    """Describe the names that a dataset knows: `classes` by index, and `inputs`, the columns of a table.

    A class index without a name has its number.
    """
    found: dict[str, list[str]] = {}
    for _, indices in _find_named_classes(dataset):
        names = {index: name for name, index in indices.items()}
        if names and min(names) >= 0 and max(names) < MOST_CLASSES:
            found["classes"] = [names.get(index, str(index)) for index in range(max(names) + 1)]
        break
    while dataset is not None and "inputs" not in found:
        columns = getattr(dataset, "inputs", None)
        if isinstance(columns, list) and all(isinstance(column, str) for column in columns):
            found["inputs"] = list(columns)
        inner = getattr(dataset, "dataset", None)
        dataset = None if inner is dataset else inner
    return found


def _is_hidden(dataset: Any, name: str) -> bool:
    root = getattr(dataset, "root", None)
    hidden = name.startswith(".") or name in HIDDEN_FOLDERS
    return hidden and isinstance(root, str | Path) and (Path(root) / name).is_dir()


def _format_classes(indices: Mapping[str, int]) -> str:
    shown = [f"{name!r} {index}" for name, index in list(indices.items())[:CLASSES_SHOWN]]
    return f"{', '.join(shown)}{', …' if len(indices) > CLASSES_SHOWN else ''} ({len(indices)})"


def compute_balanced_weights(labels: Tensor) -> Tensor:
    """Compute weights, float32 [classes]: samples / (classes * samples of the class).

    scikit-learn's `class_weight="balanced"` (King and Zeng 2001); 0 for a class without samples.
    """
    counts = torch.bincount(labels)
    weights = len(labels) / (int((counts > 0).sum()) * counts.double())
    return torch.where(counts > 0, weights, 0.0).float()
