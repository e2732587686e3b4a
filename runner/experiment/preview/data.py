"""Preview of the data: contact sheets, class balance, value ranges, before and after transforms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.config.schema import Config
from runner.core import rng
from runner.core.errors import RunError
from runner.core.escape import cut_name
from runner.data import batches
from runner.data.bad_samples import BadSample
from runner.data.file_guard import watch_reading
from runner.data.interfaces import Indices
from runner.data.samples import to_image
from runner.experiment.builders import data as data_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.builders.lending import lend, lend_stand_ins
from runner.log import images as log_images

SHOWN = 32  # samples of a split on its sheet


COUNTED = 10_000  # labels that are read one by one where the dataset has no list of them


def inspect_splits(config: Config, folder: Path, trust: Trust = ()) -> dict[str, Any]:
    """Collect facts of each split; write `<split>_raw.png`, `<split>.png` and TensorBoard images.

    Raises:
        RunError: a dataset cannot be had, or a sample cannot be read.
    """
    from tensorboardX import SummaryWriter

    with lend(lend_stand_ins()):
        parts = data_builder.make_parts(config, trust)
        splits = data_builder.make_splits(config, parts, torch.device("cpu"), trust)
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    with SummaryWriter(str(folder), filename_suffix=".show") as writer:
        for name, (dataset, rows) in parts.items():
            indices = (
                batches.choose_indices(dataset, rows, name, config.dataset.limit) if _has_length(dataset) else None
            )
            raw = _read_raw_samples(config, dataset, indices, name)
            batch = next(iter(splits[name].batches(0)), None)
            samples = {"raw": raw, "": [] if batch is None else _split_rows(batch)}
            labels = {"raw": [_get_label(config, sample) for sample in raw], "": _get_batch_labels(config, batch)}
            found: dict[str, Any] = {"samples": splits[name].size, "plan": splits[name].plan.text}
            found["classes"] = _count_classes(config, dataset, indices)
            found["values"] = {
                "raw": _compute_ranges(raw),
                "transformed": {} if batch is None else _compute_ranges([batch]),
            }
            found["pictures"] = []
            names = list(map(cut_name, _get_class_names(dataset)))
            for kind, some in samples.items():
                images = [
                    _to_picture(_get_member(sample, data_builder.get_member_key(config, "input"))) for sample in some
                ]
                shown = [image for image in images if image is not None]
                sheet = log_images.draw_contact_sheet(
                    shown, labels[kind], names, points=list(map(_collect_points, some))
                )
                if sheet is not None:
                    file = folder / f"{name}{'_' * bool(kind)}{kind}.png"
                    sheet.save(file)
                    writer.add_image(file.stem, np.asarray(sheet).transpose(2, 0, 1), 0)
                    found["pictures"].append(str(file))
            facts[name] = found
    return facts


def _has_length(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and not isinstance(dataset, torch.utils.data.IterableDataset)


def _read_raw_samples(config: Config, dataset: Any, indices: Indices | None, split: str) -> list[Any]:
    """Read the first raw samples of a split, in the order of its first epoch."""
    from runner.data.keyed_samples import KeyedSamples
    from runner.data.samples import EpochOrder, Pipeline, Stream

    stream = Stream(config.seed, split)
    if indices is None:
        with rng.stream(stream.key(0, "dataset")):
            return [sample for sample, _ in zip(dataset, range(SHOWN), strict=False)]
    shuffle = config.loader.shuffle and split == "train" and config.loader.sampler is None
    order = EpochOrder(len(indices), stream, shuffle=shuffle)(0)[:SHOWN]
    samples = KeyedSamples(dataset, indices, Pipeline(), stream).__getitems__([(0, int(place)) for place in order])
    sound = [sample for sample in samples if not isinstance(sample, BadSample)]
    if not sound:
        fault = samples[0]
        raise RunError(f"{split} sample {fault.index}{f' ({fault.file})' * bool(fault.file)}: {fault.error}")
    return sound


def _get_member(sample: Any, place: Any) -> Any:
    try:
        return sample[place]
    except (KeyError, IndexError, TypeError):
        return sample.get("image") if isinstance(sample, Mapping) else None


def _split_rows(batch: Any) -> list[Any]:
    """Split a batch of tensors into its first samples: mappings or lists."""
    members = batch if isinstance(batch, Mapping) else dict(enumerate(batch))
    tensors = {place: member for place, member in members.items() if isinstance(member, Tensor) and member.dim()}
    count = min([SHOWN, *map(len, tensors.values())]) if tensors else 0
    rows = [{place: member[row] for place, member in tensors.items()} for row in range(count)]
    return rows if isinstance(batch, Mapping) else [[row.get(place) for place in members] for row in rows]


def _collect_points(sample: Any) -> list[list[float]]:
    """Collect the points (x, y) of a sample with named members, from its members of two columns."""
    members = list(sample.values()) if isinstance(sample, Mapping) else []
    pairs = [m for m in members if isinstance(m, Tensor) and m.dim() == 2 and m.shape[1] == 2]
    return [point for member in pairs for point in member.tolist()]


def _to_picture(value: Any) -> Tensor | None:
    """Convert an image to a uint8 tensor [3, H, W]; None for other values."""
    if hasattr(value, "convert"):
        value = to_image(value.convert("RGB"))
    return log_images.as_picture(value) if isinstance(value, Tensor) else None


def _get_label(config: Config, sample: Any) -> Any:
    member = (
        _get_member(sample, data_builder.get_member_key(config, "target")) if not isinstance(sample, Mapping) else None
    )
    if isinstance(member, Tensor):
        return member.item() if member.numel() == 1 else None
    return member if isinstance(member, int | float) else None


def _get_batch_labels(config: Config, batch: Any) -> list[Any]:
    member = _get_member(batch, data_builder.get_member_key(config, "target")) if batch is not None else None
    if not isinstance(member, Tensor) or member.dim() == 0 or isinstance(batch, Mapping):
        return []
    if member.dim() == 2:  # mixed labels: the largest two shares
        top = member.topk(min(2, member.shape[1]))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return ["+".join(f"{v:.1f}*{i}" for v, i in zip(*pair, strict=True) if v > 0) for pair in pairs]
    return list(member[:SHOWN].tolist()) if member.dim() == 1 else []


def _get_class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def _count_classes(config: Config, dataset: Any, indices: Indices | None) -> dict[str, int] | None:
    """Count the samples of each class by name; None if the targets are no class indices."""
    from runner.data.whole_dataset import find_dataset_tensors, read_labels

    if indices is None:
        return None
    known = hasattr(dataset, "targets") or find_dataset_tensors(dataset) is not None
    if not known and len(indices) > COUNTED:
        return None
    try:
        place = data_builder.get_member_key(config, "target")
        labels = (
            read_labels(dataset, place)[torch.from_numpy(indices)] if known else _read_labels(dataset, indices, place)
        )
    except Exception:  # noqa: BLE001  no class indices there: a question of this table, no fault of the data
        return None
    if labels.dim() != 1 or labels.is_floating_point() or int(labels.min()) < 0:
        return None
    names = _get_class_names(dataset)
    counts = torch.bincount(labels).tolist()
    return {names[label] if label < len(names) else str(label): count for label, count in enumerate(counts)}


def _read_labels(dataset: Any, indices: Indices, place: Any) -> torch.Tensor:
    with watch_reading():
        return torch.tensor([dataset[int(index)][place] for index in indices])


def _compute_ranges(samples: list[Any]) -> dict[str, dict[str, Any]]:
    """Compute shape, dtype, min, max, mean and standard deviation of each member."""
    found: dict[str, dict[str, Any]] = {}
    members: dict[str, list[Tensor]] = {}
    for sample in samples:
        items = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
        for place, member in items:
            number = _as_numbers(member)
            if number is not None:
                members.setdefault(str(place), []).append(number)
    for place, tensors in members.items():
        numbers = torch.cat([tensor.flatten().double() for tensor in tensors])
        found[place] = {
            "shape": _merge_shapes([tuple(tensor.shape) for tensor in tensors]),
            "dtype": str(tensors[0].dtype),
            "min": float(numbers.min()),
            "max": float(numbers.max()),
            "mean": float(numbers.mean()),
            "std": float(numbers.std(correction=0)),
        }
    return found


def _as_numbers(member: Any) -> Tensor | None:
    """Convert a member to a plain tensor; None for other values (a text, a nested sample)."""
    try:
        number = to_image(member) if hasattr(member, "convert") else torch.as_tensor(member)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number.as_subclass(Tensor) if number.numel() else None


def _merge_shapes(shapes: list[tuple[int, ...]]) -> list[int | str]:
    """Merge shapes: a number or `min-max` for each dimension; the number of dimensions if it differs."""
    counts = {len(shape) for shape in shapes}
    if len(counts) > 1:
        return [f"{min(counts)} to {max(counts)} dimensions"]
    ends = [(min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)]
    return [low if low == high else f"{low}-{high}" for low, high in ends]


def format_table(facts: Mapping[str, Any]) -> str:
    """Format the facts as text."""
    lines = []
    for name, split in facts.items():
        count = f"{split['samples']:,}" if split["samples"] else "an unknown number of"
        lines.append(f"{name}: {count} samples, {split['plan']}")
        if split["classes"]:
            total = sum(split["classes"].values())
            shares = (f"{label}: {count} ({count / total:.1%})" for label, count in split["classes"].items())
            lines.append("  classes      " + ", ".join(shares))
        for kind, members in split["values"].items():
            for place, v in members.items():
                numbers = " ".join(f"{word} {v[word]:.4g}" for word in ("min", "max", "mean", "std"))
                lines.append(f"  {kind:<12} {place}: [{', '.join(map(str, v['shape']))}] {v['dtype']} {numbers}")
        lines += [f"  {file}" for file in split["pictures"]]
    return "\n".join(lines)
