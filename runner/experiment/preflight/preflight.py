"""What can be known about a config without data: the model on the meta device, one made-up sample through everything.

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
from runner.experiment.builders.instantiate import Trust, component
from runner.experiment.preflight import data as data_preflight
from runner.experiment.preflight.data import _sample_batch
from runner.experiment.preflight.model import _check_surgery, meta_model
from runner.experiment.preflight.report import Preflight, _any
from runner.experiment.preflight.train import (
    _check_device,
    _check_metrics,
    _check_optimizer,
    _try_metrics,
    _try_step,
    refuses_one,
    spread_in_loss,
)
from runner.log.hooks import chosen
from runner.model.freeze import freeze
from runner.model.meta import meta_copy


def preflight(config: Config, trust: Trust = (), wrong: Container[str] = ()) -> Preflight:
    """Build model, loss, metrics, optimizer, scheduler; send a sample of zeros through transforms, model, loss.

    `wrong` holds the top-level keys in which `check` found mistakes: what depends on these is left out.
    """
    found = Preflight()
    with rng.fork_rng():
        if not _any(wrong, "dataset", "loader", "transform"):
            found.mistakes += data_preflight.mistakes(config, trust)
            found.notes += data_preflight.downloads_to_come(config)
        if "device" not in wrong:
            _check_device(config, found)
        if "metrics" not in wrong:
            with found.catching("metrics"):
                _check_metrics(config, train_builder.make_metrics(config, torch.device("cpu"), trust), found, wrong)
        loss = None
        if "loss" not in wrong and config.loss is not None:
            with found.catching("loss"):
                loss = component(config.loss, "loss", trust=trust, call=False)
        if "model" not in wrong:
            found.model = meta_model(config, found, trust)
        groups: list[dict[str, Any]] | None = [
            {"params": [("stand-in", torch.empty(1, 1))], "name": name}
            for name in model_builder.several(config) or ["default"]
        ]
        if found.model is not None and not _any(wrong, "init", "pretrained", "freeze", "param_groups", "optimizer"):
            groups = _check_surgery(config, found.model, found, trust, loss)
        _check_hooks(config, found, trust, wrong)
        if groups is not None and "optimizer" not in wrong:
            _check_optimizer(config, groups, found, trust, schedule=not _any(wrong, "scheduler", "train"))
        if not _any(wrong, "dataset", "transform", "step"):
            found.batch = _sample_batch(config, found, trust)
        without = config.dataset.steps_per_epoch is not None and config.step.get("_target_") != SUPERVISED
        known = found.batch is not None or without
        if found.model is not None and known and not _any(wrong, "dataset", "step", "loss", "optimizer"):
            _try_step(config, found, loss, trust, groups)
    return found


def outline(config: Config, trust: Trust = ()) -> Preflight:
    """What the model's table is made from, of a config that has been examined: no mistake is looked for again."""
    found = Preflight(notes=data_preflight.downloads_to_come(config))
    with rng.fork_rng():
        found.model = meta_model(config, found, trust)
        if found.model is not None:
            freeze(found.model, config.freeze.params, norm_stats=config.freeze.norm_stats)
        found.batch = _sample_batch(config, found, trust)
    return found


def _check_hooks(config: Config, found: Preflight, trust: Trust, wrong: Container[str]) -> None:
    if found.model is not None and "log" not in wrong:
        with found.catching("log.hooks"):
            chosen(found.model, log_builder.make_hooks(config, trust))


def misfits(
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
    """What a run of the supervised step would come upon only after its first step, of a batch on the meta device.

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
    step = component(config.step, "step", trust=trust, call=False)
    found = Preflight(model=model, batch=batch)
    with rng.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_meta = meta_copy(loss) if isinstance(loss, nn.Module) else loss
        model.train()
        if metrics:
            with suppress(Exception):  # the real step comes next, and says it of real numbers
                outcome = step(batch, model, on_meta)
                mistake = spread_in_loss(on_meta, outcome["output"], outcome["target"])
                found.mistakes += [mistake] if mistake is not None else []
                _try_metrics(config, found, {"train": outcome}, trust)
        error = refuses_one(batch, lambda part: step(part, model, on_meta)) if rest else None
    if error is not None:
        whole = config.loader.batch_size
        sizes = f"{size:,} samples in batches of {whole:,} leave a last batch of one" if whole > 1 else "each has one"
        rule = f"makes a batch that the model cannot train on: {sizes} ({type(error).__name__}: {error})"
        remedy = (
            f"take `loader.drop_last=true` or another size, such as `loader.batch_size={_without_rest(size, whole)}`"
        )
        if whole == 1:
            remedy = "take `loader.batch_size=2` or more"
        found.mistakes.append(Mistake("loader.batch_size", rule, whole, remedy=remedy, kind="refused"))
    return found.mistakes


def _without_rest(size: int, batch_size: int) -> int:
    """The nearest smaller batch size, else larger, that leaves no batch of a single sample."""
    smaller = range(batch_size - 1, 1, -1)
    return next((other for other in smaller if size % other != 1), batch_size + 1)
