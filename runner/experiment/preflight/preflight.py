"""Preflight of a config without data: a meta model, and a made-up batch through every part.

Plain meta tensors have shapes and dtypes but no numbers, so even a large model is built and run in a moment.
"""

import warnings
from collections.abc import Container
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from runner.config.check.rules.rule import SUPERVISED
from runner.config.schema import Config
from runner.core import rng
from runner.core.errors import Mistake
from runner.experiment.builders import log as log_builder
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.preflight import data as data_preflight
from runner.experiment.preflight.data import make_sample_batch
from runner.experiment.preflight.model import build_meta_model, check_model_preparation
from runner.experiment.preflight.report import Preflight, has_any
from runner.experiment.preflight.train import (
    check_device,
    check_loss_broadcast,
    check_metrics,
    check_optimizer,
    find_one_sample_error,
    try_metrics,
    try_step,
)
from runner.log.module_statistics import select_statistics
from runner.model.freeze import freeze
from runner.model.meta import copy_to_meta


def run_preflight(config: Config, trust: Trust = (), wrong: Container[str] = ()) -> Preflight:
    """Build every part of a config, and send a batch of zeros through transforms, model and loss.

    `wrong` holds the top-level keys in which `check` found mistakes: what depends on these is left out.
    """
    found = Preflight()
    with rng.fork_rng():
        if not has_any(wrong, "dataset", "loader", "transform"):
            found.mistakes += data_preflight.check_dataset(config, trust)
            found.notes += data_preflight.describe_downloads(config)
        if "device" not in wrong:
            check_device(config, found)
        if "metrics" not in wrong:
            with found.catching("metrics"):
                check_metrics(config, train_builder.make_metrics(config, torch.device("cpu"), trust), found, wrong)
        loss = None
        if "loss" not in wrong and config.loss is not None:
            with found.catching("loss"):
                loss = instantiate(config.loss, "loss", trust=trust, call=False)
        if "model" not in wrong:
            found.model = build_meta_model(config, found, trust)
        groups: list[dict[str, Any]] | None = [
            {"params": [("stand-in", torch.empty(1, 1))], "name": name}
            for name in model_builder.find_member_optimizers(config) or ["default"]
        ]
        if found.model is not None and not has_any(wrong, "init", "pretrained", "freeze", "param_groups", "optimizer"):
            groups = check_model_preparation(config, found.model, found, trust, loss)
        _check_hooks(config, found, trust, wrong)
        if groups is not None and "optimizer" not in wrong:
            check_optimizer(config, groups, found, trust, schedule=not has_any(wrong, "scheduler", "train"))
        if not has_any(wrong, "dataset", "transform", "step"):
            found.batch = make_sample_batch(config, found, trust)
        without = config.dataset.steps_per_epoch is not None and config.step.get("_target_") != SUPERVISED
        known = found.batch is not None or without
        if found.model is not None and known and not has_any(wrong, "dataset", "step", "loss", "optimizer"):
            try_step(config, found, loss, trust, groups)
    return found


def prepare_model_table(config: Config, trust: Trust = ()) -> Preflight:
    """Build the meta model and the batch for the model's table, of a config already examined."""
    found = Preflight(notes=data_preflight.describe_downloads(config))
    with rng.fork_rng():
        found.model = build_meta_model(config, found, trust)
        if found.model is not None:
            freeze(found.model, config.freeze.params, norm_stats=config.freeze.norm_stats)
        found.batch = make_sample_batch(config, found, trust)
    return found


def _check_hooks(config: Config, found: Preflight, trust: Trust, wrong: Container[str]) -> None:
    if found.model is not None and "log" not in wrong:
        with found.catching("log.hooks"):
            select_statistics(found.model, log_builder.make_hooks(config, trust))


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
        whole = config.loader.batch_size
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
