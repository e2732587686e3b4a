"""Rules for `dataset`, `transform` and `loader`: contradictions and settings without effect."""

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from runner.config import schema
from runner.config.check.rules.rule import Finding, find_unused_settings
from runner.config.reading import format_yaml
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import Mistake

MOST_NUMBERS = 2**28  # of a stated sample: `check` makes it up, so that it is really in memory


_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
    "complex64",
    "complex128",
)


def check_splits(dataset: schema.Dataset) -> Iterator[Finding]:
    """Yield findings about the splits of `dataset` and the keys that make them."""
    given = [name for name in ("train", "val", "test") if getattr(dataset, name) is not None]
    if dataset.source is None and dataset.train is None and dataset.steps_per_epoch is None:
        rule = "must be given (or `dataset.source`, which is then split; a step without data has `dataset=none`)"
        yield Finding(Mistake("dataset.train", rule, kind="missing"), ("dataset.source", "dataset"))
    if dataset.steps_per_epoch is not None and (dataset.source is not None or "train" in given):
        rule = "is for a step without data: it must not stand beside any"
        yield Finding(Mistake("dataset.steps_per_epoch", rule, dataset.steps_per_epoch, kind="conflict"), ("dataset",))
    if dataset.source is not None and "train" in given:
        yield Finding(
            Mistake(
                "dataset.source",
                "must not stand beside `dataset.train`: one of them is the training data",
                kind="conflict",
            )
        )
    if dataset.fold is not None and dataset.folds is None:
        rule = "must be given: `dataset.folds` says how many, `dataset.fold` which one is val"
        yield Finding(Mistake("dataset.folds", rule, kind="missing"), ("dataset.fold",))
    if dataset.folds is not None and dataset.fold is not None and dataset.fold >= dataset.folds:
        rule = f"must be below dataset.folds, {dataset.folds}"
        yield Finding(Mistake("dataset.fold", rule, dataset.fold, kind="conflict"), ("dataset.folds",))
    fractions = {name: getattr(dataset, f"{name}_fraction") for name in ("val", "test")}
    if sum(fractions.values()) >= 1:
        rule = "and `dataset.test_fraction` together must be below 1"
        yield Finding(
            Mistake("dataset.val_fraction", rule, sum(fractions.values()), kind="conflict"), ("dataset.test_fraction",)
        )
    for name, fraction in fractions.items():
        if fraction and dataset.source is not None and name in given:
            rule = f"must not stand beside `dataset.{name}`: one of them is the {name} data"
            yield Finding(Mistake(f"dataset.{name}_fraction", rule, fraction, kind="conflict"), (f"dataset.{name}",))


def check_downloads(downloads: dict[str, schema.Download | None]) -> Iterator[Finding]:
    """Yield findings about downloads that share a place or lie where a program would pick them up."""
    taken: dict[str, str] = {}
    for name, node in downloads.items():
        if node is None:
            continue
        for key, path in (("to", node.to), ("unpack", node.unpack)):
            if path in taken:
                mistake = Mistake(
                    f"dataset.downloads.{name}.{key}", f"is the place of `{taken[path]}` already", path, kind="conflict"
                )
                yield Finding(mistake, (taken[path],))
            elif path is not None:
                taken[path] = f"dataset.downloads.{name}.{key}"
        if node.unpack is None:
            limits = [item for item in fields(node) if item.name in ("members_limit", "size_limit", "ratio_limit")]
            for item in limits:
                value, text = getattr(node, item.name), format_yaml(item.default)
                if value != item.default:
                    key, remedy = f"dataset.downloads.{name}.{item.name}", f"leave it at `{text}`"
                    rule = "has no effect without `unpack`"
                    yield Finding(Mistake(key, rule, value, remedy=remedy, suggestion=text, kind="no-effect"))


