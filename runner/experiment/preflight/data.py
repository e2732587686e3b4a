"""Preflight of the data: a made-up batch of the stated sample, collated and transformed."""

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, default_collate

from runner.config.check.imports import import_object
from runner.config.schema import Config, Dataset, Sample
from runner.core.errors import Mistake
from runner.experiment.builders import data as data_builder
from runner.experiment.builders.instantiate import InstantiationError, Trust
from runner.experiment.builders.lending import lend, lend_stand_ins
from runner.experiment.preflight.report import Preflight, locate_user_code, to_mistake
from runner.model.meta import to_meta
from runner.train.steps import needs_input_and_target


def make_zeros(sample: Sample) -> Any:
    """Make a raw sample's member of zeros: a tensor, or a black PIL image."""
    if sample.mode is not None:
        from PIL import Image

        width, height = sample.size or [1, 1]
        return Image.new(sample.mode, (width, height))
    return torch.zeros(sample.shape or [], dtype=getattr(torch, sample.dtype or "float32"))


def is_evaluated(dataset: Dataset) -> bool:
    """Return whether a dataset has a split that is evaluated, in training or at its end."""
    held_out = dataset.val_fraction or dataset.test_fraction or dataset.fold is not None
    split_off = dataset.source is not None and bool(held_out)
    given = (dataset.val, dataset.test, *dataset.evaluate.values())
    return split_off or any(node is not None for node in given)


def make_sample_batch(config: Config, found: Preflight, trust: Trust) -> Any:
    """Make a batch of two zero samples on the meta device, transformed on the CPU and collated."""
    stated = config.dataset.sample
    if config.dataset.steps_per_epoch is not None:
        return None
    if stated is None:
        found.notes.append(
            "the dataset states no `sample`, so transforms, model and loss meet the first real batch first"
        )
        return None
    if isinstance(stated, Sample):
        stated = [stated, Sample(shape=[], dtype="int64")]
    sample: Any = (
        {name: make_zeros(member) for name, member in stated.items()}
        if isinstance(stated, dict)
        else tuple(make_zeros(member) for member in stated)
    )
    if config.transform.on != "sample" and _has_missing_member(config, found, sample, trust):
        return None
    evaluated = is_evaluated(config.dataset)
    if evaluated:
        found.eval_batch = to_meta(_collate_sample(config, found, "eval", sample, trust))
    refused = evaluated and found.eval_batch is None
    batch = None if refused else _collate_sample(config, found, "train", sample, trust)
    if batch is None:
        return None
    try:
        transforms = data_builder.make_transforms(config, "batch", trust)
    except InstantiationError as error:
        found.mistakes.append(to_mistake(error))
        return None
    for name, transform in transforms.items():
        try:
            batch = transform(batch)
        except Exception as error:  # noqa: BLE001  a user's transform may raise anything
            rule = f"refuses a batch of two samples of zeros: {type(error).__name__}: {error}"
            found.mistakes.append(Mistake(f"transform.batch.{name}", rule, kind="refused"))
            return None
    return to_meta(batch)


def _has_missing_member(config: Config, found: Preflight, sample: Any, trust: Trust) -> bool:
    """Return whether the step names a member that the sample lacks; record the mistake."""
    known = list(sample) if isinstance(sample, dict) else list(range(len(sample)))
    step = import_object(config.step["_target_"], trust)
    for name in ("input", "target") if needs_input_and_target(step) else ():
        place = config.step.get(name)
        wanted = place.values() if isinstance(place, dict) else place if isinstance(place, list) else [place]
        if any(member is not None and member not in known for member in wanted):
            rule = f"must name members of a sample, which are {', '.join(map(str, known))}"
            found.mistakes.append(Mistake(f"step.{name}", rule, place, kind="no-match"))
            return True
    return False


def _collate_sample(
    config: Config, found: Preflight, which: Literal["train", "eval"], sample: Any, trust: Trust
) -> Any:
    """Transform a sample and collate two copies to a batch; None if that is refused or unknown."""
    try:
        with lend(lend_stand_ins()) as loan:
            pipeline = data_builder.make_pipeline(config, which, trust)
        if loan.fitted.parts:
            what = f"{next(iter(loan.fitted.parts))} is fitted to the training split"
            found.notes.append(f"{what}, so transforms, model and loss meet the first real batch first")
            return None
        found.plan.append(f"transform.{which}: {data_builder.describe_transforms(config, pipeline, sample)}")
        transformed = pipeline.apply(sample)
    except InstantiationError as error:
        found.mistakes.append(to_mistake(error))
        return None
    except Exception as error:  # noqa: BLE001  a user's transform may raise anything
        rule = f"refuses a sample of zeros: {type(error).__name__}: {error}"
        found.mistakes.append(Mistake(f"transform.{which}", rule, where=locate_user_code(error), kind="refused"))
        return None
    if config.loader.batch_size is None:
        return transformed
    try:
        return default_collate([transformed, transformed])
    except TypeError:
        _report_uncollated(config, found, which, transformed)
        return None


