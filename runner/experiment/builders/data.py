"""Builders of the data: datasets, splits, transforms, samplers and loader settings of a config."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.config.check.imports import import_object
from runner.config.schema import Config, Loader
from runner.core import rng
from runner.core.archive import Limits
from runner.core.download import provide
from runner.core.errors import RunError
from runner.data import batches, interfaces, splitting, whole_dataset
from runner.data.bad_samples import BadSamples
from runner.data.batched.chain import BatchedTransforms
from runner.data.batched.scheduled import ScheduledTransform
from runner.data.batched.steps import NotBatched
from runner.data.file_guard import watch_reading
from runner.data.in_memory import describe_batching
from runner.data.interfaces import Indices
from runner.data.samples import Pipeline, Placement, Stream, to_image
from runner.data.sharding import EvenShard, RoundRobinShard
from runner.data.timing import DataClock
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.builders.lending import get_loan
from runner.train.checkpoint import ReadOnlyCheckpoints
from runner.train.fitting import needs_fit

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
    """Make the batches of every split; skipped bad samples are listed in `folder`.

    Process `rank` of `world` has its part of each batch in training, and whole batches in turn elsewhere.

    Raises:
        RunError: a split is empty, or its data is unsound.
    """
    image_format = torch.channels_last if config.device.memory_format == "channels_last" else torch.contiguous_format
    placement = Placement(device, image_format)
    without = config.dataset.steps_per_epoch
    splits: dict[str, interfaces.Split] = {} if without is None else {"train": batches.NoData(without)}
    loan = get_loan()
    clock = DataClock(loan.progress, loan.of_data, config.train.accumulate, config.seed)
    try:
        fit_parts(config, parts)
        kinds = dict.fromkeys("train" if name == "train" else "eval" for name in parts)
        pipelines = {which: make_pipeline(config, which, trust) for which in kinds}
        every_batch = make_transforms(config, "batch", trust) if "train" in parts else None
        fit_parts(config, parts)
        for name, (dataset, indices) in parts.items():
            training = name == "train"
            pipeline = pipelines["train" if training else "eval"]
            settings = make_loader_settings(config, name, dataset, indices, trust, world, pins=device.type == "cuda")
            fit_parts(config, parts)  # a collate_fn
            batch_transforms = every_batch if training else None
            clock.active |= training and any(loan.asks(key) for key in ("loader", "transform.batch"))
            splits[name] = batches.make_split(
                dataset,
                indices,
                pipeline,
                Stream(config.seed, name, clock),
                placement,
                settings,
                limit=config.dataset.limit,
                batch_transforms=batch_transforms,
                faults=make_bad_sample_handler(config, name, folder),
                share=EvenShard(rank, world) if training else RoundRobinShard(rank, world),
            )
    except ValueError as error:
        raise RunError(str(error)) from error
    return splits


def read_fitted(folder: Path) -> dict[str, Any] | None:
    """Return what the data of a run had learnt by `fit`, from its newest checkpoint; None without one."""
    checkpoints = ReadOnlyCheckpoints(folder / "checkpoints")
    checkpoints.warn = lambda _: None  # said where the rest of it is restored
    if not checkpoints.entries():
        return None
    found: dict[str, Any] = checkpoints.load("last")["step"].get("fitted", {})
    return found


def fit_parts(config: Config, parts: Parts) -> None:
    """Fit what has a method `fit` and was built by now to the raw samples of the training split."""
    fitted = get_loan().fitted
    if len(fitted.learnt) == len(fitted.parts):
        return
    fitted.seed = config.seed
    dataset, indices = parts.get("train", (None, None))
    if hasattr(dataset, "__len__") and not isinstance(dataset, torch.utils.data.IterableDataset):
        rows = batches.choose_indices(dataset, indices, "train", config.dataset.limit)
        dataset = whole_dataset.SplitSubset(dataset, rows, get_member_key(config, "target"))
    fitted.fit(dataset)


def is_downloaded(config: Config) -> bool:
    """Return whether all that the dataset downloads is there: nothing would be fetched."""
    nodes = [node for node in config.dataset.downloads.values() if node is not None]
    return all(Path(node.unpack or node.to).exists() for node in nodes)


def make_init_batch(config: Config, parts: Parts, trust: Trust = ()) -> Any:
    """Make the batch that `init.apply` asks for: the first training samples, without augmentation.

    Raises:
        RunError: there is no training data.
    """
    if "train" not in parts or not hasattr(parts["train"][0], "__len__"):
        raise RunError("init.apply asks for a batch, and `dataset.train` has no samples by index")
    dataset, indices = parts["train"]
    rows = batches.choose_indices(dataset, indices, "train", config.dataset.limit)[: config.init.samples]
    collate = config.loader.collate_fn
    options = {}
    if collate is not None:
        options["collate_fn"] = instantiate(collate, "loader.collate_fn", trust=trust, call=False, seed=config.seed)
    settings = interfaces.LoaderSettings(len(rows), shuffle=False, in_memory=False, options=options)
    stream, placement = Stream(config.seed, "init"), Placement(torch.device("cpu"))
    split = batches.make_split(dataset, rows, make_pipeline(config, "eval", trust), stream, placement, settings)
    return next(iter(split.batches(0)))


def make_parts(config: Config, trust: Trust = ()) -> Parts:
    """Download, build and split the datasets; return dataset and sample indices by split.

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
    with rng.stream(rng.derive_key(config.seed, "dataset")), watch_reading():
        if chosen.source is not None:
            source = instantiate(chosen.source, "dataset.source", trust=trust)
            fractions = {"val": chosen.val_fraction, "test": chosen.test_fraction}
            try:
                labels = (
                    whole_dataset.read_labels(source, get_member_key(config, "target")) if chosen.stratify else None
                )
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
                parts[key.removeprefix("evaluate.")] = (instantiate(node, f"dataset.{key}", trust=trust), None)
    try:
        splitting.compare_classes({name: dataset for name, (dataset, _) in parts.items()})
    except ValueError as error:
        raise RunError(f"dataset: {error}") from error
    return parts


