"""Preflight of a config without data: a meta model, and a made-up batch through every part.

Plain meta tensors have shapes and dtypes but no numbers, so even a large model is built and run in a moment.
"""

import warnings
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from runner.config.check.check import to_resolved_data
from runner.config.check.imports import import_object
from runner.config.schema import Config
from runner.core import rng, without_dynamo
from runner.core.errors import Mistake
from runner.core.shared_answers import ask_once
from runner.experiment.builders import log as log_builder
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.preflight import data as data_preflight
from runner.experiment.preflight.data import make_sample_batch
from runner.experiment.preflight.model import build_meta_model, check_model_preparation
from runner.experiment.preflight.report import Preflight, has_any
from runner.experiment.preflight.step import (
    check_loss_broadcast,
    find_one_sample_error,
    try_metrics,
    try_step,
)
from runner.experiment.preflight.train import (
    check_actions,
    check_device,
    check_metrics,
    check_optimizer,
    check_trackers,
)
from runner.log.module_statistics import select_statistics
from runner.model.meta import copy_to_meta
from runner.train.optimizer_step.closure import is_custom_step
from runner.train.steps import needs_input_and_target

# What makes no difference to the first step of a model and a loss: jobs that differ in nothing else have one trial.
NOT_OF_A_STEP = frozenset({"name", "seed", "init", "optimizer", "param_groups", "sweep"})


@dataclass
class PreflightScene:
    """State of a preflight: what is asked for, and what the checks so far have made of it."""

    config: Config
    trust: Trust
    wrong: Container[str]  # top-level keys in which `check` found mistakes
    found: Preflight
    loss: Any = None
    groups: list[dict[str, Any]] | None = None  # of parameters; None where they cannot be had


def run_preflight(config: Config, trust: Trust = (), wrong: Container[str] = ()) -> Preflight:
    """Build every part of a config, and send a batch of zeros through transforms, model and loss.

    `wrong` holds the top-level keys in which `check` found mistakes: what depends on these is left out.
    """
    scene = PreflightScene(config, trust, wrong, Preflight())
    without_dynamo.keep_from_dynamo()
    with rng.fork_rng():
        for needs, check in CHECKS:
            if not has_any(wrong, *needs):
                check(scene)
    return scene.found


def _check_data(scene: PreflightScene) -> None:
    scene.found.mistakes += data_preflight.check_dataset(scene.config, scene.trust)
    scene.found.notes += data_preflight.describe_folds(scene.config)
    scene.found.notes += data_preflight.describe_downloads(scene.config)


def _check_device(scene: PreflightScene) -> None:
    check_device(scene.config, scene.found)


def _check_metrics(scene: PreflightScene) -> None:
    with scene.found.catching("metrics"):
        metrics = train_builder.make_metrics(scene.config, torch.device("cpu"), scene.trust)
        check_metrics(scene.config, metrics, scene.found, scene.wrong)


def _check_actions(scene: PreflightScene) -> None:
    with scene.found.catching("actions"):
        check_actions(scene.config, scene.found, scene.trust)


def _check_trackers(scene: PreflightScene) -> None:
    with scene.found.catching("log.to"):
        check_trackers(scene.config, scene.found, scene.trust)


def _make_loss(scene: PreflightScene) -> None:
    if scene.config.loss is not None:
        with scene.found.catching("loss"):
            scene.loss = instantiate(scene.config.loss, "loss", trust=scene.trust, call=False)


def _build_model(scene: PreflightScene) -> None:
    scene.found.model = build_meta_model(scene.config, scene.found, scene.trust)


def _make_stand_in_groups(scene: PreflightScene) -> None:
    names = model_builder.find_member_optimizers(scene.config) or ["default"]
    scene.groups = [{"params": [("stand-in", torch.empty(1, 1))], "name": name} for name in names]


def _prepare_model(scene: PreflightScene) -> None:
    if (model := scene.found.model) is not None:
        scene.groups = check_model_preparation(scene.config, model, scene.found, scene.trust, scene.loss)


def _check_hooks(scene: PreflightScene) -> None:
    if scene.found.model is not None:
        with scene.found.catching("log.hooks"):
            select_statistics(scene.found.model, log_builder.make_hooks(scene.config, scene.trust))


def _check_optimizer(scene: PreflightScene) -> None:
    if scene.groups is not None:
        schedule = not has_any(scene.wrong, "scheduler", "train")
        check_optimizer(scene.config, scene.groups, scene.found, scene.trust, schedule=schedule)


def _make_batch(scene: PreflightScene) -> None:
    scene.found.batch = make_sample_batch(scene.config, scene.found, scene.trust)


