"""Builders of training: optimizer, optimizer step, LR schedule, EMA, metrics, intervals."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from runner.config.check.imports import import_object
from runner.config.check.rules.train import CUDA_GRAPHED, find_direction
from runner.config.component_settings import list_components, list_derived, read_sources, split_settings
from runner.config.parsing import read_members
from runner.config.schema import Config, Scheduler
from runner.core import rng, without_dynamo
from runner.core.durations import Duration, is_duration
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.expression import parse_expression
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.model.pretrained.optimizer_state import MatchedOptimizer, match_optimizer
from runner.model.pretrained.plan import LoadPlan
from runner.train.actions import Action
from runner.train.lr_schedule import ConstantLR, LRSchedule, SeveralSchedules
from runner.train.metric_inputs import DerivedNumber, MetricInput, list_fields
from runner.train.optimizer_step import precision
from runner.train.optimizer_step.accumulated import AccumulatedStep
from runner.train.optimizer_step.base import CloneOutputs, OptimizerStep, OptimizerStepWithHooks
from runner.train.optimizer_step.closure import ClosureStep, CustomStep, has_parameter, needs_closure
from runner.train.optimizer_step.named_updates import GradScalers, StepWithUpdates
from runner.train.optimizer_step.precision import GradScaler
from runner.train.optimizer_step.several_optimizers import get_members
from runner.train.optimizer_step.split_on_oom import OomSplitStep
from runner.train.single_process import FULL_TENSORS, FullTensors
from runner.train.state import Rhythm
from runner.train.weight_average import EMA, Decay, Lookahead, MeanOfWeights, WeightAverage


def make_optimizer(
    config: Config, groups: list[dict[str, Any]], device: torch.device, trust: Trust = ()
) -> torch.optim.Optimizer:
    """Make the optimizer over its groups, or several, each over the groups of its name."""
    members = model_builder.find_member_optimizers(config)
    without_dynamo.keep_from_dynamo()
    if not members:
        made: torch.optim.Optimizer = instantiate(
            set_fused(config.optimizer, device, trust), "optimizer", groups, trust=trust, seed=config.seed
        )
        without_dynamo.keep_step_from_dynamo(made)
        return made
    optimizers = {}
    for name, node in members.items():
        own = [group for group in groups if group["name"].partition("/")[0] == name]
        optimizers[name] = instantiate(
            set_fused(node, device, trust), f"optimizer.{name}", own, trust=trust, seed=config.seed
        )
        without_dynamo.keep_step_from_dynamo(optimizers[name])
    rest = {name: value for name, value in config.optimizer.items() if name not in members}
    return cast(
        "torch.optim.Optimizer", instantiate(rest, "optimizer", trust=trust, given=optimizers, seed=config.seed)
    )


def match_saved_optimizer(
    config: Config, made: LoadPlan, optimizer: torch.optim.Optimizer, trust: Trust = ()
) -> MatchedOptimizer:
    """Match the optimizer state of a pretrained file to this optimizer's parameters.

    Raises:
        ConfigError: it cannot be taken over; where `pretrained.optional` is true that is only said.
    """
    assert made.optimizer is not None
    try:
        if model_builder.find_member_optimizers(config):
            raise _refuse_saved_optimizer("has no place with several optimizers, each of which has a state of its own")
        if needs_closure(optimizer):
            raise _refuse_saved_optimizer(f"cannot be had of {config.optimizer['_target_']}: its state is of one run")
        return match_optimizer(made.optimizer, optimizer.param_groups, find_state_names(config, optimizer, trust))
    except ConfigError as error:
        if not config.pretrained.optional:
            raise
        return MatchedOptimizer(said=[f"{mistake.key} {mistake.rule}" for mistake in error.mistakes])


def _refuse_saved_optimizer(rule: str) -> ConfigError:
    mistake = Mistake("pretrained.optimizer", rule, value=True, remedy="leave it out", suggestion="false")
    return ConfigError([mistake])


def find_state_names(config: Config, optimizer: torch.optim.Optimizer, trust: Trust = ()) -> set[str] | None:
    """Find an optimizer's state names (`exp_avg`) by one step on tiny parameters; None if that fails."""
    small = []
    for group in optimizer.param_groups:
        dims = {parameter.dim(): name for name, parameter in zip(group["param_names"], group["params"], strict=True)}
        parameters = [(name, nn.Parameter(torch.ones([1] * count))) for count, name in dims.items()]
        settings = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        small.append(settings | {"params": parameters})
    with suppress(Exception), rng.fork_rng():
        stand_in = make_optimizer(config, small, torch.device("cpu"), trust)
        for group in stand_in.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        stand_in.step()
        return {name for entry in stand_in.state.values() for name, value in entry.items() if value is not None}
    return None


