"""From a checked config to the batches of each split."""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner import data, rng, splitting
from runner.archive import IMPORTABLE, Limits
from runner.batched import Chain, NotBatched
from runner.component import Trust, component
from runner.config.schema import Config
from runner.config.trust import locate, user_directories
from runner.download import provide
from runner.errors import Mistake, RunError
from runner.gathered import ways
from runner.samples import Faults, Indices, Part, Pipeline, Placement, Stream, Turn, to_image

Parts = dict[str, tuple[Any, Indices | None]]  # split → dataset and which of its samples; None: all


def make_splits(
    config: Config,
    parts: Parts,
    device: torch.device,
    trust: Trust = (),
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> dict[str, data.Split]:
    """The batches of train, val, test and what else is evaluated; bad samples that are skipped are listed in `folder`.

    Process `rank` of `world` has its part of each batch in training, and whole batches in turn elsewhere.

    Raises:
        RunError: a split is empty, or its data is unsound.
    """
    image_format = torch.channels_last if config.device.memory_format == "channels_last" else torch.contiguous_format
    placement = Placement(device, image_format)
    without = config.dataset.steps_per_epoch
    nothing: dict[str, data.Split] = {} if without is None else {"train": data.Nothing(without)}
    try:
        return nothing | {
            name: data.make_split(
                dataset,
                indices,
                make_pipeline(config, "train" if name == "train" else "eval", trust),
                Stream(config.seed, name),
                placement,
                loader_settings(config, name, dataset, indices, trust, world, pins=device.type == "cuda"),
                limit=config.dataset.limit,
                batch_transforms=make_transforms(config, "batch", trust) if name == "train" else None,
                faults=make_faults(config, name, folder),
                share=Part(rank, world) if name == "train" else Turn(rank, world),
            )
            for name, (dataset, indices) in parts.items()
        }
    except ValueError as error:
        raise RunError(str(error)) from error


def make_parts(config: Config, trust: Trust = ()) -> Parts:
    """The dataset of each split, and which of its samples the split has.

    Raises:
        RunError: a dataset cannot be downloaded, had or split, or a split's classes are not those of train.
    """
    chosen, parts = config.dataset, Parts()
    for node in chosen.downloads.values():
        if node is not None:
            provide(
                node.url,
                Path(node.to),
                node.sha256,
                size=node.size,
                unpacked=None if node.unpack is None else Path(node.unpack),
                limits=Limits(node.members_limit, int(node.size_limit * 2**30), node.ratio_limit),
            )
    with rng.stream(rng.key(config.seed, "dataset")):
        if chosen.source is not None:
            source = component(chosen.source, "dataset.source", trust=trust)
            fractions = {"val": chosen.val_fraction, "test": chosen.test_fraction}
            try:
                labels = splitting.labels_of(source, place_of(config, "target")) if chosen.stratify else None
                indices = splitting.split_indices(
                    len(source),
                    {name: part for name, part in fractions.items() if part},
                    chosen.split_seed,
                    labels,
                    folds=chosen.folds,
                    fold=chosen.fold,
                )
            except ValueError as error:
                raise RunError(f"dataset: {error}") from error
            parts = {name: (source, rows) for name, rows in indices.items()}
        named = {name: getattr(chosen, name) for name in ("train", "val", "test")}
        more = {f"evaluate.{name}": node for name, node in chosen.evaluate.items()}
        for key, node in (named | more).items():
            if node is not None:
                parts[key.removeprefix("evaluate.")] = (component(node, f"dataset.{key}", trust=trust), None)
    try:
        splitting.compare_classes({name: dataset for name, (dataset, _) in parts.items()})
    except ValueError as error:
        raise RunError(f"dataset: {error}") from error
    return parts


def weighted_loss(config: Config, parts: Parts) -> dict[str, Any] | None:
    """The loss's node, with `dataset.class_weights` (given, or from the training split's class counts) as `weight`."""
    chosen = config.dataset.class_weights
    if chosen is None or config.loss is None:
        return config.loss
    if isinstance(chosen, list):
        return {**config.loss, "weight": torch.tensor(chosen, dtype=torch.float32)}
    dataset, indices = parts["train"]
    labels = splitting.labels_of(dataset, place_of(config, "target"))
    weights = splitting.balanced_weights(labels if indices is None else labels[torch.from_numpy(indices)])
    return {**config.loss, "weight": weights}


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
        target = locate(config.loss["_target_"], trust)
        if "weight" not in inspect.signature(target).parameters:
            rule = f"needs a loss with an argument `weight`, and `{config.loss['_target_']}` has none"
            found.append(Mistake("dataset.class_weights", rule))
        elif "weight" in config.loss:
            found.append(Mistake("loss.weight", "is given by `dataset.class_weights`: leave one of them out"))
    return found + misplaced(config, trust)


def misplaced(config: Config, trust: Trust = ()) -> list[Mistake]:
    """Downloads into places that are not for data: a config may come from a stranger.

    Right is a folder below the working directory (or one named on the command line), with no hidden folder on the way.
    """
    found = []
    for name, node in config.dataset.downloads.items():
        for key in ("to", "unpack"):
            text = None if node is None else getattr(node, key)
            if text is None:
                continue
            path = Path(os.path.normpath(text))
            homes = [home for home in user_directories(trust) if path.is_absolute() and path.is_relative_to(home)]
            inner = path.relative_to(homes[-1]) if homes else path
            if inner.is_absolute() or ".." in inner.parts:
                rule, remedy = "must lie below the working directory", f"if you trust it: --trust {path.parent}/"
                found.append(Mistake(f"dataset.downloads.{name}.{key}", rule, text, remedy=remedy))
            elif len(inner.parts) < 2 or any(part.startswith(".") for part in inner.parts):
                rule, right = "must lie in a folder for data, such as `data`, and not be hidden", f"data/{path.name}"
                found.append(Mistake(f"dataset.downloads.{name}.{key}", rule, text, suggestion=right))
            elif path.name.endswith(IMPORTABLE):
                rule = "must be no file that Python could import"
                found.append(Mistake(f"dataset.downloads.{name}.{key}", rule, text))
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


def place_of(config: Config, member: str) -> Any:
    """Where the step finds the input or the target in a batch: what transforms and stratification mean by them."""
    place = config.step.get(member, {"input": 0, "target": 1}[member])
    return place if isinstance(place, int | str) else 0


def make_transforms(config: Config, which: str, trust: Trust = ()) -> dict[str, Any]:
    """The transforms of `train`, `eval` or `batch` by name, in order, the null ones left out."""
    nodes: dict[str, Any] = getattr(config.transform, which)
    return {
        name: component(node, f"transform.{which}.{name}", trust=trust, call=False)
        for name, node in nodes.items()
        if node is not None
    }


def make_pipeline(config: Config, which: str, trust: Trust = ()) -> Pipeline:
    """The transforms of `train` or `eval`, and what of a sample they change."""
    place = None if config.transform.on == "sample" else place_of(config, config.transform.on)
    return Pipeline(make_transforms(config, which, trust), place)


def foreseen(config: Config, pipeline: Pipeline, sample: Any) -> str:
    """How these transforms will run, as far as a made-up raw sample can tell, in words."""
    names = ", ".join(pipeline.transforms)
    if not names:
        return "none"
    settings = data.LoaderSettings(
        1, shuffle=False, num_workers=config.loader.num_workers, in_memory=config.loader.in_memory
    )
    reason = data.why_single(pipeline, settings, collates=config.loader.collate_fn is not None)
    if not reason:
        member = sample[pipeline.place]
        pil = not isinstance(member, torch.Tensor)
        try:
            chain = Chain(pipeline.transforms, to_image(member) if pil else member, pil=pil)
        except NotBatched as error:
            reason = str(error)
        else:
            return f"{names}: where the data is in memory{ways(pipeline.transforms, chain)}"
    return f"{names}: sample by sample ({reason})"


def make_faults(config: Config, split: str, folder: Path | None) -> Faults:
    """What is done about bad samples of a split."""
    return Faults(
        split,
        skip=config.loader.bad_samples == "skip",
        limit=config.loader.bad_samples_limit,
        folder=folder,
        classes=config.dataset.classes,
        target=place_of(config, "target"),
    )


def loader_settings(
    config: Config,
    split: str,
    dataset: Any,
    indices: Indices | None,
    trust: Trust = (),
    world: int = 1,
    *,
    pins: bool = False,
) -> data.LoaderSettings:
    """The loader's settings for a split: evaluation takes every sample in order, in batches of its own size."""
    loader, training = config.loader, split == "train"
    workers = loader.num_workers
    if not training and loader.eval.num_workers is not None:
        workers = loader.eval.num_workers
    options: dict[str, Any] = {"pin_memory": pins and loader.pin_memory is not False}
    if loader.collate_fn is not None:
        options["collate_fn"] = component(loader.collate_fn, "loader.collate_fn", trust=trust, call=False)
    if workers:
        options |= {
            "timeout": loader.timeout,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
        if loader.worker_init_fn is not None:
            options["worker_init_fn"] = component(
                loader.worker_init_fn, "loader.worker_init_fn", trust=trust, call=False
            )

    def sampler(name: str) -> Any:
        node = getattr(loader, name)
        if node is None or not training:
            return None
        part = dataset
        if hasattr(dataset, "__len__"):
            rows = data.chosen_indices(dataset, indices, split, config.dataset.limit)
            part = splitting.Part(dataset, rows, place_of(config, "target"))
        return _sampler(node, f"loader.{name}", part, trust)

    return data.LoaderSettings(
        batch_size=loader.batch_size * world if training else loader.eval.batch_size or loader.batch_size,
        shuffle=loader.shuffle and training,
        drop_last=loader.drop_last and training,
        num_workers=workers,
        in_memory=loader.in_memory,
        in_memory_limit=int(loader.in_memory_limit * 2**30),
        sampler=sampler("sampler"),
        batch_sampler=sampler("batch_sampler"),
        options=options,
    )


def _sampler(node: Mapping[str, Any], key: str, split: Any, trust: Trust) -> Any:
    """A sampler; one whose signature has `data_source` gets the split: it gives positions in that."""
    target = locate(node["_target_"], trust)
    takes_source = "data_source" in inspect.signature(target).parameters
    return component(node, key, *([split] if takes_source else []), trust=trust)