def _report_uncollated(config: Config, found: Preflight, which: str, transformed: Any) -> None:
    """Note a sample that is no tensor if the user has a `collate_fn`; record a mistake otherwise."""
    if config.loader.collate_fn is not None:
        found.notes.append("the transformed sample is no tensor, so model and loss meet the first real batch first")
        return
    members = transformed.values() if isinstance(transformed, dict) else transformed
    kinds = ", ".join(type(member).__name__ for member in members)
    rule = f"must end with what can be joined into a batch (tensors, numbers), but makes {kinds} of a sample"
    remedy = "torchvision.transforms.v2.ToImage, then ToDtype with dtype: torch.float32 and scale: true, make tensors"
    found.mistakes.append(Mistake(f"transform.{which}", rule, remedy=remedy, kind="refused"))


def check_dataset(config: Config, trust: Trust = ()) -> list[Mistake]:
    """Find dataset keys that contradict each other or have no effect, and misplaced downloads."""
    chosen, found = config.dataset, []
    if chosen.folds is not None:
        if chosen.source is None:
            found.append(
                Mistake("dataset.folds", "has no effect without `dataset.source`: only that is split", kind="no-effect")
            )
        if chosen.val_fraction:
            found.append(
                Mistake(
                    "dataset.val_fraction",
                    "must be 0 with folds: the fold is val",
                    chosen.val_fraction,
                    kind="conflict",
                )
            )
    found += _check_streamed_order(config, trust)
    if chosen.class_weights is not None and config.loss is not None:
        target = import_object(config.loss["_target_"], trust)
        if "weight" not in inspect.signature(target).parameters:
            rule = f"needs a loss with an argument `weight`, and `{config.loss['_target_']}` has none"
            found.append(Mistake("dataset.class_weights", rule, kind="conflict"))
        elif "weight" in config.loss:
            found.append(
                Mistake("loss.weight", "is given by `dataset.class_weights`: leave one of them out", kind="conflict")
            )
    return found


def _check_streamed_order(config: Config, trust: Trust) -> list[Mistake]:
    """Find an order that is asked of an iterable dataset, which owns it."""
    key = "dataset.train" if config.dataset.train is not None else "dataset.source"
    node, loader = config.dataset.train or config.dataset.source, config.loader
    target = None if node is None else import_object(node["_target_"], trust)
    if not (isinstance(target, type) and issubclass(target, IterableDataset)):
        return []
    asked = {"loader.sampler": loader.sampler is not None, "loader.batch_sampler": loader.batch_sampler is not None}
    asked |= {"loader.shuffle": loader.batch_size is None and loader.shuffle}  # it is true unless it is said
    rule = f"has no effect: {key} is an iterable dataset, which owns its order"
    return [
        Mistake(name, rule, remedy="take `loader.shuffle=false`" * (name == "loader.shuffle"), kind="no-effect")
        for name, wrong in asked.items()
        if wrong
    ]


def describe_folds(config: Config) -> list[str]:
    """Describe that no fold is held out where `dataset.folds` has no `dataset.fold`."""
    chosen = config.dataset
    if chosen.folds is None or chosen.fold is not None:
        return []
    several = f"-m 'dataset.fold=range(0,{chosen.folds})'"
    return [f"no fold is held out (dataset.fold is null), so all of them train; one job for each is `{several}`"]


def describe_downloads(config: Config) -> list[str]:
    """Describe the downloads whose files are not here yet."""
    nodes = [node for node in config.dataset.downloads.values() if node is not None]
    missing = [node for node in nodes if not any(Path(place).exists() for place in (node.unpack, node.to) if place)]
    return [
        f"{node.url if isinstance(node.url, str) else node.url[0]} will be downloaded to {node.to}"
        + (f" ({node.size / 1e6:,.1f} MB)" if node.size else "")
        for node in missing
    ]
