"""Preflight of the data: a made-up batch of the stated sample, collated and transformed."""

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import default_collate

from runner.config.check.imports import import_object
from runner.config.schema import Config, Sample
from runner.core.errors import Mistake
from runner.experiment.builders import data as data_builder
from runner.experiment.builders.instantiate import Refused, Trust
from runner.experiment.preflight.report import Preflight, raised_in, refusal
from runner.model.meta import to_meta


def zeros(sample: Sample) -> Any:
    """A raw sample's member of zeros: a tensor, or a black PIL image."""
    if sample.mode is not None:
        from PIL import Image

        width, height = sample.size or [1, 1]
        return Image.new(sample.mode, (width, height))
    return torch.zeros(sample.shape or [], dtype=getattr(torch, sample.dtype or "float32"))


def _sample_batch(config: Config, found: Preflight, trust: Trust) -> Any:
    """Two samples of zeros, transformed on the CPU and collated, on the meta device."""
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
        {name: zeros(member) for name, member in stated.items()}
        if isinstance(stated, dict)
        else tuple(zeros(member) for member in stated)
    )
    if config.transform.on != "sample" and _misses_a_member(config, found, sample):
        return None
    found.eval_batch = to_meta(_collated(config, found, "eval", sample, trust))
    batch = None if found.eval_batch is None else _collated(config, found, "train", sample, trust)
    if batch is None:
        return None
    try:
        transforms = data_builder.make_transforms(config, "batch", trust)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    for name, transform in transforms.items():
        try:
            batch = transform(batch)
        except Exception as error:  # noqa: BLE001  a user's transform may raise anything
            rule = f"refuses a batch of two samples of zeros: {type(error).__name__}: {error}"
            found.mistakes.append(Mistake(f"transform.batch.{name}", rule))
            return None
    return to_meta(batch)


def _misses_a_member(config: Config, found: Preflight, sample: Any) -> bool:
    """Whether `input` or `target` of the supervised step names a member that the sample does not have."""
    known = list(sample) if isinstance(sample, dict) else list(range(len(sample)))
    for name in ("input", "target") if config.step["_target_"] == "runner.train.steps.supervised" else ():
        place = config.step.get(name)
        wanted = place.values() if isinstance(place, dict) else place if isinstance(place, list) else [place]
        if any(member is not None and member not in known for member in wanted):
            rule = f"must name members of a sample, which are {', '.join(map(str, known))}"
            found.mistakes.append(Mistake(f"step.{name}", rule, place))
            return True
    return False


def _collated(config: Config, found: Preflight, which: Literal["train", "eval"], sample: Any, trust: Trust) -> Any:
    """Two of the sample, each transformed, as a batch; None where that was refused or is not known."""
    try:
        pipeline = data_builder.make_pipeline(config, which, trust)
        found.plan.append(f"transform.{which}: {data_builder.foreseen(config, pipeline, sample)}")
        transformed = pipeline.apply(sample)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    except Exception as error:  # noqa: BLE001  a user's transform may raise anything
        rule = f"refuses a sample of zeros: {type(error).__name__}: {error}"
        found.mistakes.append(Mistake(f"transform.{which}", rule, where=raised_in(error)))
        return None
    try:
        return default_collate([transformed, transformed])
    except TypeError:
        _not_collated(config, found, which, transformed)
        return None


def _not_collated(config: Config, found: Preflight, which: str, transformed: Any) -> None:
    """Note what is no tensor: a mistake, unless the user's own function makes the batches."""
    if config.loader.collate_fn is not None:
        found.notes.append("the transformed sample is no tensor, so model and loss meet the first real batch first")
        return
    members = transformed.values() if isinstance(transformed, dict) else transformed
    kinds = ", ".join(type(member).__name__ for member in members)
    rule = f"must end with what can be joined into a batch (tensors, numbers), but makes {kinds} of a sample"
    remedy = "torchvision.transforms.v2.ToImage, then ToDtype with dtype: torch.float32 and scale: true, make tensors"
    found.mistakes.append(Mistake(f"transform.{which}", rule, remedy=remedy))


def mistakes(config: Config, trust: Trust = ()) -> list[Mistake]:
    """Keys of the dataset that contradict each other or have no effect."""
    chosen, found = config.dataset, []
    if (chosen.folds is None) != (chosen.fold is None):
        key = "dataset.fold" if chosen.fold is None else "dataset.folds"
        found.append(Mistake(key, "must be given: `dataset.folds` says how many, `dataset.fold` which one is val"))
    elif chosen.folds is not None and chosen.fold is not None:
        if chosen.fold >= chosen.folds:
            found.append(Mistake("dataset.fold", f"must be below dataset.folds, {chosen.folds}", chosen.fold))
        if chosen.source is None:
            found.append(Mistake("dataset.folds", "has no effect without `dataset.source`: only that is split"))
        if chosen.val_fraction:
            found.append(Mistake("dataset.val_fraction", "must be 0 with folds: the fold is val", chosen.val_fraction))
    if chosen.class_weights is not None and config.loss is not None:
        target = import_object(config.loss["_target_"], trust)
        if "weight" not in inspect.signature(target).parameters:
            rule = f"needs a loss with an argument `weight`, and `{config.loss['_target_']}` has none"
            found.append(Mistake("dataset.class_weights", rule))
        elif "weight" in config.loss:
            found.append(Mistake("loss.weight", "is given by `dataset.class_weights`: leave one of them out"))
    return found


def downloads_to_come(config: Config) -> list[str]:
    """What would have to be downloaded first, in words."""
    nodes = [node for node in config.dataset.downloads.values() if node is not None]
    missing = [node for node in nodes if not any(Path(place).exists() for place in (node.unpack, node.to) if place)]
    return [
        f"{node.url if isinstance(node.url, str) else node.url[0]} will be downloaded to {node.to}"
        + (f" ({node.size / 1e6:,.1f} MB)" if node.size else "")
        for node in missing
    ]
