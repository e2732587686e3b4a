"""Preflight of the model: built on the meta device, then initialised, loaded and frozen there."""

import dataclasses
from typing import Any

import torch
from torch import nn

from runner.config.schema import Config, Freeze
from runner.core.errors import ConfigError, Mistake, RunError
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Refused, Trust, component
from runner.experiment.preflight.report import Preflight, raised_in, refusal
from runner.model.freeze import Frozen, freeze
from runner.model.init import plan_rules
from runner.model.meta import meta_copy
from runner.train.distributed.sync_batchnorm import batch_norms


def meta_model(config: Config, found: Preflight, trust: Trust) -> nn.Module | None:
    """The model on the meta device; None, with a mistake or a note, where it cannot be built there."""
    try:
        with torch.device("meta"):
            model: Any = component(config.model, "model", trust=trust)
    except Refused as error:
        model = _on_cpu(config, found, trust, error)
        if model is None:
            return None
    if not isinstance(model, nn.Module):
        rule = f"must give an nn.Module, but gives {type(model).__name__}"
        found.mistakes.append(Mistake("model", rule, config.model["_target_"], kind="type"))
        return None
    if config.device.sync_batchnorm and not batch_norms(model):
        rule = "has no effect: the model has no batch normalisation"
        found.mistakes.append(Mistake("device.sync_batchnorm", rule, value=True, suggestion="false", kind="no-effect"))
    return model


def _on_cpu(config: Config, found: Preflight, trust: Trust, refused: Refused) -> Any:
    """The model built with its numbers, and then without: what a constructor does may need them (weights of a file).

    Where the CPU refuses it too, that is the mistake; None then.
    """
    try:
        model: Any = model_builder.make_model(config, trust)
    except Refused as error:
        found.mistakes.append(refusal(error))
        return None
    found.notes.append(f"the model cannot be built on the meta device ({refused.said}): it was built with its numbers")
    return meta_copy(model) if isinstance(model, nn.Module) else model


def _check_surgery(
    config: Config, model: nn.Module, found: Preflight, trust: Trust, loss: Any
) -> list[dict[str, Any]] | None:
    """Match every pattern, read the keys of a checkpoint that is at hand; the optimizer's groups, if any."""
    with found.catching("init"):
        found.init_rows = plan_rules(model, model_builder.init_rules(config, trust))
    if config.init.apply is not None and not found.mistakes:
        _try_init_function(config, found, trust)
    with found.catching("pretrained"):
        found.pretrained = model_builder.plan_pretrained(config, model, download=False)
        if found.pretrained is None and config.pretrained.strategy != "none":
            found.notes.append(f"the weights {config.pretrained.path} are not on this machine yet")
        if found.pretrained is not None:
            found.plan.append(found.pretrained.summary())
    frozen = Frozen()
    groups: list[dict[str, Any]] | None = None
    with found.catching("freeze"):
        frozen = freeze(model, config.freeze.params, norm_stats=config.freeze.norm_stats)
    if config.freeze.until is not None and not config.freeze.params:
        found.mistakes.append(
            Mistake("freeze.until", "has no effect without `freeze.params`", config.freeze.until, kind="no-effect")
        )
    with found.catching("param_groups"):
        groups = model_builder.make_groups(config, model, frozen, trust, loss)
    return groups  # noqa: RET504  None where that was refused


def _try_init_function(config: Config, found: Preflight, trust: Trust) -> None:
    """Hand the user's function to a real model: whether it changes anything shows in the numbers only."""
    with found.catching("init.apply"):
        try:
            without_freeze = dataclasses.replace(config, freeze=Freeze())
            model_builder.operate(without_freeze, model_builder.make_model(config, trust), trust, weights=False)
        except (RunError, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            rule = f"is refused ({type(error).__name__}: {error})"
            found.mistakes.append(Mistake("init.apply", rule, where=raised_in(error), kind="refused"))
