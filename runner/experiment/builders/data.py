"""From a checked config to the batches of each split."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.config.check.imports import import_object
from runner.config.schema import Config
from runner.core import rng
from runner.core.archive import Limits
from runner.core.download import provide
from runner.core.errors import RunError
from runner.data import batches, interfaces, splitting, whole_dataset
from runner.data.bad_samples import Faults
from runner.data.batched.chain import Chain
from runner.data.batched.steps import NotBatched
from runner.data.file_guard import guard_reading
from runner.data.in_memory import ways
from runner.data.interfaces import Indices
from runner.data.samples import Pipeline, Placement, Stream, to_image
from runner.data.sharding import Part, Turn
from runner.experiment.builders.instantiate import Trust, component

Parts = dict[str, tuple[Any, Indices | None]]  # split → dataset and which of its samples; None: all


def make_splits(
    config: Config,
    parts: Parts,
    device: torch.device,
    trust: Trust = (),
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> dict[str, interfaces.Split]:
    """The batches of train, val, test and what else is evaluated; bad samples that are skipped are listed in `folder`.

    Process `rank` of `world` has its part of each batch in training, and whole batches in turn elsewhere.

    Raises:
        RunError: a split is empty, or its data is unsound.
    """
    image_format = torch.channels_last if config.device.memory_format == "channels_last" else torch.contiguous_format
    placement = Placement(device, image_format)
    without = config.dataset.steps_per_epoch
    nothing: dict[str, interfaces.Split] = {} if without is None else {"train": batches.Nothing(without)}
    try:
        return nothing | {
            name: batches.make_split(
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
    with rng.stream(rng.derive_key(config.seed, "dataset")), guard_reading():
        if chosen.source is not None:
            source = component(chosen.source, "dataset.source", trust=trust)
            fractions = {"val": chosen.val_fraction, "test": chosen.test_fraction}
            try:
                labels = whole_dataset.labels_of(source, place_of(config, "target")) if chosen.stratify else None
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
    labels = whole_dataset.labels_of(dataset, place_of(config, "target"))
    weights = splitting.balanced_weights(labels if indices is None else labels[torch.from_numpy(indices)])
    return {**config.loss, "weight": weights}


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
    settings = interfaces.LoaderSettings(
        1, shuffle=False, num_workers=config.loader.num_workers, in_memory=config.loader.in_memory
    )
    reason = batches.why_single(pipeline, settings, collates=config.loader.collate_fn is not None)
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
) -> interfaces.LoaderSettings:
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
            rows = batches.chosen_indices(dataset, indices, split, config.dataset.limit)
            part = whole_dataset.Part(dataset, rows, place_of(config, "target"))
        return _sampler(node, f"loader.{name}", part, trust)

    return interfaces.LoaderSettings(
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
    target = import_object(node["_target_"], trust)
    takes_source = "data_source" in inspect.signature(target).parameters
    return component(node, key, *([split] if takes_source else []), trust=trust)
