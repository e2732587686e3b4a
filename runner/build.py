"""From a checked config to live objects, in this order: device, data, model and its surgery, optimizer, schedule."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from runner import build_data, parallel, precision, schedule, surgery
from runner import device as devices
from runner.accumulate import Accumulating
from runner.average import Average
from runner.build_looks import make_looks
from runner.checkpoint import Checkpoints, ReadOnly
from runner.closure import Closure, Own, is_own, needs_closure
from runner.component import Trust, component
from runner.config.effects import CUDA_GRAPHED
from runner.config.schema import Config
from runner.config.trust import locate
from runner.errors import Mistake, RunError
from runner.layout import WHOLE, Whole
from runner.memory import Splitting
from runner.optimizer import Constant, Schedule
from runner.precision import Scaler
from runner.schedule import Duration, is_duration
from runner.state import Run
from runner.team import ALONE, Alone, Team
from runner.update import Kept, Recipe, Update


def build(config: Config, folder: Path, plain: dict[str, Any], trust: Trust = (), team: Alone = ALONE) -> Run:
    """Build every object of a run.

    Args:
        config: the checked config.
        folder: the run directory.
        plain: the config as it will stand in checkpoints.
        trust: patterns of names trusted on the command line.
        team: the processes that train together.

    Raises:
        RunError: data, download or device refuse.
    """
    device = devices.choose(config.device.type, team.local_rank)
    devices.set_up(device, config.device.threads, config.device.deterministic, config.device.precision)
    team.start(device)
    with team.first():
        parts = build_data.make_parts(config, trust)
        splits = build_data.make_splits(
            config, parts, device, trust, folder if team.rank == 0 else None, team.rank, team.world
        )
    train = splits["train"]
    if train.num_batches == 0:
        raise RunError(without_batch(config, train.size, team.world))
    steps_per_epoch = math.ceil((train.num_batches or 0) / config.train.accumulate)
    duration = Duration.parse(config.train.duration)
    if train.num_batches is None:
        in_steps(config)
    total_steps = duration.steps(steps_per_epoch)
    objective, mode = objective_of(config, splits)
    kind = Checkpoints if team.rank == 0 else ReadOnly
    checkpoints = kind(folder / "checkpoints", keep=config.train.keep, mode=mode)
    model = surgery.make_model(config, trust)
    with team.first():
        done = surgery.operate(config, model, trust, weights=not checkpoints.entries())
    model = model.to(device=device)
    if config.device.memory_format == "channels_last" and config.device.parallel != "fsdp":  # it shards rows of weights
        model = model.to(memory_format=torch.channels_last)
    if config.device.compile:
        compile_in_place(model, config.device.compile)
    node = build_data.weighted_loss(config, parts)
    loss = None if node is None else component(node, "loss", trust=trust, call=False)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    layout = parallel.spread(config.device.parallel, team, done.frozen, model, loss)
    groups = surgery.make_groups(config, model, done.frozen, trust, loss)
    optimizer = make_optimizer(config, groups, device, trust)
    layout.ready(optimizer)
    scaler = Scaler(optimizer, device) if config.device.precision == "fp16" else None
    step = component(config.step, "step", trust=trust, call=False)
    metrics = {which: make_metrics(config, device, trust) for which in ("train", "eval")}
    average = make_average(config, model, steps_per_epoch, layout)
    update = make_update(config, device, model, loss, step, optimizer, metrics["train"], average, scaler)
    dataset = parts["train"][0] if "train" in parts else None
    run = Run(
        folder=folder,
        seed=config.seed,
        device=device,
        model=model,
        loss=loss,
        step=step,
        optimizer=optimizer,
        update=update,
        looks=make_looks(config, model, update, optimizer, device, folder, dataset, team, trust),
        scaler=scaler,
        schedule=make_schedule(config, optimizer, steps_per_epoch, total_steps, trust),
        splits=splits,
        metrics=metrics,
        checkpoints=checkpoints,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=Duration.parse(config.log.every),
        log_means=config.log.mean,
        evaluate_every=_rhythm(config.train.evaluate_every),
        checkpoint_every=_rhythm(config.train.checkpoint_every),
        objective=objective,
        mode=mode,
        evaluated=tuple(name for name in splits if name not in ("train", "test")),
        evaluate_at_start=config.train.evaluate_at_start,
        early_stop=config.train.early_stop,
        max_seconds=None if config.train.max_time is None else schedule.seconds(config.train.max_time),
        accumulate=config.train.accumulate,
        average=average,
        check_finite=config.train.check_finite,
        config=plain,
        pretrained=done.pretrained,
        frozen=done.frozen,
        thaw_at=None if config.freeze.until is None else Duration.parse(config.freeze.until).steps(steps_per_epoch),
        team=team,
        layout=layout,
    )
    if splits_batches(config, device, step, optimizer):
        run.update.net = parallel.data_parallel(model)
    if isinstance(team, Team):
        parallel.share(run, team, config.device.find_unused_parameters, config.device.sync_batchnorm)
    return run


def splits_batches(config: Config, device: torch.device, step: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether `nn.DataParallel` splits each batch over the GPUs here; with `auto` that is where it can, on several."""
    if config.device.parallel != "auto":
        return config.device.parallel == "data_parallel"
    several_gpus = device.type == "cuda" and config.device.type in ("auto", "cuda") and torch.cuda.device_count() > 1
    return several_gpus and not is_own(step) and not needs_closure(optimizer)


