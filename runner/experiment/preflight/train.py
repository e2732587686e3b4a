"""Preflight of training: metrics, device, optimizer and schedule, each made without data."""

import warnings
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import nn

from runner.config.check.imports import import_object
from runner.config.check.rules.train import PLATEAU, find_stop_names
from runner.config.component_settings import ACTION_ARGUMENTS
from runner.config.schema import Config
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import device as devices
from runner.core.durations import Duration
from runner.core.errors import Mistake, RunError
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.preflight.report import (
    Preflight,
    has_any,
)
from runner.train.accumulators import get_accumulators, set_accumulators
from runner.train.actions import list_unknown_arguments
from runner.train.lr_schedule import ConstantLR
from runner.train.optimizer_step.closure import has_parameter, is_custom_step, needs_closure
from runner.train.optimizer_step.several_optimizers import get_members

STEPS_PER_EPOCH = 100  # a stand-in: the data is not touched yet


def check_metrics(config: Config, metrics: Mapping[str, Any], found: Preflight, wrong: Container[str]) -> None:
    """Check that metrics have their three methods, and that the keys that name a metric name one of them."""
    for name, metric in metrics.items():
        lacks = [part for part in ("update", "compute", "reset") if not callable(getattr(metric, part, None))]
        if lacks:
            rule = f"must have `update`, `compute` and `reset`, and has no `{'`, no `'.join(lacks)}`"
            found.mistakes.append(Mistake(f"metrics.{name}", rule, type(metric).__name__, kind="type"))
        elif mistake := check_saving(f"metrics.{name}", metric):
            found.mistakes.append(mistake)
    _check_metric_names(config, metrics, found)
    if not has_any(wrong, "scheduler", "train"):
        _check_direction(config, metrics, found)


def check_actions(config: Config, found: Preflight, trust: Trust) -> None:
    """Check that actions can be called with what the runner gives them."""
    for action in train_builder.make_actions(config, trust):
        key = f"actions.{action.name}"
        call: Any = action.call
        if not callable(call):
            found.mistakes.append(Mistake(key, "must be called, and has no `__call__`", type(call).__name__))
            continue
        for name in list_unknown_arguments(call, ACTION_ARGUMENTS):
            near = find_nearest(name, ACTION_ARGUMENTS)
            rule = f"has an argument `{name}` that nothing gives: an action may name {', '.join(ACTION_ARGUMENTS)}"
            found.mistakes.append(Mistake(key, rule, remedy=format_suggestion(near), kind="missing"))


def check_trackers(config: Config, found: Preflight, trust: Trust) -> None:
    """Check that the classes of trackers have `scalars`; none is made here."""
    for name, node in config.log.to.items():
        target = None if node is None else import_object(node["_target_"], trust)
        if isinstance(target, type) and not callable(getattr(target, "scalars", None)):
            rule = "must have a method `scalars(step, values)`"
            found.mistakes.append(Mistake(f"log.to.{name}", rule, target.__name__, kind="type"))


def check_saving(key: str, metric: Any, fresh: Any = None) -> Mistake | None:
    """Return a mistake if a checkpoint cannot hold what a metric keeps, or a fresh metric not take it."""
    try:
        saved = get_accumulators(metric, key)
        if fresh is not None:
            set_accumulators(fresh, saved, torch.device("cpu"))
    except RunError as error:
        return Mistake(key, f"keeps what a resume would lose: {error}", type(metric).__name__, kind="type")
    return None