def add_class_weights(config: Config, parts: Parts) -> dict[str, Any] | None:
    """Return the loss's node with `dataset.class_weights` (given, or from class counts) as `weight`."""
    chosen = config.dataset.class_weights
    if chosen is None or config.loss is None:
        return config.loss
    if isinstance(chosen, list):
        return {**config.loss, "weight": torch.tensor(chosen, dtype=torch.float32)}
    dataset, indices = parts["train"]
    labels = whole_dataset.read_labels(dataset, get_member_key(config, "target"))
    weights = splitting.compute_balanced_weights(labels if indices is None else labels[torch.from_numpy(indices)])
    return {**config.loss, "weight": weights}


def get_member_key(config: Config, member: str) -> Any:
    """Return the key of the step's `input` or `target` in a sample; 0 unless it is an index or a name."""
    place = config.step.get(member, {"input": 0, "target": 1}[member])
    return place if isinstance(place, int | str) else 0


def make_transforms(config: Config, which: str, trust: Trust = ()) -> dict[str, Any]:
    """Build the non-null transforms of `train`, `eval` or `batch` by name, in order.

    A name is a random stream, so that what a constructor draws is the same in `train` and `eval`.
    """
    nodes: dict[str, Any] = getattr(config.transform, which)
    made = {}
    for name, node in nodes.items():
        if node is not None:
            key = f"transform.{which}.{name}"
            plain = {argument: value for argument, value in node.items() if argument not in SPAN}
            shared, same = get_loan().shared, f"{name} {plain}"
            transform = shared.get(same)
            if transform is None:
                transform = instantiate(
                    plain, key, trust=trust, call=False, seed=config.seed, stream=("transform", name)
                )
            if isinstance(transform, nn.Module):
                transform.requires_grad_(requires_grad=False)  # samples are no part of a graph
            if needs_fit(transform):
                shared[same] = transform
            made[name] = _schedule_transform(transform, node, key)
    return made


SPAN = ("_from_", "_until_")  # the runner's own keys in a transform: when it is on


def _schedule_transform(transform: Any, node: Mapping[str, Any], key: str) -> Any:
    """Wrap a transform that is on from a time, or until one."""
    given = [node.get(name) for name in SPAN]
    if given == [None, None]:
        return transform
    loan = get_loan()
    start, end = (
        None if text is None else loan.count_steps(text, f"{key}.{name}")
        for name, text in zip(SPAN, given, strict=True)
    )
    return ScheduledTransform(transform, None if loan.tries else loan.give(key), start, end)


def make_pipeline(config: Config, which: str, trust: Trust = ()) -> Pipeline:
    """Make the transform pipeline of `train` or `eval`, with the sample member that it changes."""
    place = None if config.transform.on == "sample" else get_member_key(config, config.transform.on)
    transforms = make_transforms(config, which, trust)
    loan = get_loan()
    return Pipeline(transforms, place, frozenset(name for name in transforms if loan.asks(f"transform.{which}.{name}")))


