"""Builders of the monitor, the module hooks and the TensorBoard hparams from a config."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.config.check.imports import import_object
from runner.config.component_settings import split_settings
from runner.config.schema import Config, LogHook
from runner.core.durations import Duration
from runner.core.escape import cut_name
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.log.module_statistics import Hook, ModuleStatistics, UserHook, select_statistics
from runner.log.profiler import StepProfiler
from runner.log.throughput import DataWaitTimer, find_peak_flops
from runner.log.tracking import TrackerProcess
from runner.train.monitor import EvaluationViews, Monitor, ThroughputMeter
from runner.train.optimizer_step.base import OptimizerStep
from runner.train.single_process import SingleProcess
from runner.train.state import Run

TRACKER_SECONDS = 30.0  # that the end of a run waits for a tracker, unless its `timeout` says otherwise
LEDGER = "ledger.sqlite"  # in the folder of a sweep
NO_HPARAMS = ("actions", "log", "run", "sweep", "name", "dataset.sample")  # they change no number


def make_monitor(
    config: Config,
    model: nn.Module,
    update: OptimizerStep,
    optimizer: Optimizer,
    device: torch.device,
    folder: Path,
    dataset: Any,
    team: SingleProcess,
    trust: Trust = (),
) -> Monitor:
    """Make the monitor that the config's `log` section asks for.

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
    looks = Monitor(model, update, graph=log.graph and log.tensorboard, grouped=config.train.accumulate > 1)
    hooks = make_hooks(config, trust)
    if log.gradient_norm or hooks or log.histograms is not None:
        looks.inside = ModuleStatistics(
            model, optimizer, select_statistics(model, hooks), gradient_norm=log.gradient_norm
        )
        looks.inside.scaler = getattr(update, "scaler", None)
        looks.every = Duration.parse(log.every) if log.gradient_norm or hooks else None
        looks.histograms = None if log.histograms is None else Duration.parse(log.histograms)
    if log.images or log.confusion_matrix or log.pr_curves or log.embeddings:
        names = getattr(dataset, "classes", None)
        looks.evaluation = EvaluationViews(
            folder,
            config.step.get("input", 0),
            [cut_name(name) for name in names] if isinstance(names, list | tuple) else [],
            log.images,
            log.confusion_matrix,
            log.pr_curves,
            log.embeddings,
        )
    if log.throughput or log.data_wait or log.memory or log.mfu:
        looks.measured = ThroughputMeter(
            device,
            log.throughput,
            log.memory,
            DataWaitTimer() if log.data_wait else None,
            log.mfu,
            compute_peak_flops(config, device, team.world),
        )
    if log.profile is not None and team.rank == 0:
        chosen_steps = {name: getattr(log.profile, name) for name in ("wait", "warmup", "active", "repeat")}
        options = {name: getattr(log.profile, name) for name in ("record_shapes", "profile_memory", "with_stack")}
        looks.profile = StepProfiler(folder, device, **chosen_steps, options=options)
    return looks


def start_trackers(run: Run, config: Config, trust: Trust, alert: Callable[[str], None]) -> tuple[TrackerProcess, ...]:
    """Start the trackers of `log.to`, each in a process of its own; the log is open at the run's step.

    Args:
        run: the run, at the step from which it trains.
        config: the checked config.
        trust: patterns of names trusted on the command line.
        alert: says what is amiss with one.
    """
    nodes = {name: node for name, node in config.log.to.items() if node is not None}
    if not nodes:
        return ()
    sweep = run.folder.absolute().parent
    started = []
    for name, node in nodes.items():
        own, settings = split_settings("tracker", node)
        setup = {
            "name": name,
            "node": own,
            "trust": list(trust),
            "folder": str(run.folder.absolute()),
            "project": config.name,
            "group": sweep.name if (sweep / LEDGER).exists() else None,
            "config": run.config,
            "until": run.progress.step,
        }
        timeout = float(settings.get("timeout", TRACKER_SECONDS))
        try:
            (run.folder / "trackers").mkdir(exist_ok=True)
            started.append(TrackerProcess(name, run.folder / "trackers", setup, timeout, alert))
        except OSError as error:  # too many processes, a disk that is full or takes nothing
            alert(f"log.to.{name} could not be started: {error}. The run goes on without it")
    return tuple(started)


def compute_peak_flops(config: Config, device: torch.device, devices: int) -> float | None:
    """Compute the peak FLOP/s of `devices` devices at the config's precision; None if unknown."""
    peak = config.log.peak_flops
    if peak is None and device.type == "cuda":
        peak = find_peak_flops(torch.cuda.get_device_name(device), config.device.precision)
    return None if peak is None else peak * devices


def make_hooks(config: Config, trust: Trust = ()) -> list[Hook]:
    """Make the module hooks of `log.hooks`, with their module types imported."""
    hooks = []
    for label, hook in config.log.hooks.items():
        if hook is None:
            continue
        named = [hook.module] if isinstance(hook.module, str) else hook.module or []
        modules = tuple(import_object(path, trust) for path in named)
        forward, backward = (
            _read_statistics(label, hook, which, config.seed, trust) for which in ("forward", "backward")
        )
        hooks.append(Hook(label, modules or None, hook.name, forward, backward, hook.optional))
    return hooks


def _read_statistics(label: str, hook: LogHook, which: str, seed: int, trust: Trust) -> tuple[str | UserHook, ...]:
    wanted = getattr(hook, which)
    if not isinstance(wanted, Mapping):
        return tuple(wanted)
    made = instantiate(wanted, f"log.hooks.{label}.{which}", trust=trust, call=False, seed=seed)
    return (UserHook(label, made),)


def collect_hparams(plain: Mapping[str, Any], patterns: Sequence[str] | None = None) -> dict[str, Any]:
    """Collect numbers, booleans and strings by full key: all but NO_HPARAMS, or those that match."""
    flat = {key: value for key, value in _flatten(plain) if isinstance(value, bool | int | float | str)}
    if patterns is None:
        idle = tuple(f"{key}." for key in NO_HPARAMS)
        return {key: value for key, value in flat.items() if not f"{key}.".startswith(idle)}
    return {key: value for key, value in flat.items() if any(re.fullmatch(pattern, key) for pattern in patterns)}


def _flatten(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        members = value.items()
    elif isinstance(value, list):
        members = dict(enumerate(value)).items()
    else:
        return [(key, value)]
    return [pair for name, member in members for pair in _flatten(member, f"{key}.{name}" if key else str(name))]