def check_samples(sample: Any) -> Iterator[Finding]:
    """Check that each member is a tensor (`shape`, `dtype`) or an image (`mode`, `size`)."""
    members = {"dataset.sample": sample}
    if isinstance(sample, list | dict):
        pairs = sample.items() if isinstance(sample, dict) else enumerate(sample)
        members = {f"dataset.sample.{name}": member for name, member in pairs}
    for key, member in members.items():
        if member is None:
            continue
        if member.dtype is not None and member.dtype not in _DTYPES:
            right = find_nearest(member.dtype.removeprefix("torch."), _DTYPES)
            right = right or (member.dtype.removeprefix("torch.") if member.dtype[6:] in _DTYPES else "")
            rule = "must be the name of a dtype, such as float32"
            yield Finding(
                Mistake(f"{key}.dtype", rule, member.dtype, remedy=format_suggestion(right), suggestion=right)
            )
        if (member.shape is None) == (member.mode is None):
            rule = "must have either `shape` (of a tensor) or `mode` and `size` (of an image)"
            yield Finding(Mistake(key, rule, kind="conflict"), (key,))
        name, sides = ("size", member.size) if member.shape is None else ("shape", member.shape)
        if math.prod(map(abs, sides or [])) > MOST_NUMBERS:
            rule = f"must have at most {MOST_NUMBERS:,} numbers, since `check` makes such a sample up"
            yield Finding(
                Mistake(f"{key}.{name}", rule, sides, remedy="leave `dataset.sample` out", kind="value"), (key,)
            )


def find_unused_without_data(config: schema.Config) -> Iterator[Finding]:
    """Find settings of batches that have no effect because `dataset.steps_per_epoch` means no data."""
    if config.dataset.steps_per_epoch is None:
        return
    reason, key = "without data (`dataset.steps_per_epoch`)", "dataset.steps_per_epoch"
    for owner, values in (("loader", config.loader), ("transform", config.transform)):
        names = tuple(item.name for item in fields(values) if item.name != "eval" or owner == "transform")
        yield from find_unused_settings(owner, values, names, reason, key)
    if not config.dataset.evaluate and config.dataset.val is None and config.dataset.test is None:
        yield from find_unused_settings(
            "dataset", config.dataset, ("sample", "limit", "classes", "class_weights"), reason, key
        )


def check_loader(loader: schema.Loader, device: str) -> Iterator[Finding]:
    """Yield findings about loader settings without effect, or against each other."""
    if loader.num_workers == 0 and not loader.eval.num_workers:
        settings = ("prefetch_factor", "persistent_workers", "multiprocessing_context", "worker_init_fn", "timeout")
        yield from find_unused_settings(
            "loader",
            loader,
            settings,
            "while `loader.num_workers` is 0",
            "loader.num_workers",
            "loader.eval.num_workers",
        )
    if loader.num_workers or loader.in_memory is False or loader.collate_fn is not None:
        reason = "where samples do not stay in memory"
        yield from find_unused_settings(
            "loader", loader, ("in_memory_limit",), reason, "loader.num_workers", "loader.in_memory"
        )
    if device in ("cpu", "mps"):
        yield from find_unused_settings("loader", loader, ("pin_memory",), "without a CUDA device", "device.type")


def check_whole_batches(config: schema.Config) -> Iterator[Finding]:
    """Check `loader.batch_size: null`: what needs single samples does not combine with whole batches."""
    loader, dataset = config.loader, config.dataset
    if loader.batch_size is not None or dataset.steps_per_epoch is not None:
        return
    rule = "needs single samples, and the dataset gives whole batches (loader.batch_size is null)"
    ways = {
        "loader.drop_last": (loader.drop_last, "leave out what is too small in the dataset"),
        "loader.batch_sampler": (loader.batch_sampler, "take `loader.sampler`, which orders the batches"),
        "loader.collate_fn": (loader.collate_fn, "make the batch as it is to be in the dataset"),
        "loader.in_memory": (loader.in_memory is True, "leave it at `auto`"),
        "loader.bad_samples": (loader.bad_samples == "skip", "leave it at `error`"),
        "loader.eval.batch_size": (loader.eval.batch_size not in (None, 256), "leave it out: all splits give batches"),
        "dataset.stratify": (dataset.stratify, "leave it at false"),
        "dataset.class_weights": (dataset.class_weights == "balanced", "give them as a list"),
    }
    remedy = "take `transform.batch`, or let the dataset do it"
    for which in ("train", "eval"):
        nodes = getattr(config.transform, which)
        ways |= {f"transform.{which}.{name}": (node, remedy) for name, node in nodes.items()}
    for key, (value, way) in ways.items():
        if value:
            yield Finding(Mistake(key, rule, remedy=way, kind="conflict"), ("loader.batch_size",))
