"""Reasons why a run cannot join a stack, and the numbers in which the runs of one may differ."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from runner.core.progress import ProgressBinding, TrainingProgress
from runner.train.optimizer_step.accumulated import AccumulatedStep
from runner.train.optimizer_step.base import OptimizerStep, OptimizerStepWithHooks
from runner.train.state import Run
from runner.train.vectorized.optimizers import KINDS
from runner.train.vectorized.stack import StepModule, get_tensors

STEPS = (OptimizerStep, OptimizerStepWithHooks, AccumulatedStep)


@dataclass(frozen=True)
class Apart:
    """Reason why a run trains alone: the config's key, and a sentence."""

    key: str
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


def explain_apart(run: Run) -> Apart | None:
    """Explain why a run cannot be a member of any stack; None where it can."""
    kind = type(run.optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    config = run.config
    reasons = {
        "optimizer": (kind not in KINDS, f"{name} has no form with a setting per job"),
        "step": (type(run.update) not in STEPS, "the step updates the weights itself"),
        "device.precision": (run.scaler is not None, "fp16 scales the loss of each job by a factor of its own"),
        "device.compile": (bool(config["device"]["compile"]), "a compiled model cannot be mapped by torch.vmap"),
        "device.parallel": (run.team.world > 1 or run.update.net is not run.model, "several devices train it"),
        "train.detect_anomaly": (config["train"]["detect_anomaly"], "it follows the backward of one job"),
        "train.split_on_oom": (config["train"]["split_on_oom"], "it splits the batch of one job"),
        "log": (_is_looked_into(run), "norms, histograms, a profile or rates of one job's steps are asked for"),
        "dataset": (run.splits["train"].num_batches is None, "an iterable dataset has epochs of unknown length"),
        "loader.bad_samples": (config["loader"]["bad_samples"] != "error", "batches would differ in their size"),
        "loader.sampler": (run.splits["train"].sampler is not None, "a sampler of the user has an order of its own"),
    }
    return next((Apart(key, why) for key, (holds, why) in reasons.items() if holds), explain_parts(run))


def explain_parts(run: Run) -> Apart | None:
    """Explain by model, loss, step and optimizer why a run cannot be in any stack; None where it can."""
    stateful = next((which for which in ("step", "loss") if _has_state(getattr(run, which))), None)
    if stateful is not None:
        return Apart(stateful, "it has a state of its own, which is no module's")
    for group in run.optimizer.param_groups:
        for name in ("differentiable", "capturable"):
            if group.get(name):
                return Apart(f"optimizer.{name}", "is of one optimizer's own kernels")
    lazy = [
        name for name, parameter in run.model.named_parameters() if isinstance(parameter, nn.UninitializedParameter)
    ]
    if lazy:
        return Apart("model", f"`{lazy[0]}` has no shape before the first batch")
    holders = [value for _, _, value in _iterate_attributes(run)]
    if any(map(_holds_progress, [run.step, run.loss, *holders, *_list_hooked_values(run.loss)])):
        return Apart("model", "a part of it asks for the `progress` of one job")
    hooked = next((name for name, module in run.model.named_modules() if _is_parametrized(module)), None)
    if hooked is not None:
        return Apart("model", f"`{hooked}` computes its weights by itself (spectral_norm, weight_norm of old)")
    return None


def _holds_progress(value: Any) -> bool:
    """Return whether a value is the progress of training, or a call that is bound to it."""
    if isinstance(value, partial):
        return _holds_progress(value.func) or any(map(_holds_progress, (*value.args, *value.keywords.values())))
    return isinstance(value, TrainingProgress | ProgressBinding)


def _list_hooked_values(loss: Any) -> list[Any]:
    """List what the hooks before a loss's forward hold: `bind_progress` gives it the progress in one."""
    hooks = loss._forward_pre_hooks.values() if isinstance(loss, nn.Module) else ()  # noqa: SLF001
    return [cell.cell_contents for hook in hooks for cell in getattr(hook, "__closure__", None) or ()]


def _is_parametrized(module: nn.Module) -> bool:
    """Return whether a hook computes a module's weights, as torch's older spectral_norm does."""
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001  nothing public lists them
    return any(type(hook).__module__.startswith("torch.nn.utils") for hook in hooks)


def _has_state(part: Any) -> bool:
    if isinstance(part, nn.Module):
        return False  # its parameters and buffers are stacked as those of the model
    return hasattr(part, "state_dict")


def _is_looked_into(run: Run) -> bool:
    looks = run.looks
    return any(part is not None for part in (looks.inside, looks.profile)) or looks.graph or looks.measured is not None


def find_difference(runs: Sequence[Run]) -> tuple[dict[tuple[str, str], tuple[float, ...]], list[Apart | None]]:
    """Compare runs with the first: the numbers that differ, and why a run cannot join it.

    Returns:
        numbers: (path of the module in `StepModule`, attribute) → a value a run; of the runs that can be together.
        reasons: one a run; None where it can.
    """
    first = runs[0]
    reasons: list[Apart | None] = [None, *(_compare(first, run) for run in runs[1:])]
    together = [run for run, reason in zip(runs, reasons, strict=True) if reason is None]
    return find_numbers(together), reasons


def find_numbers(runs: Sequence[Run]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Find the numbers in which the modules of alike runs differ, see `find_difference`."""
    numbers: dict[tuple[str, str], tuple[float, ...]] = {}
    each = [dict(_iterate_numbers(run)) for run in runs]
    for place in each[0]:
        values = tuple(own[place] for own in each)
        if any(value != values[0] and not (math.isnan(value) and math.isnan(values[0])) for value in values):
            numbers[place] = values
    return numbers


def _compare(first: Run, run: Run) -> Apart | None:
    """Explain why a run cannot be in the stack of another; None where it can."""
    ours, theirs = (_describe_tensors(one) for one in (first, run))
    if ours != theirs:
        return Apart("model", "its tensors differ in name, shape, or in what trains")
    return _compare_optimizers(first, run) or _compare_progress(first, run) or _compare_attributes(first, run)


def _compare_optimizers(first: Run, run: Run) -> Apart | None:
    if type(first.optimizer) is not type(run.optimizer):
        return Apart("optimizer", "it is of another kind")
    groups = [[[*group.get("param_names", ())] for group in one.optimizer.param_groups] for one in (first, run)]
    if groups[0] != groups[1]:
        return Apart("param_groups", "the parameters are grouped in another way")
    flags = KINDS[type(first.optimizer)].flags
    for own, other in zip(first.optimizer.param_groups, run.optimizer.param_groups, strict=True):
        for name in flags:
            if own.get(name) != other.get(name):
                return Apart(f"optimizer.{name}", "is one for all jobs of a stack")
    return None


def _compare_progress(first: Run, run: Run) -> Apart | None:
    if first.progress.step != run.progress.step or first.progress.batch != run.progress.batch:
        return Apart("train.duration", f"it stands at step {run.progress.step:,}")
    if first.frozen.spans != run.frozen.spans:
        return Apart("freeze", "other parameters train, or at other times")
    for name in ("steps_per_epoch", "accumulate"):
        if getattr(first.rhythm, name) != getattr(run.rhythm, name):
            return Apart("loader.batch_size", f"its {name.replace('_', ' ')} differ")
    return None


def _compare_attributes(first: Run, run: Run) -> Apart | None:
    for (path, name, own), (other_path, other_name, other) in zip(
        _iterate_attributes(first), _iterate_attributes(run), strict=False
    ):
        same = (path, name, type(own)) == (other_path, other_name, type(other))
        if not same or not (isinstance(own, float) or _is_equal(own, other)):
            key = "loss" if path.startswith("loss") else "model"
            return Apart(key, f"`{name}` of {path or 'the step'} is {other!r}, and {own!r} in the first")
    return None


def _describe_tensors(run: Run) -> Any:
    parameters, buffers = get_tensors(run)
    return [
        [(name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in part.items()]
        for part in (parameters, buffers)
    ]


def _iterate_attributes(run: Run) -> Iterator[tuple[str, str, Any]]:
    """Yield the plain attributes of every module of a run's model and loss: path, name, value."""
    for path, module in StepModule(run.model, run.loss, None).named_modules():
        if not path:
            continue
        yield path, "type", type(module).__qualname__
        for name, value in sorted(vars(module).items()):
            if not name.startswith("_") or isinstance(value, Number):
                yield path, name, value
    if isinstance(run.loss, partial):
        for name, value in sorted(run.loss.keywords.items()):
            yield "loss()", name, value


def _iterate_numbers(run: Run) -> Iterator[tuple[tuple[str, str], float]]:
    for path, name, value in _iterate_attributes(run):
        if isinstance(value, float):
            yield (path, name), value


_PLAIN = (str, bytes, bool, int, complex, type(None), torch.dtype, torch.device, type)


def _is_equal(own: Any, other: Any) -> bool:
    """Return whether two attributes are equal, as far as plain data and tensors can tell."""
    if isinstance(own, Tensor):
        return own.shape == other.shape and bool(torch.equal(own, other))
    if isinstance(own, _PLAIN):
        return bool(own == other)
    if isinstance(own, float):
        return own == other or (math.isnan(own) and math.isnan(other))
    if isinstance(own, Mapping):
        return own.keys() == other.keys() and all(
            type(own[name]) is type(other[name]) and _is_equal(own[name], other[name]) for name in own
        )
    if isinstance(own, list | tuple | set | frozenset):
        return len(own) == len(other) and all(
            type(one) is type(two) and _is_equal(one, two) for one, two in zip(own, other, strict=True)
        )
    if isinstance(own, nn.Module) or callable(own):
        return True  # a module is compared by its own attributes, a function by those that hold it
    inside = getattr(own, "__dict__", None)
    return inside is not None and _is_equal(inside, getattr(other, "__dict__", {}))
