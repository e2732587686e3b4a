"""From the config to what a run looks at."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.config.check.imports import import_object
from runner.config.schema import Config, LogHook
from runner.core.durations import Duration
from runner.experiment.builders.instantiate import Trust, component
from runner.log.hooks import Hook, Inside, OwnHook, chosen
from runner.log.profiler import Profile
from runner.log.throughput import Waiting, peak_flops
from runner.train.monitor import Evaluation, Looks, Measured
from runner.train.optimizer_step.base import Update
from runner.train.single_process import Alone

NO_HPARAMS = ("log", "run", "sweep", "name", "dataset.sample")  # they change no number


def make_looks(
    config: Config,
    model: nn.Module,
    update: Update,
    optimizer: Optimizer,
    device: torch.device,
    folder: Path,
    dataset: Any,
    team: Alone,
    trust: Trust = (),
) -> Looks:
    """What the config wants to be looked at.

    Args:
        config: the checked config.
        model: without a wrapper.
        update: one optimizer step.
        optimizer: whose groups have a gradient norm each.
        device: of the run.
        folder: the run directory.
        dataset: of training; its `classes`, where it has some, are their names.
        team: the processes that train together, of which the first one writes.
        trust: patterns of names trusted on the command line.

    Raises:
        ConfigError: a hook matches nothing.
    """
    log = config.log
    looks = Looks(model, update, graph=log.graph and log.tensorboard, grouped=config.train.accumulate > 1)
    hooks = make_hooks(config, trust)
    if log.gradient_norm or hooks or log.histograms is not None:
        looks.inside = Inside(model, optimizer, chosen(model, hooks), gradient_norm=log.gradient_norm)
        looks.inside.scaler = getattr(update, "scaler", None)
        looks.every = Duration.parse(log.every) if log.gradient_norm or hooks else None
        looks.histograms = None if log.histograms is None else Duration.parse(log.histograms)
    if log.images or log.confusion_matrix or log.pr_curves or log.embeddings:
        names = getattr(dataset, "classes", None)
        looks.evaluation = Evaluation(
            folder,
            config.step.get("input", 0),
            [str(name) for name in names] if isinstance(names, list | tuple) else [],
            log.images,
            log.confusion_matrix,
            log.pr_curves,
            log.embeddings,
        )
    if log.throughput or log.data_wait or log.memory or log.mfu:
        looks.measured = Measured(
            device,
            log.throughput,
            log.memory,
            Waiting() if log.data_wait else None,
            log.mfu,
            peak_of(config, device, team.world),
        )
    if log.profile is not None and team.rank == 0:
        chosen_steps = {name: getattr(log.profile, name) for name in ("wait", "warmup", "active", "repeat")}
        options = {name: getattr(log.profile, name) for name in ("record_shapes", "profile_memory", "with_stack")}
        looks.profile = Profile(folder, device, **chosen_steps, options=options)
    return looks


def peak_of(config: Config, device: torch.device, devices: int) -> float | None:
    """The peak of so many devices in FLOP/s at the config's precision; None where it is not known."""
    peak = config.log.peak_flops
    if peak is None and device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(device), config.device.precision)
    return None if peak is None else peak * devices


def make_hooks(config: Config, trust: Trust = ()) -> list[Hook]:
    """The config's hooks, their types located."""
    hooks = []
    for label, hook in config.log.hooks.items():
        if hook is None:
            continue
        named = [hook.module] if isinstance(hook.module, str) else hook.module or []
        modules = tuple(import_object(path, trust) for path in named)
        forward, backward = (_looked_at(label, hook, which, trust) for which in ("forward", "backward"))
        hooks.append(Hook(label, modules or None, hook.name, forward, backward, hook.optional))
    return hooks


def _looked_at(label: str, hook: LogHook, which: str, trust: Trust) -> tuple[str | OwnHook, ...]:
    wanted = getattr(hook, which)
    if not isinstance(wanted, Mapping):
        return tuple(wanted)
    return (OwnHook(label, component(wanted, f"log.hooks.{label}.{which}", trust=trust, call=False)),)


def hparams(plain: Mapping[str, Any], patterns: Sequence[str] | None = None) -> dict[str, Any]:
    """The config's numbers, booleans and strings by full key; all that may change a number, or those that match."""
    flat = {key: value for key, value in _flat(plain) if isinstance(value, bool | int | float | str)}
    if patterns is None:
        idle = tuple(f"{key}." for key in NO_HPARAMS)
        return {key: value for key, value in flat.items() if not f"{key}.".startswith(idle)}
    return {key: value for key, value in flat.items() if any(re.fullmatch(pattern, key) for pattern in patterns)}


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        members = value.items()
    elif isinstance(value, list):
        members = dict(enumerate(value)).items()
    else:
        return [(key, value)]
    return [pair for name, member in members for pair in _flat(member, f"{key}.{name}" if key else str(name))]
