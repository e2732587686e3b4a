"""Preflight of a stack: a made-up batch through the models of two jobs as one, without data."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.check.check import to_resolved_data
from runner.config.schema import Config
from runner.core import rng
from runner.core.trees import map_in_kind
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.preflight.preflight import prepare_model_table
from runner.experiment.preflight.report import Preflight
from runner.model.freeze import FrozenParameters
from runner.train.optimizer_step.closure import is_custom_step
from runner.train.remedies import make_labels, make_logits, make_probabilities
from runner.train.vectorized.joining import explain_parts, find_numbers
from runner.train.vectorized.stack import Stack, StepModule, choose_step
from runner.train.vectorized.trial import ApartError, map_step

MOST_NUMBERS = 30_000_000  # of a model that is built for two jobs, and stacked


@dataclass
class StackPreflight:
    """Result of a trial: why jobs cannot be one model, or why nothing was tried; empty where they can."""

    reason: str = ""
    untried: str = ""


@dataclass
class TriedJob:
    """Stand-in for the `Run` of a job that is not built: the parts that its step needs."""

    model: nn.Module
    loss: Any
    step: Any
    config: Mapping[str, Any]
    optimizer: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frozen: FrozenParameters = field(default_factory=FrozenParameters)


def try_stacking(configs: Sequence[Config], trust: Trust = ()) -> StackPreflight:
    """Try a step of two jobs as one on a made-up batch of two samples, on the CPU; no data is touched.

    The losses are not compared: those of two samples say little. That is left to the trial on the first real batch.

    Args:
        configs: of the jobs of one group, free of mistakes; the two that are tried differ in model or loss if any do.
        trust: patterns of names trusted on the command line.
    """
    first = configs[0]
    other = next((one for one in configs if (one.model, one.loss) != (first.model, first.loss)), configs[-1])
    with warnings.catch_warnings(), rng.fork_rng():
        warnings.simplefilter("ignore")
        try:
            found = prepare_model_table(first, trust)
            if found.batch is not None:
                found.batch = make_numbers(found.batch, first.step.get("target", 1))
            return _try(found, [first, other], trust)
        except Exception as error:  # noqa: BLE001  of user code on a made-up batch, of which the real one shows more
            return StackPreflight(untried=f"a made-up batch is refused ({type(error).__name__})")


def _try(found: Preflight, configs: Sequence[Config], trust: Trust) -> StackPreflight:
    batch, needs_data = found.batch, configs[0].dataset.steps_per_epoch is None
    if found.model is None or (batch is None and needs_data):
        return StackPreflight(untried="without data there is no batch to try")
    if sum(parameter.numel() for parameter in found.model.parameters()) > MOST_NUMBERS:
        return StackPreflight(untried="the model is large")
    jobs: list[Any] = [_make_job(config, trust) for config in configs]
    if is_custom_step(jobs[0].step):
        return StackPreflight("step: it updates the weights itself")
    if (apart := explain_parts(jobs[0])) is not None:
        return StackPreflight(str(apart))
    StepModule(jobs[0].model, jobs[0].loss, choose_step(jobs[0]))(batch)["loss"].backward()
    jobs[0].model.zero_grad()
    stack = Stack(jobs, find_numbers(jobs))
    try:
        map_step(stack, [batch, batch])
    except ApartError as error:
        return StackPreflight(str(error))
    return StackPreflight()


def _make_job(config: Config, trust: Trust) -> TriedJob:
    model = model_builder.make_model(config, trust)
    frozen = model_builder.freeze_model(config, model)
    loss = None if config.loss is None else instantiate(config.loss, "loss", trust=trust, call=False)
    step = instantiate(config.step, "step", trust=trust, call=False)
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # no setting is looked at
    return TriedJob(model.train(), loss, step, to_resolved_data(config), unused, frozen=frozen)


def make_numbers(batch: Any, target: Any) -> Any:
    """Make up a batch: floats from -2 to 2, in the place of the target shares, and integers 0 and 1."""

    def make(tensor: Tensor, floats: Any = make_logits) -> Tensor:
        made: Tensor = floats(tensor) if tensor.is_floating_point() else make_labels(tensor)
        return made

    def make_target(tensor: Tensor) -> Tensor:
        return make(tensor, make_probabilities)

    if isinstance(batch, Mapping):
        return {name: map_in_kind(make_target if name == target else make, value) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [map_in_kind(make_target if place == target else make, value) for place, value in enumerate(batch)]
    return map_in_kind(make, batch)