def _try_step(scene: PreflightScene) -> None:
    config, found = scene.config, scene.found
    step = import_object(config.step["_target_"], scene.trust)
    needs_no_data = config.dataset.steps_per_epoch is not None and not needs_input_and_target(step)
    if found.model is not None and (found.batch is not None or needs_no_data):
        names = not has_any(scene.wrong, "metrics")
        if found.mistakes or is_custom_step(step):  # whose own optimizer is tried, too
            try_step(config, found, scene.loss, scene.trust, scene.groups, names=names)
            return
        alike = repr({name: value for name, value in to_resolved_data(config).items() if name not in NOT_OF_A_STEP})
        tried = ask_once(("step", alike, scene.trust, names), lambda: _try_alone(scene, names=names))
        found.mistakes += tried.mistakes
        found.notes += tried.notes
        found.left_open |= tried.left_open


def _try_alone(scene: PreflightScene, *, names: bool) -> Preflight:
    """Try the step; return a report of that alone."""
    alone = replace(scene.found, mistakes=[], notes=[])
    try_step(scene.config, alone, scene.loss, scene.trust, scene.groups, names=names)
    return alone


# In order: the keys of the config that a check needs to be free of mistakes, and the check. A check leaves what later
# ones use in the scene, and does nothing where it lacks what an earlier one was to make.
CHECKS: tuple[tuple[tuple[str, ...], Callable[[PreflightScene], None]], ...] = (
    (("dataset", "loader", "transform"), _check_data),
    (("device",), _check_device),
    (("metrics",), _check_metrics),
    (("actions",), _check_actions),
    (("loss",), _make_loss),
    (("model",), _build_model),
    ((), _make_stand_in_groups),
    (("init", "pretrained", "freeze", "param_groups", "optimizer"), _prepare_model),
    (("log",), _check_hooks),
    (("log",), _check_trackers),
    (("optimizer", "step"), _check_optimizer),
    (("dataset", "transform", "step"), _make_batch),
    (("dataset", "step", "loss", "optimizer"), _try_step),
)


def prepare_model_table(config: Config, trust: Trust = ()) -> Preflight:
    """Build the meta model and the batch for the model's table, of a config already examined."""
    found = Preflight(notes=data_preflight.describe_downloads(config))
    with rng.fork_rng():
        found.model = build_meta_model(config, found, trust)
        if found.model is not None:
            model_builder.freeze_model(config, found.model)
        found.batch = make_sample_batch(config, found, trust)
    return found


def find_late_mistakes(
    config: Config,
    model: nn.Module,
    loss: Any,
    batch: Any,
    trust: Trust,
    *,
    rest: bool,
    size: int,
    metrics: bool = False,
) -> list[Mistake]:
    """Find mistakes on a meta batch that a run of the supervised step meets after its first step.

    Args:
        config: the checked config.
        model: on the meta device; it is put into training mode.
        loss: of the run.
        batch: on the meta device.
        trust: patterns of names trusted on the command line.
        rest: whether an epoch has a batch of one sample.
        size: the samples of an epoch.
        metrics: whether to send what comes of the batch through the metrics.
    """
    step = instantiate(config.step, "step", trust=trust, call=False)
    found = Preflight(model=model, batch=batch)
    with rng.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_meta = copy_to_meta(loss) if isinstance(loss, nn.Module) else loss
        model.train()
        if metrics:
            with suppress(Exception):  # the real step comes next, and says it of real numbers
                outcome = step(batch, model, on_meta)
                mistake = check_loss_broadcast(on_meta, outcome["output"], outcome["target"])
                found.mistakes += [mistake] if mistake is not None else []
                try_metrics(config, found, {"train": outcome}, trust)
        error = find_one_sample_error(batch, lambda part: step(part, model, on_meta)) if rest else None
    if error is not None:
        whole = config.loader.batch_size or 1
        sizes = f"{size:,} samples in batches of {whole:,} leave a last batch of one" if whole > 1 else "each has one"
        rule = f"makes a batch that the model cannot train on: {sizes} ({type(error).__name__}: {error})"
        other = _suggest_batch_size(size, whole)
        remedy = f"take `loader.drop_last=true` or another size, such as `loader.batch_size={other}`"
        if whole == 1:
            remedy = "take `loader.batch_size=2` or more"
        found.mistakes.append(Mistake("loader.batch_size", rule, whole, remedy=remedy, kind="refused"))
    return found.mistakes


def _suggest_batch_size(size: int, batch_size: int) -> int:
    """Suggest the nearest batch size, smaller first, that leaves no batch of a single sample."""
    smaller = range(batch_size - 1, 1, -1)
    return next((other for other in smaller if size % other != 1), batch_size + 1)