def set_fused(node: Mapping[str, Any], device: torch.device, trust: Trust = ()) -> Mapping[str, Any]:
    """Set `fused` in an optimizer's node on CUDA if the optimizer has it and no kernel is chosen.

    Elsewhere torch's own choice stands: `foreach` on other accelerators, a loop over the parameters on a CPU.
    """
    said = any(node.get(name) is not None for name in ("fused", "foreach"))
    said = said or any(node.get(name) for name in ("capturable", "differentiable"))
    has_fused = "fused" in inspect.signature(import_object(node["_target_"], trust)).parameters
    return {**node, "fused": True} if device.type == "cuda" and has_fused and not said else node


def make_optimizer_step(
    config: Config,
    device: torch.device,
    model: nn.Module,
    loss: Any,
    step: Any,
    optimizer: torch.optim.Optimizer,
    metrics: Sequence[MetricInput],
    average: WeightAverage | None = None,
    scaler: GradScaler | GradScalers | None = None,
) -> OptimizerStep:
    """Make the optimizer step with only the features that the config asks for.

    Args:
        config: the checked config.
        device: where it runs.
        model: what the step calls.
        loss: what the step calls with its output.
        step: see `runner.train.steps`.
        optimizer: over the parameters of both.
        metrics: of training.
        average: of the weights.
        scaler: of fp16's gradients.
    """
    before, after = make_clipping(config, model, loss), [] if average is None else [average.update]
    takes_optimizer, takes_update = has_parameter(step, "optimizer"), has_parameter(step, "update")
    if takes_optimizer and not takes_update:
        return CustomStep(model, loss, step, optimizer, after=after)
    if config.device.precision in precision.DTYPES:
        step = precision.Autocast(step, device, config.device.precision)
    if config.device.compile in CUDA_GRAPHED and device.type == "cuda":
        step = CloneOutputs(step)
    if takes_update:
        by_name = StepWithUpdates(
            model,
            loss,
            step,
            optimizer,
            clips=make_clips(config),
            scalers=scaler if isinstance(scaler, GradScalers) else None,
            takes_optimizer=takes_optimizer,
            after=after,
            count=config.train.accumulate,
            metrics=metrics if config.train.accumulate > 1 else (),
        )
        by_name.large |= list_fields(metrics)
        return by_name
    assert not isinstance(scaler, GradScalers)
    if needs_closure(optimizer):
        return ClosureStep(model, loss, step, optimizer, after)
    if config.train.accumulate > 1 or config.train.split_on_oom:
        kind = partial(OomSplitStep, model=model) if config.train.split_on_oom else AccumulatedStep
        made: AccumulatedStep = kind(
            model,
            loss,
            step,
            optimizer,
            scaler=scaler,
            before=before,
            after=after,
            count=config.train.accumulate,
            metrics=metrics,
        )
        made.large |= list_fields(metrics)
        return made
    if before or after or scaler is not None:
        return OptimizerStepWithHooks(model, loss, step, optimizer, scaler=scaler, before=before, after=after)
    return OptimizerStep(model, loss, step, optimizer)


def compile_in_place(model: nn.Module, mode: bool | str) -> None:
    """Compile the model's forward with torch.compile; the state_dict keeps its names."""
    model.compile(mode=None if isinstance(mode, bool) else mode)


def make_clipping(config: Config, model: nn.Module, loss: Any) -> list[Callable[[], Any]]:
    """Make torch's functions that clip the gradients of the model and of the loss."""
    parameters = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    return [partial(clip, parameters) for clip in make_clips(config)]


def make_clips(config: Config) -> list[Callable[..., Any]]:
    """Make torch's functions that clip the gradients of some parameters, in their order."""
    clip_value, clip_norm = config.train.clip_value, config.train.clip_norm
    clips: list[Callable[..., Any]] = []
    if clip_value is not None:
        clips.append(partial(nn.utils.clip_grad_value_, clip_value=clip_value))
    if clip_norm is not None:
        clips.append(partial(nn.utils.clip_grad_norm_, max_norm=clip_norm))
    return clips


def make_scaler(
    config: Config, step: Any, optimizer: torch.optim.Optimizer, device: torch.device
) -> GradScaler | GradScalers | None:
    """Make fp16's gradient scaler, or one for each optimizer by name; None without fp16."""
    if config.device.precision != "fp16":
        return None
    return GradScalers(optimizer, device) if has_parameter(step, "update") else GradScaler(optimizer, device)


EVERY = {"ema": "1st", "mean": "1ep", "lookahead": "5st"}  # of `train.average.every`, where it is null


