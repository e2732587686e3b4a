"""From a checked config to live objects, in this order: device, data, model, init, optimizer and schedule."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from runner import data, rng
from runner import device as devices
from runner.checkpoint import Checkpoints
from runner.config.schema import Config
from runner.config.trust import locate
from runner.errors import RunError
from runner.optimizer import Constant, Schedule
from runner.schedule import Duration, is_duration
from runner.state import Run

Trust = tuple[str, ...]


def component(node: Mapping[str, Any], key: str, *supplied: Any, trust: Trust = (), call: bool = True) -> Any:
    """What a `_target_` node describes: a class is instantiated; a function is called, or bound where `call` is false.

    Args:
        node: `_target_` and the arguments; nested nodes are built first.
        key: the node's place in the config, for messages.
        supplied: positional arguments that the runner gives.
        trust: patterns of names trusted on the command line.
        call: whether a function in this slot is to be called now (a model) or with each sample or tensor (a transform).

    Raises:
        RunError: the callable refuses its arguments.
    """
    target = locate(node["_target_"], trust)
    arguments = {
        name: argument(value, f"{key}.{name}", _annotation(target, name), trust)
        for name, value in node.items()
        if name not in ("_target_", "_args_", "_partial_")
    }
    positional = [argument(value, f"{key}._args_", None, trust) for value in node.get("_args_", [])]
    bound = node.get("_partial_", not (call or isinstance(target, type)))
    if bound:
        return functools.partial(target, *supplied, *positional, **arguments) if arguments or positional else target
    try:
        return target(*supplied, *positional, **arguments)
    except Exception as error:
        raise Refused(key, node, error, _fetch_by_hand(target, arguments, error)) from error


class Refused(RunError):
    """A callable did not take its arguments; `key` and `node` say which, `cause` what it said."""

    def __init__(self, key: str, node: Mapping[str, Any], cause: Exception, remedy: str = "") -> None:
        self.key, self.node, self.cause = key, node, cause
        self.said = f"{type(cause).__name__}: {cause}"
        super().__init__(f"{key}: {node['_target_']} refused: {self.said}{remedy}")


def _fetch_by_hand(target: Any, arguments: Mapping[str, Any], error: Exception) -> str:
    """What to do where a dataset of torchvision could not be downloaded: which file to bring, and where to."""
    offline = isinstance(error, OSError) or "download" in str(error).lower() or "not found" in str(error).lower()
    root, archive = arguments.get("root"), getattr(target, "filename", None)
    if not offline or root is None:
        return ""
    if archive is None:
        return f". Where this machine cannot download, bring the files from another into `{root}/`"
    checksum = f" (MD5 {target.tgz_md5})" if hasattr(target, "tgz_md5") else ""
    return (
        f". Where this machine cannot download, fetch {getattr(target, 'url', archive)} on another and put "
        f"{archive}{checksum} into `{root}/`: it is unpacked from there, and nothing is downloaded"
    )


def argument(value: Any, key: str, annotation: Any, trust: Trust = ()) -> Any:
    """An argument ready to be passed: nested components are built, `torch.float32` is the dtype."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return component(value, key, trust=trust, call="Callable" not in str(annotation))
        return {name: argument(member, f"{key}.{name}", None, trust) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [argument(member, f"{key}[{i}]", annotation, trust) for i, member in enumerate(value)]
    if isinstance(value, str) and value.startswith("torch."):
        dtype = getattr(torch, value.removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    return value


def _annotation(target: Any, name: str) -> Any:
    try:
        parameter = inspect.signature(target).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return None if parameter is None else parameter.annotation


def build(config: Config, folder: Path, plain: dict[str, Any], trust: Trust = ()) -> Run:
    """Build every object of a run.

    Args:
        config: the checked config.
        folder: the run directory.
        plain: the config as it will stand in checkpoints.
        trust: patterns of names trusted on the command line.

    Raises:
        RunError: data, download or device refuse.
    """
    device = devices.choose(config.device.type)
    devices.set_up(device, config.device.threads, config.device.deterministic)
    splits = make_splits(config, device, trust)
    train = splits["train"]
    steps_per_epoch = train.num_batches or 0
    duration = Duration.parse(config.train.duration)
    if duration.unit == "ep" and train.num_batches is None:
        message = "train.duration: an iterable dataset has no length, so it must be in steps (`500st`), not epochs"
        raise RunError(message)
    total_steps = duration.steps(steps_per_epoch)
    model = make_model(config, trust).to(device=device)
    if config.device.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    loss = component(config.loss, "loss", trust=trust, call=False)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = component(config.optimizer, "optimizer", parameters, trust=trust)
    objective, mode = objective_of(config, splits)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.train.keep, mode=mode)
    return Run(
        folder=folder,
        seed=config.seed,
        device=device,
        model=model,
        loss=loss,
        step=component(config.step, "step", trust=trust, call=False),
        optimizer=optimizer,
        schedule=make_schedule(config, optimizer, steps_per_epoch, total_steps, trust),
        splits=splits,
        metrics={"train": make_metrics(config, device, trust), "eval": make_metrics(config, device, trust)},
        checkpoints=checkpoints,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=Duration.parse(config.log.every),
        evaluate_every=_rhythm(config.train.evaluate_every),
        checkpoint_every=_rhythm(config.train.checkpoint_every),
        objective=objective,
        mode=mode,
        check_finite=config.train.check_finite,
        config=plain,
    )


def _rhythm(text: str | None) -> Duration | None:
    return None if text is None else Duration.parse(text)


def objective_of(config: Config, splits: Mapping[str, Any]) -> tuple[str, Literal["min", "max"]]:
    """The metric that chooses `best.pt` and that a sweep gets, and whether `min` or `max` of it is best."""
    objective = config.train.objective or ("val/loss" if "val" in splits else "train/loss")
    return objective, config.train.mode or ("min" if objective.endswith("/loss") else "max")


def make_model(config: Config, trust: Trust = ()) -> nn.Module:
    """The model on the CPU, its construction and its init rules drawing from the streams of the seed."""
    with rng.stream(rng.key(config.seed, "model")):
        model: nn.Module = component(config.model, "model", trust=trust)
    rules = init_rules(config, trust)
    if rules:
        from runner.init import apply_rules

        apply_rules(model, rules, config.seed)
    if config.init.apply is not None:
        function = component(config.init.apply, "init.apply", trust=trust, call=False)
        with rng.stream(rng.key(config.seed, "init")):
            model.apply(function)
    return model


def make_metrics(config: Config, device: torch.device, trust: Trust = ()) -> dict[str, Any]:
    """The metrics by name, on the device where they are modules."""
    metrics = {
        name: component(node, f"metrics.{name}", trust=trust)
        for name, node in config.metrics.items()
        if node is not None
    }
    return {name: metric.to(device) if hasattr(metric, "to") else metric for name, metric in metrics.items()}


def make_splits(config: Config, device: torch.device, trust: Trust = ()) -> dict[str, data.Split]:
    """The batches of train, val and test.

    Raises:
        RunError: a dataset cannot be had or split.
    """
    chosen = config.dataset
    image_format = torch.channels_last if config.device.memory_format == "channels_last" else torch.contiguous_format
    placement = data.Placement(device, image_format)
    parts: dict[str, tuple[Any, Any]] = {}
    with rng.stream(rng.key(config.seed, "dataset")):
        if chosen.source is not None:
            source = component(chosen.source, "dataset.source", trust=trust)
            fractions = {"val": chosen.val_fraction, "test": chosen.test_fraction}
            try:
                labels = data.labels_of(source, _place(config, "target")) if chosen.stratify else None
                indices = data.split_indices(
                    len(source), {name: part for name, part in fractions.items() if part}, chosen.split_seed, labels
                )
            except ValueError as error:
                raise RunError(f"dataset: {error}") from error
            parts = {name: (source, rows) for name, rows in indices.items()}
        for name in ("train", "val", "test"):
            node = getattr(chosen, name)
            if node is not None:
                parts[name] = (component(node, f"dataset.{name}", trust=trust), None)
    try:
        return {
            name: data.make_split(
                dataset,
                indices,
                make_pipeline(config, "train" if name == "train" else "eval", trust),
                data.Stream(config.seed, name),
                placement,
                loader_settings(config, name, dataset, trust),
                limit=chosen.limit,
            )
            for name, (dataset, indices) in parts.items()
        }
    except ValueError as error:
        raise RunError(str(error)) from error


def _place(config: Config, member: str) -> Any:
    """Where the step finds the input or the target in a batch: what transforms and stratification mean by them."""
    place = config.step.get(member, {"input": 0, "target": 1}[member])
    return place if isinstance(place, int | str) else 0


def make_pipeline(config: Config, which: str, trust: Trust = ()) -> data.Pipeline:
    """The transforms of `train` or `eval` in their order, the null ones left out."""
    nodes: dict[str, Any] = getattr(config.transform, which)
    transforms = {
        name: component(node, f"transform.{which}.{name}", trust=trust, call=False)
        for name, node in nodes.items()
        if node is not None
    }
    place = None if config.transform.on == "sample" else _place(config, config.transform.on)
    return data.Pipeline(transforms, place)


def loader_settings(config: Config, split: str, dataset: Any, trust: Trust = ()) -> data.LoaderSettings:
    """The loader's settings for a split: evaluation takes every sample in order, in batches of its own size."""
    loader, training = config.loader, split == "train"
    workers = loader.num_workers
    if not training and loader.eval.num_workers is not None:
        workers = loader.eval.num_workers
    options: dict[str, Any] = {"pin_memory": loader.pin_memory}
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
    return data.LoaderSettings(
        batch_size=loader.batch_size if training else loader.eval.batch_size or loader.batch_size,
        shuffle=loader.shuffle and training,
        drop_last=loader.drop_last and training,
        num_workers=workers,
        in_memory=loader.in_memory,
        in_memory_limit=int(loader.in_memory_limit * 2**30),
        sampler=_sampler(loader.sampler, "loader.sampler", dataset, trust) if training else None,
        batch_sampler=_sampler(loader.batch_sampler, "loader.batch_sampler", dataset, trust) if training else None,
        options=options,
    )


def _sampler(node: Mapping[str, Any] | None, key: str, dataset: Any, trust: Trust) -> Any:
    """A sampler; one whose signature has `data_source` gets the dataset."""
    if node is None:
        return None
    target = locate(node["_target_"], trust)
    takes_source = "data_source" in inspect.signature(target).parameters
    return component(node, key, *([dataset] if takes_source else []), trust=trust)


def make_schedule(
    config: Config,
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    total_steps: int,
    trust: Trust = (),
) -> Constant:
    """The learning-rate schedule; none where nothing is trained.

    A duration in the scheduler's arguments becomes a count of its interval; one that is the whole `train.duration` ends
    with the run, so the warmup is taken off it.
    """
    chosen = config.scheduler
    if total_steps == 0 or (chosen._target_ is None and chosen.warmup is None):
        return Constant()
    warmup = 0 if chosen.warmup is None else Duration.parse(chosen.warmup).steps(steps_per_epoch)

    def count(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: count(member) for name, member in value.items()}
        if isinstance(value, list):
            return [count(member) for member in value]
        if not is_duration(value):
            return value
        steps = Duration.parse(value).steps(steps_per_epoch)
        if value == config.train.duration:
            steps = max(1, steps - warmup)
        return steps if chosen.interval == "step" else max(1, math.ceil(steps / steps_per_epoch))

    make: Callable[[torch.optim.Optimizer], Any] | None = None
    if chosen._target_ is not None:
        node = {"_target_": chosen._target_, **count(chosen.arguments)}
        make = lambda optimizer: component(node, "scheduler", optimizer, trust=trust)  # noqa: E731
    return Schedule(optimizer, make, interval=chosen.interval, warmup=warmup, monitor=chosen.monitor)


def init_rules(config: Config, trust: Trust = ()) -> list[Any]:
    """The config's init rules with their types and functions, in order."""
    from runner.init import Rule

    rules = []
    for label, rule in config.init.rules.items():
        if rule is None:
            continue
        tensors = {
            name: component(value, f"init.rules.{label}.{name}", trust=trust, call=False)
            if isinstance(value, Mapping)
            else value
            for name, value in rule.tensors.items()
            if value is not None
        }
        module = None if rule.module is None else locate(rule.module, trust)
        rules.append(Rule(label, module, rule.name, tensors, rule.optional))
    return rules