def describe_transforms(config: Config, pipeline: Pipeline, sample: Any) -> str:
    """Describe how a pipeline will run, in memory or sample by sample, from a made-up raw sample."""
    names = ", ".join(pipeline.transforms)
    if not names:
        return "none"
    settings = interfaces.LoaderSettings(
        1, shuffle=False, num_workers=config.loader.num_workers, in_memory=config.loader.in_memory
    )
    reason = batches.explain_per_sample(pipeline, settings, collates=config.loader.collate_fn is not None)
    if not reason:
        member = sample[pipeline.place]
        pil = not isinstance(member, torch.Tensor)
        try:
            chain = BatchedTransforms(pipeline.transforms, to_image(member) if pil else member, pil=pil)
        except NotBatched as error:
            reason = str(error)
        else:
            return f"{names}: where the data is in memory{describe_batching(pipeline.transforms, chain)}"
    return f"{names}: sample by sample ({reason})"


def make_bad_sample_handler(config: Config, split: str, folder: Path | None) -> BadSamples:
    """Make the handler of a split's bad samples: raise, or skip up to `loader.bad_samples_limit`."""
    return BadSamples(
        split,
        skip=config.loader.bad_samples == "skip",
        limit=config.loader.bad_samples_limit,
        folder=folder,
        classes=config.dataset.classes,
        target=get_member_key(config, "target"),
    )


def make_loader_settings(
    config: Config,
    split: str,
    dataset: Any,
    indices: Indices | None,
    trust: Trust = (),
    world: int = 1,
    *,
    pins: bool = False,
) -> interfaces.LoaderSettings:
    """Make a split's loader settings; evaluation keeps the order and follows `loader.eval`."""
    loader, training = config.loader, split == "train"
    workers = loader.num_workers
    if not training and loader.eval.num_workers is not None:
        workers = loader.eval.num_workers
    options: dict[str, Any] = {"pin_memory": pins and loader.pin_memory is not False}
    if loader.collate_fn is not None:
        options["collate_fn"] = instantiate(
            loader.collate_fn, "loader.collate_fn", trust=trust, call=False, seed=config.seed
        )
    if workers:
        options |= {
            "timeout": loader.timeout,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
        if loader.worker_init_fn is not None:
            options["worker_init_fn"] = instantiate(
                loader.worker_init_fn, "loader.worker_init_fn", trust=trust, call=False, seed=config.seed
            )

    def sampler(name: str) -> Any:
        node = getattr(loader, name)
        if node is None or not training:
            return None
        part = dataset
        if hasattr(dataset, "__len__"):
            rows = batches.choose_indices(dataset, indices, split, config.dataset.limit)
            part = whole_dataset.SplitSubset(dataset, rows, get_member_key(config, "target"))
        return _make_sampler(node, f"loader.{name}", part, config.seed, trust)

    return interfaces.LoaderSettings(
        batch_size=_choose_batch_size(loader, world, training=training),
        shuffle=loader.shuffle and training,
        drop_last=loader.drop_last and training,
        num_workers=workers,
        in_memory=loader.in_memory,
        in_memory_limit=int(loader.in_memory_limit * 2**30),
        sampler=sampler("sampler"),
        batch_sampler=sampler("batch_sampler"),
        options=options,
        timed=get_loan().asks(find_dataset_key(config, split)),
    )


def _choose_batch_size(loader: Loader, world: int, *, training: bool) -> int | None:
    """Choose the batch size of all processes together; None where the dataset gives whole batches."""
    if loader.batch_size is None:
        return None
    return loader.batch_size * world if training else loader.eval.batch_size or loader.batch_size


def find_dataset_key(config: Config, split: str) -> str:
    """Return the key of a split's dataset."""
    if config.dataset.evaluate.get(split) is not None:
        return f"dataset.evaluate.{split}"
    name = split.partition(" ")[0]  # of `train in order`
    return f"dataset.{name}" if getattr(config.dataset, name, None) is not None else "dataset.source"


def _make_sampler(node: Mapping[str, Any], key: str, split: Any, seed: int, trust: Trust) -> Any:
    """Build a sampler; pass the split to a sampler whose signature has `data_source`."""
    target = import_object(node["_target_"], trust)
    takes_source = "data_source" in inspect.signature(target).parameters
    return instantiate(node, key, *([split] if takes_source else []), trust=trust, seed=seed)