def make_average(
    config: Config,
    model: nn.Module,
    rhythm: Rhythm,
    layout: FullTensors = FULL_TENSORS,
) -> WeightAverage | None:
    """Make the average of the weights; None without `train.average` and `train.ema`."""
    chosen, steps_per_epoch = config.train.average, rhythm.steps_per_epoch
    if config.train.ema is not None:
        every = Duration.parse(config.train.ema_every).steps(steps_per_epoch)
        return EMA(model, config.train.ema, max(1, every), layout=layout)
    if chosen is None:
        return None
    every = max(1, Duration.parse(chosen.every or EVERY[chosen.kind]).steps(steps_per_epoch))
    start = 0 if chosen.from_ is None else Duration.parse(chosen.from_).steps(steps_per_epoch)
    settings: dict[str, Any] = {"before": rhythm.first_step, "update_bn": chosen.update_bn, "layout": layout}
    if chosen.kind == "mean":
        return MeanOfWeights(model, every, start, **settings)
    assert chosen.decay is not None
    decay = Decay(chosen.decay, chosen.decay_power, rhythm.total_steps)
    return (EMA if chosen.kind == "ema" else Lookahead)(model, decay, every, start, **settings)


AVERAGE_SPANS = {"from": "from_", "every": "every"}


def require_step_durations(config: Config) -> None:
    """Refuse durations in epochs for a dataset without a length.

    Raises:
        RunError: a duration or a rhythm is in epochs; names all that are.
    """
    spans = {
        "train.duration": config.train.duration,
        "train.evaluate_every": config.train.evaluate_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "log.every": config.log.every,
    }
    if config.train.average is not None:
        spans |= {f"train.average.{name}": getattr(config.train.average, key) for name, key in AVERAGE_SPANS.items()}
    wrong = [f"{key}={text}" for key, text in spans.items() if text is not None and text.endswith("ep")]
    if config.pretrained.epoch:
        rule = "cannot be told on an iterable dataset, whose epochs have no known length"
        raise RunError(f"pretrained.epoch={config.pretrained.epoch} {rule}: leave it out")
    if wrong:
        raise RunError(f"an iterable dataset has no length, so these must be in steps (`500st`): {', '.join(wrong)}")


def make_views(config: Config, trust: Trust = ()) -> Any:
    """Make the function that gives several views of an evaluation's input; None without `transform.views`."""
    node = config.transform.views
    return None if node is None else instantiate(node, "transform.views", trust=trust, call=False, seed=config.seed)


def parse_interval(text: str | None) -> Duration | None:
    """Parse a duration that may be absent."""
    return None if text is None else Duration.parse(text)


def choose_objective(config: Config, splits: Mapping[str, Any]) -> tuple[str, Literal["min", "max"]]:
    """Choose the metric of `best.pt` and of a sweep, and its best direction, `min` or `max`."""
    evaluated = [name for name in splits if name not in ("train", "test")]
    first = "val" if "val" in evaluated else next(iter(evaluated), "train")
    objective = config.train.objective or f"{first}/loss"
    if config.dataset.folds is not None and config.dataset.fold is None and objective.startswith("val/"):
        return "train/loss", "min"  # of a recipe that was found with folds: no fold is held out
    return objective, config.train.mode or find_direction(config, objective)


def make_metrics(config: Config, device: torch.device, trust: Trust = (), which: str = "") -> dict[str, Any]:
    """Build the metrics by name, on the device if they are modules or have a method `to(device)`.

    `which` is train or eval, for those that are computed there.
    """
    metrics = {}
    for name, node in list_components(config.metrics).items():
        own, settings = split_settings("metric", node)
        if not which or settings.get("on", "both") in (which, "both"):
            metrics[name] = instantiate(own, f"metrics.{name}", trust=trust, seed=config.seed)
    return {name: move_metric(metric, device) for name, metric in metrics.items()}


def make_metric_input(config: Config, name: str, metric: Any) -> MetricInput:
    """Make what a metric takes of an outcome, as its `output`, `target` and `every` say."""
    settings = split_settings("metric", list_components(config.metrics)[name])[1]
    return MetricInput(
        name,
        metric,
        settings.get("output"),
        settings.get("target"),
        alone="target" in settings and settings["target"] is None,
        every=parse_interval(settings.get("every")),
    )


def make_derived(config: Config) -> tuple[DerivedNumber, ...]:
    """Make the numbers that are derived from metrics."""
    return tuple(
        DerivedNumber(name, read_sources(number), parse_expression(number.function, frozenset(read_sources(number))))
        for name, number in list_derived(config.metrics).items()
    )


def make_actions(config: Config, trust: Trust = ()) -> list[Action]:
    """Build the actions, in order."""
    actions = []
    for name, node in config.actions.items():
        if node is not None:
            own, settings = split_settings("action", node)
            call = instantiate(own, f"actions.{name}", trust=trust, call=False, seed=config.seed)
            every = parse_interval(settings.get("every", "1ep"))
            actions.append(Action(name, call, every, settings.get("on_error", "stop") == "stop"))
    return actions