def without_batch(config: Config, size: int, world: int) -> str:
    """Why an epoch of training has no batch, and what to change."""
    each = config.loader.batch_size
    if config.loader.batch_sampler is not None or not config.loader.drop_last:
        key = "loader.batch_sampler" if config.loader.batch_sampler is not None else "loader.sampler"
        return f"{key} gives no batch of the {size:,} samples of train: there is no step"
    whole = f"loader.batch_size={each}" + (f" times {world} processes" if world > 1 else "")
    return (
        f"train has {size:,} samples, fewer than {whole}, and loader.drop_last=true drops them: there is no step. "
        f"Take loader.drop_last=false or loader.batch_size={max(1, size // world)}"
    )


def make_optimizer(
    config: Config, groups: list[dict[str, Any]], device: torch.device, trust: Trust = ()
) -> torch.optim.Optimizer:
    """The optimizer over these groups, or several in its place, each over those that have its name."""
    members = surgery.several(config)
    if not members:
        made: torch.optim.Optimizer = component(fast(config.optimizer, device, trust), "optimizer", groups, trust=trust)
        return made
    optimizers = {}
    for name, node in members.items():
        own = [group for group in groups if group["name"] == name]
        optimizers[name] = component(fast(node, device, trust), f"optimizer.{name}", own, trust=trust)
    rest = {name: value for name, value in config.optimizer.items() if name not in members}
    return cast("torch.optim.Optimizer", component(rest, "optimizer", trust=trust, given=optimizers))


def fast(node: Mapping[str, Any], device: torch.device, trust: Trust = ()) -> Mapping[str, Any]:
    """An optimizer's node with `fused` on a GPU, where it has that and nothing else is said.

    Elsewhere torch's own choice stands: `foreach` on other accelerators, a loop over the parameters on a CPU.
    """
    said = any(node.get(name) is not None for name in ("fused", "foreach"))
    said = said or any(node.get(name) for name in ("capturable", "differentiable"))
    has_fused = "fused" in inspect.signature(locate(node["_target_"], trust)).parameters
    return {**node, "fused": True} if device.type == "cuda" and has_fused and not said else node


def make_update(
    config: Config,
    device: torch.device,
    model: nn.Module,
    loss: Any,
    step: Any,
    optimizer: torch.optim.Optimizer,
    metrics: Mapping[str, Any],
    average: Average | None = None,
    scaler: Scaler | None = None,
) -> Update:
    """One optimizer step with all that the recipe adds to it, and nothing else.

    Args:
        config: the checked config.
        device: where it runs.
        model: what the step calls.
        loss: what the step calls with its output.
        step: see `runner.step`.
        optimizer: over the parameters of both.
        metrics: those of training, by name.
        average: of the weights.
        scaler: of fp16's gradients.
    """
    before, after = clipping(config, model, loss), [] if average is None else [average.update]
    if is_own(step):
        return Own(model, loss, step, optimizer, after=after)
    if config.device.precision in precision.DTYPES:
        step = precision.Autocast(step, device, config.device.precision)
    if config.device.compile in CUDA_GRAPHED and device.type == "cuda":
        step = Kept(step)
    if needs_closure(optimizer):
        return Closure(model, loss, step, optimizer, after)
    if config.train.accumulate > 1 or config.train.split_on_oom:
        kind = partial(Splitting, model=model) if config.train.split_on_oom else Accumulating
        return kind(
            model,
            loss,
            step,
            optimizer,
            scaler=scaler,
            before=before,
            after=after,
            count=config.train.accumulate,
            metrics=list(metrics.values()),
        )
    if before or after or scaler is not None:
        return Recipe(model, loss, step, optimizer, scaler=scaler, before=before, after=after)
    return Update(model, loss, step, optimizer)


def compile_in_place(model: nn.Module, mode: bool | str) -> None:
    """Let torch.compile make the model's forward faster; its names, and so its state_dict, stay as they are."""
    model.compile(mode=None if isinstance(mode, bool) else mode)


def clipping(config: Config, model: nn.Module, loss: Any) -> list[Callable[[], Any]]:
    """What clips the gradients of the model and of the loss, by torch's own functions."""
    parameters = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    clip_value, clip_norm = config.train.clip_value, config.train.clip_norm
    clips: list[Callable[[], Any]] = []
    if clip_value is not None:
        clips.append(partial(nn.utils.clip_grad_value_, parameters, clip_value))
    if clip_norm is not None:
        clips.append(partial(nn.utils.clip_grad_norm_, parameters, clip_norm))
    return clips