def _check_metric_names(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """Check objective and monitor against the names that a built MetricCollection gives."""
    uses = {"train.objective": config.train.objective, "scheduler.monitor": config.scheduler.monitor}
    for key, wanted in (uses | find_stop_names(config)).items():
        split, _, name = (wanted or "").partition("/")
        collection: Any = metrics.get(name.partition("/")[0])
        if type(collection).__name__ != "MetricCollection":
            continue
        names = [f"{split}/{name.partition('/')[0]}/{inner}" for inner in collection.keys()]  # noqa: SIM118  no mapping
        if wanted not in names:
            right = find_nearest(wanted or "", names) or names[0]
            rule = f"must be one of {', '.join(f'`{known}`' for known in names)}"
            found.mistakes.append(Mistake(key, rule, wanted, remedy=format_suggestion(right), suggestion=right))


def _check_direction(config: Config, metrics: Mapping[str, Any], found: Preflight) -> None:
    """Check that the `mode` of ReduceLROnPlateau agrees with its metric's direction."""
    monitor, chosen = config.scheduler.monitor, config.scheduler
    if monitor is None or not (chosen._target_ or "").endswith(f".{PLATEAU}"):
        return
    name, _, inner = monitor.partition("/")[2].partition("/")
    metric: Any = metrics.get(name)
    if type(metric).__name__ == "MetricCollection" and inner in metric:
        metric = metric[inner]
    higher = False if name == "loss" else getattr(metric, "higher_is_better", None)
    reason = "lower is better" if higher is False else "higher is better"
    if config.train.mode is not None and monitor == config.train.objective:
        higher, reason = config.train.mode == "max", f"train.mode is {config.train.mode}"
    mode = chosen.arguments.get("mode", "min")
    right = "max" if higher else "min"
    if isinstance(higher, bool) and mode in ("min", "max") and mode != right:
        rule = f"must be `{right}` for `{monitor}`, of which {reason}"
        found.mistakes.append(Mistake("scheduler.mode", rule, mode, remedy=f"write `mode: {right}`", suggestion=right))


def check_device(config: Config, found: Preflight) -> None:
    """Check that this machine has the device, and enough GPUs for `device.parallel`."""
    try:
        device = devices.choose(config.device.type)
    except ValueError as error:
        remedy = "take `device.type=auto` or `cpu`"
        found.mistakes.append(
            Mistake("device.type", f"cannot be had ({error})", config.device.type, remedy=remedy, kind="unavailable")
        )
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device.parallel == "data_parallel" and config.device.type in ("auto", "cuda") and count < 2:
        rule = f"has nothing to split batches over: torch sees {count} CUDA device{'s' * (count != 1)} here"
        found.mistakes.append(
            Mistake(
                "device.parallel",
                rule,
                "data_parallel",
                remedy="leave it at `none`",
                suggestion="none",
                kind="unavailable",
            )
        )
    wanted = config.device.precision
    if reason := devices.explain_cannot_compute(device, wanted):
        rule = f"cannot be had on {device.type}: {reason}"
        found.mistakes.append(
            Mistake("device.precision", rule, wanted, remedy="take fp32", suggestion="fp32", kind="unavailable")
        )
    if config.device.compile and (reason := devices.explain_cannot_compile(device)):
        rule = f"cannot be had here: {reason}"
        found.mistakes.append(
            Mistake("device.compile", rule, config.device.compile, suggestion="false", kind="unavailable")
        )


def check_optimizer(
    config: Config, groups: list[dict[str, Any]], found: Preflight, trust: Trust, *, schedule: bool
) -> None:
    """Check optimizer, saved optimizer state and, if `schedule`, the schedule on the meta device."""
    with found.catching("optimizer"):
        optimizer = make_stand_in_optimizer(config, groups, trust)
        found.mistakes += find_unsupported_settings(config, optimizer, trust)
        if found.pretrained is not None and found.pretrained.optimizer is not None:
            with found.catching("pretrained.optimizer"):
                matched = train_builder.match_saved_optimizer(config, found.pretrained, optimizer, trust)
                found.plan += [f"pretrained: {line}" for line in (*found.pretrained.begins, *matched.said)]
        if not schedule:
            return
        with found.catching("scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = Duration.parse(config.train.duration).steps(STEPS_PER_EPOCH)
            rated = [group for group in optimizer.param_groups if "lr" in group]
            before = {group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(rated)}
            rates = train_builder.make_schedule(config, optimizer, STEPS_PER_EPOCH, steps, trust)
            _check_rates(config, before, rates, found)
            rates.step()  # some arguments are refused at the first step only
            rates.epoch()


def make_stand_in_optimizer(config: Config, groups: list[dict[str, Any]], trust: Trust = ()) -> torch.optim.Optimizer:
    """Make the optimizer over empty CPU tensors in the groups: fused optimizers refuse meta tensors."""
    stand_ins = [
        group | {"params": [(name, nn.Parameter(torch.empty([0] * p.dim(), dtype=p.dtype))) for name, p in members]}
        for group in groups
        if (members := group["params"])
    ]
    return train_builder.make_optimizer(config, stand_ins, torch.device("cpu"), trust)


def _check_rates(config: Config, before: Mapping[str, float], rates: ConstantLR, found: Preflight) -> None:
    """Refuse one `max_lr` of OneCycleLR or CyclicLR for groups with different rates."""
    scheduler, given = getattr(rates, "scheduler", None), config.scheduler.arguments.get("max_lr")
    sets = isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR | torch.optim.lr_scheduler.CyclicLR)
    if sets and len(set(before.values())) > 1 and isinstance(given, int | float):
        lr = config.optimizer.get("lr")
        base = lr if isinstance(lr, int | float) and lr else next(iter(before.values()))
        own = ", ".join(f"{name} {rate:g}" for name, rate in before.items())
        rule = f"would be the rate of every parameter group, so that their own ({own}) had no effect"
        each = [float(f"{given * rate / base:g}") for rate in before.values()] if base else []
        remedy = f"write one for each group, such as `{each}`"
        found.mistakes.append(Mistake("scheduler.max_lr", rule, given, remedy=remedy, kind="conflict"))


def find_unsupported_settings(config: Config, optimizer: torch.optim.Optimizer, trust: Trust = ()) -> list[Mistake]:
    """Find settings that a closure optimizer (LBFGS) or a step with its own update cannot support."""
    train, precision = config.train, config.device.precision
    set_so = {
        "train.accumulate": train.accumulate if train.accumulate > 1 else None,
        "train.split_on_oom": train.split_on_oom or None,
        "train.clip_norm": train.clip_norm,
        "train.clip_value": train.clip_value,
        "device.precision": precision if precision in ("bf16", "fp16") else None,
        "device.parallel": config.device.parallel if config.device.parallel not in ("none", "auto") else None,
    }
    step = instantiate(config.step, "step", trust=trust, call=False)
    name, remedy = config.step["_target_"], ""
    closures = [member for member, one in get_members(optimizer).items() if needs_closure(one)]
    if has_parameter(step, "update") and not closures:
        # An optimizer may have stepped before the memory is out; FSDP and DataParallel see a call of the whole model.
        kept = ["train.split_on_oom", *(["device.parallel"] if config.device.parallel != "ddp" else [])]
        set_so = {key: set_so[key] for key in kept}
        reason = f"has no place where the step asks for updates one by one, as `{name}` does"
    elif is_custom_step(step) and not (closures and has_parameter(step, "update")):
        reason = f"has no place where the step does its own backward and update, as `{name}` does"
        remedy = "let it ask for `update` in place of `optimizer`, and call `update(NAME, loss)`"
    elif closures == [""] and not is_custom_step(step):
        reason = f"has no place where the optimizer evaluates the loss itself, as `{config.optimizer['_target_']}` does"
        set_so["device.precision"] = precision if precision == "fp16" else None
    else:
        rule = "must not be one of several optimizers: it evaluates the loss itself"
        if is_custom_step(step):
            rule = f"must not stand beside a step with `update` (`{name}`): it evaluates the loss itself"
        several = {f"optimizer.{one}": config.optimizer[one] for one in closures if one}
        nodes = several or {"optimizer": config.optimizer}
        nodes = nodes if closures else {}
        return [Mistake(f"{key}._target_", rule, node["_target_"], kind="conflict") for key, node in nodes.items()]
    return [
        Mistake(key, reason, value, remedy=remedy if key != "train.split_on_oom" else "", kind="conflict")
        for key, value in set_so.items()
        if value is not None
    ]
