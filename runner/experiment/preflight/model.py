"""Preflight of the model: build, initialize, load and freeze on the meta device."""

import dataclasses
from typing import Any

import torch
from torch import nn

from runner.config.check.imports import import_object
from runner.config.schema import Config, Freeze
from runner.core.errors import ConfigError, Mistake, RunError
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import InstantiationError, Trust, instantiate
from runner.experiment.preflight.report import Preflight, locate_user_code, to_mistake
from runner.model.freeze import FrozenParameters
from runner.model.init import plan_rules
from runner.model.meta import copy_to_meta
from runner.train.distributed.sync_batchnorm import find_batch_norms
from runner.train.optimizer_step.closure import has_parameter


def build_meta_model(config: Config, found: Preflight, trust: Trust) -> nn.Module | None:
    """Build the model on the meta device, or by way of the CPU; None, with a mistake, if refused."""
    try:
        with torch.device("meta"):
            model: Any = instantiate(config.model, "model", trust=trust)
    except InstantiationError as error:
        model = _build_on_cpu(config, found, trust, error)
        if model is None:
            return None
    if not isinstance(model, nn.Module):
        rule = f"must give an nn.Module, but gives {type(model).__name__}"
        found.mistakes.append(Mistake("model", rule, config.model["_target_"], kind="type"))
        return None
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        rule = f"must know the shapes of its parameters, but {', '.join(lazy[:3])} get theirs in a forward"
        remedy = (
            "write the sizes (`nn.Linear(64, 10)` in place of `nn.LazyLinear(10)`), or end the constructor with a "
            "forward, `self(torch.zeros(1, …))`"
        )
        found.mistakes.append(Mistake("model", rule, config.model["_target_"], remedy=remedy, kind="refused"))
        return None
    if config.train.average is not None and config.train.average.update_bn and not find_batch_norms(model):
        rule, key = "has no effect: the model has no batch normalisation", "train.average.update_bn"
        found.mistakes.append(Mistake(key, rule, value=True, suggestion="false", kind="no-effect"))
    if config.device.sync_batchnorm and not find_batch_norms(model):
        rule = "has no effect: the model has no batch normalisation"
        found.mistakes.append(Mistake("device.sync_batchnorm", rule, value=True, suggestion="false", kind="no-effect"))
    return model


def _build_on_cpu(config: Config, found: Preflight, trust: Trust, refused: InstantiationError) -> Any:
    """Build the model on the CPU and copy it to meta, for constructors that need real numbers.

    Where the CPU refuses it too, that is the mistake; None then.
    """
    try:
        model: Any = model_builder.make_model(config, trust)
    except InstantiationError as error:
        found.mistakes.append(to_mistake(error))
        return None
    said = refused.said.splitlines()[0]
    found.notes.append(f"the model cannot be built on the meta device ({said}): it was built with its numbers")
    return copy_to_meta(model) if isinstance(model, nn.Module) else model


def check_model_preparation(
    config: Config, model: nn.Module, found: Preflight, trust: Trust, loss: Any
) -> list[dict[str, Any]] | None:
    """Check init, pretrained, freeze and group patterns; return the optimizer's groups, if any."""
    with found.catching("init"):
        found.init_rows = plan_rules(model, model_builder.make_init_rules(config, trust))
    if config.init.apply is not None and not found.mistakes:
        if has_parameter(import_object(config.init.apply["_target_"], trust), "batch"):
            found.notes.append("init.apply asks for a batch: it meets the data when the run is built")
        else:
            _try_init_function(config, found, trust)
    with found.catching("pretrained"):
        found.pretrained = model_builder.plan_pretrained(config, model, download=False)
        if found.pretrained is None and config.pretrained.strategy != "none":
            found.notes.append(f"the weights {config.pretrained.path} are not on this machine yet")
        if found.pretrained is not None:
            found.plan.append(found.pretrained.summary())
    frozen = FrozenParameters()
    groups: list[dict[str, Any]] | None = None
    with found.catching("freeze"):
        frozen = model_builder.freeze_model(config, model)
    for name, value in (("from", config.freeze.from_), ("until", config.freeze.until)):
        if value is not None and not config.freeze.params:
            rule = "has no effect without `freeze.params`"
            found.mistakes.append(Mistake(f"freeze.{name}", rule, value, kind="no-effect"))
    with found.catching("param_groups"):
        groups = model_builder.make_groups(config, model, frozen, trust, loss)
    return groups  # noqa: RET504  None where that was refused


def _try_init_function(config: Config, found: Preflight, trust: Trust) -> None:
    """Apply the user's init function to a real model: only numbers show whether it changes them."""
    with found.catching("init.apply"):
        try:
            without_freeze = dataclasses.replace(config, freeze=Freeze())
            model_builder.prepare_model(without_freeze, model_builder.make_model(config, trust), trust, weights=False)
        except (RunError, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            rule = f"is refused ({type(error).__name__}: {error})"
            found.mistakes.append(Mistake("init.apply", rule, where=locate_user_code(error), kind="refused"))