def make_average(config: Config, model: nn.Module, steps_per_epoch: int, layout: Whole = WHOLE) -> Average | None:
    """The average of the weights, where the config asks for one."""
    if config.train.ema is None:
        return None
    every = Duration.parse(config.train.ema_every).steps(steps_per_epoch)
    return Average(model, config.train.ema, max(1, every), layout)


def in_steps(config: Config) -> None:
    """Refuse epochs where a dataset does not know its length.

    Raises:
        RunError: a duration or a rhythm is in epochs; names all that are.
    """
    spans = {
        "train.duration": config.train.duration,
        "train.evaluate_every": config.train.evaluate_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "log.every": config.log.every,
    }
    wrong = [f"{key}={text}" for key, text in spans.items() if text is not None and text.endswith("ep")]
    if wrong:
        raise RunError(f"an iterable dataset has no length, so these must be in steps (`500st`): {', '.join(wrong)}")


def _rhythm(text: str | None) -> Duration | None:
    return None if text is None else Duration.parse(text)


def objective_of(config: Config, splits: Mapping[str, Any]) -> tuple[str, Literal["min", "max"]]:
    """The metric that chooses `best.pt` and that a sweep gets, and whether `min` or `max` of it is best."""
    evaluated = [name for name in splits if name not in ("train", "test")]
    first = "val" if "val" in evaluated else next(iter(evaluated), "train")
    objective = config.train.objective or f"{first}/loss"
    return objective, config.train.mode or ("min" if objective.endswith("/loss") else "max")


def make_metrics(config: Config, device: torch.device, trust: Trust = ()) -> dict[str, Any]:
    """The metrics by name, on the device where they are modules."""
    metrics = {
        name: component(node, f"metrics.{name}", trust=trust)
        for name, node in config.metrics.items()
        if node is not None
    }
    return {name: metric.to(device) if hasattr(metric, "to") else metric for name, metric in metrics.items()}


def make_schedule(
    config: Config,
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    total_steps: int,
    trust: Trust = (),
) -> Constant:
    """The learning-rate schedule; none where nothing is trained.

    A duration in the scheduler's arguments becomes a count of what it is stepped by: steps, epochs, or the evaluations
    of a metric that it follows. One that is the whole `train.duration` (`planned_for`, where the run was prolonged)
    ends with the run, so the warmup is taken off it.
    """
    chosen = config.scheduler
    if total_steps == 0 or (chosen._target_ is None and chosen.warmup is None):
        return Constant()
    warmup = 0 if chosen.warmup is None else Duration.parse(chosen.warmup).steps(steps_per_epoch)
    evaluations = _rhythm(config.train.evaluate_every) if chosen.monitor is not None else None

    def count(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: count(member) for name, member in value.items()}
        if isinstance(value, list):
            return [count(member) for member in value]
        if not is_duration(value):
            return value
        steps = Duration.parse(value).steps(steps_per_epoch)
        if evaluations is not None:
            return round(steps / max(1, evaluations.steps(steps_per_epoch)))
        if value == (chosen.planned_for or config.train.duration):
            steps = max(1, steps - warmup)
        return steps if chosen.interval == "step" else max(1, math.ceil(steps / steps_per_epoch))

    make = None
    if chosen._target_ is not None:
        node = {"_target_": chosen._target_, **count(chosen.arguments)}

        def make(optimizer: torch.optim.Optimizer) -> Any:
            return _scheduler(node, "scheduler", optimizer, trust)

    return Schedule(optimizer, make, interval=chosen.interval, warmup=warmup, monitor=chosen.monitor)


def outlived(schedule: Constant, total_steps: int, steps_per_epoch: int) -> list[Mistake]:
    """A scheduler that ends before the run does: OneCycleLR raises an error at the step after its last."""
    scheduler = getattr(schedule, "scheduler", None)
    if not isinstance(schedule, Schedule) or not isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
        return []
    left, planned = total_steps - schedule.warmup, scheduler.total_steps
    if schedule.interval == "epoch":
        left = math.floor(left / steps_per_epoch) if steps_per_epoch else 0
    if left <= planned:
        return []
    rule = f"must reach to the end of the run: OneCycleLR ends after {planned:,} {schedule.interval}s"
    return [Mistake("scheduler.total_steps", f"{rule}, and the run has {left:,}", remedy="give it a value of its own")]


def _scheduler(node: Mapping[str, Any], key: str, optimizer: torch.optim.Optimizer, trust: Trust) -> Any:
    """A scheduler, and before it the schedulers among its arguments (SequentialLR's, ChainedScheduler's)."""

    def inner(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [inner(member, f"{key}[{i}]") for i, member in enumerate(value)]
        if isinstance(value, Mapping) and "_target_" in value:
            target = locate(value["_target_"], trust)
            if isinstance(target, type) and issubclass(target, torch.optim.lr_scheduler.LRScheduler):
                return _scheduler(value, key, optimizer, trust)
        return value

    arguments = {name: inner(value, f"{key}.{name}") for name, value in node.items()}
    if "optimizer" in inspect.signature(locate(node["_target_"], trust)).parameters:
        arguments["optimizer"] = optimizer  # by name: it is not the first argument of ChainedScheduler
    return component(arguments, key, trust=trust)