def move_metric(metric: Any, device: torch.device) -> Any:
    """Move a metric to a device if it is a module or has a method `to(device)`."""
    move: Any = getattr(metric, "to", None)
    if not isinstance(metric, nn.Module):
        if not callable(move):
            return metric
        try:
            first = next(iter(inspect.signature(move).parameters.values()), None)
        except (TypeError, ValueError):
            return metric
        if first is None or first.name != "device":
            return metric
    moved = move(device)
    return metric if moved is None else moved


def make_schedule(
    config: Config,
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    total_steps: int,
    trust: Trust = (),
) -> ConstantLR:
    """Make the learning-rate schedule, one for each of several optimizers where one of them has its own.

    Optimizers whose schedule cycles momentum have one each, too: torch looks for it in the defaults of an optimizer.
    """
    own = {name: member.scheduler for name, member in read_members(config.optimizer).items()}
    members = get_members(optimizer)
    cycles = bool(own) and (config.scheduler._target_ or "").endswith((".OneCycleLR", ".CyclicLR"))
    if not any(own.values()) and not cycles:
        return _make_schedule(config, config.scheduler, "scheduler", optimizer, steps_per_epoch, total_steps, trust)
    schedules = {}
    for name, chosen in own.items():
        key = "scheduler" if chosen is None else f"optimizer.{name}.scheduler"
        schedules[name] = _make_schedule(
            config, chosen or config.scheduler, key, members[name], steps_per_epoch, total_steps, trust
        )
    return SeveralSchedules(schedules)


def _make_schedule(
    config: Config,
    chosen: Scheduler,
    key: str,
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    total_steps: int,
    trust: Trust = (),
) -> ConstantLR:
    """Make one optimizer's schedule; a constant one without steps, or without scheduler and warmup.

    A duration in the scheduler's arguments becomes a count of what it is stepped by: steps, epochs, or the evaluations
    of a metric that it follows. One that is the whole `train.duration` (`planned_for`, where the run was prolonged)
    ends with the run, so the warmup is taken off it.
    """
    if total_steps == 0 or (chosen._target_ is None and chosen.warmup is None):
        return ConstantLR()
    warmup = 0 if chosen.warmup is None else Duration.parse(chosen.warmup).steps(steps_per_epoch)
    evaluations = parse_interval(config.train.evaluate_every) if chosen.monitor is not None else None

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
            return _make_scheduler(node, key, optimizer, config.seed, trust)

    return LRSchedule(optimizer, make, interval=chosen.interval, warmup=warmup, monitor=chosen.monitor)


def find_short_schedule(schedule: ConstantLR, total_steps: int, steps_per_epoch: int) -> list[Mistake]:
    """Find a OneCycleLR that ends before the run: its next step would raise an error."""
    if isinstance(schedule, SeveralSchedules):
        found = {}
        for name, member in schedule.members.items():
            for mistake in find_short_schedule(member, total_steps, steps_per_epoch):
                found[name] = replace(mistake, key=f"optimizer.{name}.{mistake.key}")
        return list(found.values())
    scheduler = getattr(schedule, "scheduler", None)
    if not isinstance(schedule, LRSchedule) or not isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
        return []
    left, planned = total_steps - schedule.warmup, scheduler.total_steps
    if schedule.interval == "epoch":
        left = math.floor(left / steps_per_epoch) if steps_per_epoch else 0
    if left <= planned:
        return []
    rule = f"must reach to the end of the run: OneCycleLR ends after {planned:,} {schedule.interval}s"
    return [
        Mistake(
            "scheduler.total_steps",
            f"{rule}, and the run has {left:,}",
            remedy="give it a value of its own",
            kind="conflict",
        )
    ]


def _make_scheduler(
    node: Mapping[str, Any], key: str, optimizer: torch.optim.Optimizer, seed: int, trust: Trust
) -> Any:
    """Build a scheduler after the schedulers among its arguments (SequentialLR, ChainedScheduler)."""

    def inner(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [inner(member, f"{key}[{i}]") for i, member in enumerate(value)]
        if isinstance(value, Mapping) and "_target_" in value:
            target = import_object(value["_target_"], trust)
            if isinstance(target, type) and issubclass(target, torch.optim.lr_scheduler.LRScheduler):
                return _make_scheduler(value, key, optimizer, seed, trust)
        return value

    arguments = {name: inner(value, f"{key}.{name}") for name, value in node.items()}
    if "optimizer" in inspect.signature(import_object(node["_target_"], trust)).parameters:
        arguments["optimizer"] = optimizer  # by name: it is not the first argument of ChainedScheduler
    return instantiate(arguments, key, trust=trust, seed=seed)
